"""The end of the road: a folder that classifies pictures without PyTorch.

The folder holds `model.onnx`, which takes pixels and gives probabilities, `labels.txt`, and
`predict.py`, a copy of `cvlab/standalone.py`.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from cvlab import export, runtime

STANDALONE = Path(__file__).parent / "standalone.py"


def package(model: Path, folder: Path) -> Path:
    """Write the folder for a model of `cvlab.export.to_onnx`; returns it.

    Raises:
        cvlab.export.ExportError: the model does not say what it must be given.
        OSError: the folder cannot be written.
    """
    engine = runtime.session(export.with_pixels(model, folder / "model.onnx"))
    (folder / "labels.txt").write_text("\n".join(runtime.classes(engine)) + "\n")
    shutil.copy(STANDALONE, folder / "predict.py")
    return folder


def classify(model: Path, pictures: Sequence[Path]) -> pd.DataFrame:
    """Probabilities of pictures, which are shrunk to what the model takes.

    Args:
        model: a file of `cvlab.export.with_pixels`.
        pictures: files that Pillow can read.

    Returns:
        a row for each picture, a column for each class.

    Raises:
        FileNotFoundError: there is no such model or picture.
        cvlab.runtime.ModelError: the model cannot be used, or does not take pixels.
        ValueError: a file is not a picture.
    """
    engine = runtime.session(model)
    taken, known = engine.get_inputs()[0], runtime.classes(engine)
    if taken.type != "tensor(uint8)" or len(taken.shape) != 4 or not known:
        raise runtime.ModelError(
            f"{model} takes {taken.type} {taken.shape}; pictures need a model that takes pixels, "
            "uint8 [N, height, width, 3], and knows its classes: export it with "
            "cvlab.export.with_pixels."
        )
    _, height, width, _ = taken.shape
    images = np.stack([_pixels(picture, (width, height)) for picture in pictures])
    names = [str(picture) for picture in pictures]
    return pd.DataFrame(runtime.run(engine, images), names, known)


def _pixels(picture: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(picture) as image:
            return np.asarray(image.convert("RGB").resize(size))
    except UnidentifiedImageError as error:
        raise ValueError(f"{picture} is not a picture that Pillow can read.") from error
