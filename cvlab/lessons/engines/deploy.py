"""The end of the road: a folder that classifies pictures without PyTorch.

The folder holds `model.onnx`, which takes pixels and gives probabilities, `labels.txt`, and
`predict.py`, a copy of `standalone.py` here.
"""

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import torch
from PIL import Image
from torch.nn import functional as F

from cvlab import runtime
from cvlab.export import SIDE, ExportError, save_checked
from cvlab.paths import replace_atomically
from cvlab.sources import pixels

STANDALONE = Path(__file__).parent / "standalone.py"


def package(model: Path, folder: Path) -> Path:
    """Write the folder for a model of `cvlab.export.to_onnx`; returns it.

    Raises:
        cvlab.export.ExportError: the model does not say what it must be given.
        OSError: the folder cannot be written.
    """
    made = runtime.Model(with_pixels(model, folder / "model.onnx"))
    (folder / "labels.txt").write_text("\n".join(made.classes) + "\n", encoding="utf-8")
    shutil.copy(STANDALONE, folder / "predict.py")
    return folder


def classify(model: Path, pictures: Sequence[Path]) -> pd.DataFrame:
    """Probabilities of pictures, which are shrunk to what a model of `with_pixels` takes.

    Returns:
        a row for each picture, a column for each class. A file that is no picture is warned of,
        and has no row.

    Raises:
        FileNotFoundError: there is no such model.
        cvlab.runtime.ModelError: the model cannot be used, or does not take pixels.
        ValueError: not one file is a picture.
    """
    loaded = runtime.Model(model)
    taken = loaded.input
    if taken.type != "tensor(uint8)" or len(taken.shape) != 4 or not loaded.classes:
        raise runtime.ModelError(
            f"{model} takes {taken.type} {taken.shape}; pictures need a model that takes pixels, "
            "uint8 [N, height, width, 3], and knows its classes: export it with "
            "cvlab.lessons.engines.deploy.with_pixels."
        )
    _, height, width, _ = taken.shape
    images = {}
    for picture in pictures:
        try:
            image = Image.fromarray(pixels(picture))
            images[str(picture)] = np.asarray(image.resize((width, height)))
        except (ValueError, OSError) as error:
            why = error if isinstance(error, ValueError) else "cannot be read: " + error.strerror
            warnings.warn(f"{picture} {why}", stacklevel=2)
    if not images:
        raise ValueError(f"None of {len(pictures)} files could be read as a picture.")
    return pd.DataFrame(loaded.run(np.stack([*images.values()])), [*images], loaded.classes)


PIXELS = ["batch", SIDE, SIDE, 3]


def with_pixels(model: Path, path: Path) -> Path:
    """Put preprocessing in front of an exported network and softmax behind it, in the graph.

    Resizing is linear: a matrix times the image times the matrix transposed. So the graph holds
    two multiplications in place of a resize operator, whose rules differ between libraries.

    Args:
        model: an ONNX file that `to_onnx` wrote with the metadata of `about`.
        path: where the result goes.

    Returns:
        `path`. The input is "pixels", uint8 [N, 32, 32, 3] as image libraries have them, the
        output "probabilities", float32 [N, classes].

    Raises:
        ExportError: the file does not say what its network must be given.
    """
    content = onnx.load(model)
    known = {entry.key: entry.value for entry in content.metadata_props}
    if missing := {"classes", "mean", "std", "size", "interpolation"} - known.keys():
        raise ExportError(
            f"{model} does not say its {', '.join(sorted(missing))}; export it with "
            "about=export.about(stored)."
        )
    node, graph = onnx.helper.make_node, content.graph
    inner, logits = graph.input[0].name, graph.output[0].name
    nodes = [
        node("Transpose", ["pixels"], ["_channels_first"], perm=[0, 3, 1, 2]),
        node("Cast", ["_channels_first"], ["_float"], to=onnx.TensorProto.FLOAT),
        node("MatMul", ["_resize", "_float"], ["_high"]),
        node("MatMul", ["_high", "_resize_T"], ["_resized"]),
        node("Clip", ["_resized", "_black", "_white"], ["_clipped"]),
        node("Mul", ["_clipped", "_scale"], ["_scaled"]),
        node("Add", ["_scaled", "_shift"], [inner]),
        *graph.node,
        node("Softmax", [logits], ["probabilities"], axis=1),
    ]
    constants = [onnx.numpy_helper.from_array(a, name) for name, a in _constants(known).items()]
    inputs = [onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, PIXELS)]
    shape = ["batch", len(json.loads(known["classes"]))]
    outputs = [onnx.helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, shape)]
    constants += graph.initializer
    content.graph.CopyFrom(onnx.helper.make_graph(nodes, "with pixels", inputs, outputs, constants))
    return replace_atomically(lambda file: save_checked(content, file), path)


def _constants(known: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The numbers of the preprocessing, by their names in the graph."""
    mean, std = (np.float32(json.loads(known[key]))[:, None, None] for key in ("mean", "std"))
    eye, size = torch.eye(SIDE)[None, None], (int(known["size"]), SIDE)
    resized = F.interpolate(eye, size, mode=known["interpolation"], antialias=True)
    resize = resized[0, 0].numpy()  # [size, 32]
    black_and_white = {"_black": np.float32(0), "_white": np.float32(255)}
    matrices = {"_resize": resize, "_resize_T": np.ascontiguousarray(resize.T)}
    return matrices | black_and_white | {"_scale": 1 / (255 * std), "_shift": -mean / std}
