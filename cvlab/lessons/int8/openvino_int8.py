"""A second opinion: OpenVINO in fp32, bf16 and, quantised by NNCF, in INT8. Both are optional."""

from collections import Counter
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cvlab import runtime
from cvlab.bench import Contestant, race
from cvlab.lessons.engines import rivals
from cvlab.lessons.int8.ladder import FLOAT, Examples, compared


def available() -> bool:
    """Are both installed (`pip install openvino nncf`)?"""
    return all(find_spec(name) for name in ("openvino", "nncf"))


def nncf_int8(model: Path, images: np.ndarray, path: Path) -> Path:
    """Quantise an ONNX model by NNCF's default recipe into OpenVINO's format.

    Args:
        model: in fp32.
        images: to calibrate on, normalised float32 [N, 3, H, W].
        path: an .xml file to write; the weights go beside it.
    """
    with runtime.quiet():
        import nncf
        import openvino
        import rich  # nncf's progress bars, which stay behind in a notebook

        rich.reconfigure(force_jupyter=False, quiet=True)
        singles = nncf.Dataset([images[i : i + 1] for i in range(len(images))])
        made = nncf.quantize(openvino.Core().read_model(model), singles, subset_size=len(images))
        openvino.save_model(made, path)
    return path


def precision_run(compiled) -> str:
    """What most convolutions of a compiled model really compute in, as OpenVINO tells it."""
    about = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    ran = Counter(
        a["runtimePrecision"].value for a in about if a["layerType"].value == "Convolution"
    )
    return ran.most_common(1)[0][0]


def table(
    model: Path, int8: Path, some: Examples, threads: int, *, rounds: int = 12
) -> pd.DataFrame:
    """ONNX Runtime in fp32, then OpenVINO in each precision, on the same images.

    Args:
        model: ONNX in fp32.
        int8: of `nncf_int8`.
        some: validation images; the race runs one batch of 32.
        threads: of each.
        rounds: of the race.

    Returns:
        a row each: `precision` (that ran), see `ladder.compared`, `throughput`, `speedup`.
    """
    reference, labels = runtime.predict(model, some)
    asked = {"f32": (model, "f32"), "bf16": (model, "bf16"), "NNCF int8": (int8, "f32")}
    rows = {"ONNX Runtime": {"precision": FLOAT} | compared(reference, reference, labels)}
    calls = {"ONNX Runtime": partial(runtime.call, model)}
    for name, (file, precision) in asked.items():
        compiled = rivals.openvino_model(file, threads, precision)
        request = compiled.create_infer_request()
        logits = [torch.tensor(request.infer([x.numpy()])[0]) for x, _ in some.epoch()]
        row = {"precision": precision_run(compiled)}
        rows[f"OpenVINO {name}"] = row | compared(reference, torch.cat(logits), labels)
        calls[f"OpenVINO {name}"] = partial(rivals.openvino, file, precision=precision)
    batch = some.images[:32].numpy()
    field = {name: Contestant(call, batch, threads) for name, call in calls.items()}
    times = race(field, rounds=rounds, what="OpenVINO")
    times = times.rename(columns={"images/s": "throughput", "ratio": "speedup"})
    return pd.DataFrame.from_dict(rows, orient="index").join(times[["throughput", "speedup"]])
