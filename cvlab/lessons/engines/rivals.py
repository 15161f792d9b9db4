"""One network on every engine at hand: contestants for `cvlab.bench.race`."""

import shutil
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cvlab import runtime, store
from cvlab.bench import Call, Contestant
from cvlab.train import autocast


def contestants(
    net: Path, model: Path, images: np.ndarray, threads: int, device: str = "cpu"
) -> dict[str, Contestant]:
    """PyTorch, ONNX Runtime and OpenVINO, each in its variants, on the same batch.

    Args:
        net: the network, see `cvlab.store`.
        model: the same network as ONNX file, for float inputs.
        images: normalised float32 [N, 3, H, W].
        threads: for all of them.
        device: "cpu" or "cuda".

    Returns:
        by name, "PyTorch eager" first. `torch.compile` takes part where a C++ compiler is,
        OpenVINO where it is installed, ONNX Runtime on a GPU where it was built for that. A name
        says the precision where it is not fp32.
    """
    torch_call = partial(pytorch, net, device=device)
    calls = {
        "PyTorch eager": torch_call,
        "PyTorch channels_last": partial(torch_call, layout="channels_last"),
        "PyTorch bf16": partial(torch_call, layout="channels_last", precision="bf16"),
    }
    if shutil.which("g++") or shutil.which("clang++"):
        calls["PyTorch compiled"] = partial(torch_call, layout="channels_last", compiled=True)
    if device == "cpu":
        for level in runtime.LEVELS:
            calls[f"ONNX Runtime, {level}"] = partial(runtime.call, model, level=level)
        if find_spec("openvino"):
            calls["OpenVINO"] = partial(openvino, model)
            calls["OpenVINO bf16"] = partial(openvino, model, precision="bf16")
    elif runtime.has_cuda():
        calls["ONNX Runtime"] = partial(runtime.bound_call, model, device=device)
    return {name: Contestant(call, images, threads) for name, call in calls.items()}


def network(
    net: Path, threads: int, *, device: str = "cpu", layout: str = "contiguous_format"
) -> nn.Module:
    """A stored network, its weights in `layout`; sets PyTorch's threads in this process, for good.

    Ask for the layout: a convolution works channels_last if only its weights lie so, and those
    of `cvlab.zoo` do.
    """
    torch.set_num_threads(threads)
    return store.load(net).model.to(device, memory_format=getattr(torch, layout))


def pytorch(
    net: Path,
    images: np.ndarray,
    threads: int,
    *,
    device: str = "cpu",
    layout: str = "contiguous_format",
    precision: str = "fp32",
    compiled: bool = False,
) -> Call:
    """A call of a stored network in PyTorch.

    Args:
        net: see `cvlab.store`.
        images: float32 [N, 3, H, W].
        threads: of PyTorch in this process, for good.
        device: where weights and images are put, once.
        layout: "contiguous_format" (NCHW) or "channels_last" (NHWC).
        precision: "fp32" or, under autocast, "bf16".
        compiled: by `torch.compile`, at the first call.
    """
    model = network(net, threads, device=device, layout=layout)
    batch = torch.from_numpy(images).to(device, memory_format=getattr(torch, layout))
    forward = torch.compile(model) if compiled else model

    def call() -> torch.Tensor:
        with torch.inference_mode(), autocast(torch.device(device), precision):
            return forward(batch)

    return call


def openvino(model: Path, images: np.ndarray, threads: int, precision: str = "f32") -> Call:
    """A call of an ONNX file, or of OpenVINO's own .xml, see `openvino_model`."""
    request = openvino_model(model, threads, precision).create_infer_request()
    return lambda: request.infer([images], share_inputs=True, share_outputs=True)


def openvino_model(model: Path, threads: int, precision: str = "f32"):
    """A model compiled by OpenVINO for the CPU, which is asked for a precision: its own choice may
    be bf16 for a model in fp32. What is INT8 in the file stays INT8.
    """
    from openvino import Core

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    return Core().compile_model(str(model), "CPU", options | {"PERFORMANCE_HINT": "LATENCY"})
