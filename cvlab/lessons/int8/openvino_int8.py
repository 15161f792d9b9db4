"""A second opinion: OpenVINO in fp32, bf16 and, quantised by NNCF, in INT8. Both are optional."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cvlab import runtime
from cvlab.lessons.engines import calls
from cvlab.lessons.int8.ladder import FLOAT, Kept, comparison, first, stacked


def available() -> bool:
    """Are both installed (`pip install openvino nncf`)?"""
    return all(find_spec(name) for name in ("openvino", "nncf"))


def nncf_int8(
    model: Path,
    images: np.ndarray,
    path: Path,
    batches: Kept | None = None,
    max_drop: float = 0.2,
) -> Path:
    """Quantise an ONNX model by NNCF's default recipe into OpenVINO's format.

    Args:
        model: in fp32.
        images: to calibrate on, normalised float32 [N, 3, H, W].
        path: an .xml file to write; the weights go beside it.
        batches: validation images; on them NNCF then sees to the accuracy, and puts layers back
            into float. None: it does not look.
        max_drop: percentage points that may be lost on them.
    """
    with runtime.quiet():
        import nncf
        import openvino
        import rich  # nncf's progress bars, which stay behind in a notebook

        rich.reconfigure(force_jupyter=False, quiet=True)
        singles = nncf.Dataset([images[i : i + 1] for i in range(len(images))])
        plain = openvino.Core().read_model(model)
        if batches is None:
            made = nncf.quantize(plain, singles, subset_size=len(images))
        else:
            made = nncf.quantize_with_accuracy_control(
                plain,
                singles,
                nncf.Dataset(batches),
                _right,
                max_drop=max_drop / 100,
                subset_size=len(images),
            )
        openvino.save_model(made, path)
    return path


def _right(compiled, batches: Kept) -> tuple[float, None]:
    """The accuracy of a compiled model, as NNCF asks for it; it wants no value for each image."""
    hits = [compiled(images.numpy())[0].argmax(1) == labels.numpy() for images, labels in batches]
    return float(np.concatenate(hits).mean()), None


def precision_run(compiled) -> str:
    """What most convolutions of a compiled model really compute in, as OpenVINO tells it."""
    about = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    ran = Counter(
        a["runtimePrecision"].value for a in about if a["layerType"].value == "Convolution"
    )
    return ran.most_common(1)[0][0]


def table(
    model: runtime.Model,
    int8: Mapping[str, Path],
    batches: Kept,
    threads: int,
    *,
    rounds: int = 12,
) -> pd.DataFrame:
    """ONNX Runtime in fp32, then OpenVINO in fp32, in bf16 and with each INT8 file.

    Args:
        model: in fp32.
        int8: files made of it, ours or NNCF's, by name.
        batches: to judge on; the first images are timed.
        threads: of each engine.
        rounds: turns of each.

    Returns:
        a row each: `precision` (that ran), see `ladder.comparison`, `throughput` of one batch of 32
        and `speedup` with `speedup_low` to `speedup_high`.
    """
    plain = "ONNX Runtime"
    asked = {"f32": (model.path, "f32"), "bf16": (model.path, "bf16")}
    asked |= {name: (file, "f32") for name, file in int8.items()}
    files, ran, ways = {plain: model.path}, {plain: FLOAT}, {plain: partial(calls.onnx, model.path)}
    answers = {}
    answers[plain], labels = model.predict(batches)
    for short, (file, precision) in asked.items():
        name, compiled = f"OpenVINO {short}", calls.openvino_model(file, threads, precision)
        request = compiled.create_infer_request()
        logits = [torch.tensor(request.infer([images.numpy()])[0]) for images, _ in batches]
        answers[name], files[name], ran[name] = torch.cat(logits), file, precision_run(compiled)
        ways[name] = partial(calls.openvino, file, precision=precision)
    batch = stacked(first(batches, 32))[:32].numpy()
    times = calls.timed(ways, batch, threads, rounds=rounds, what="OpenVINO")
    times = times[["throughput", "speedup", "speedup_low", "speedup_high"]]
    found = comparison(answers, labels, files).join(times)
    found.insert(0, "precision", pd.Series(ran))
    return found
