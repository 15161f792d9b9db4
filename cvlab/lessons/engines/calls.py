"""A call of one network on every engine at hand, made ready for `cvlab.bench.race`."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import torch
from torch import nn

from cvlab import runtime, store
from cvlab.bench import Call, Contestant, race
from cvlab.export import fold
from cvlab.machine import hardware
from cvlab.train import autocast

COLUMNS = {  # what a race measures, as tables of models say it
    "ms": "latency_ms",
    "p10": "p10",
    "p90": "p90",
    "images/s": "throughput",
    "ratio": "speedup",
    "low": "speedup_low",
    "high": "speedup_high",
}


def contestants(
    net: Path, model: Path, images: np.ndarray, threads: int, device: str = "cpu"
) -> dict[str, Contestant]:
    """PyTorch, ONNX Runtime and OpenVINO, each in its variants, on the same batch.

    Args:
        net: see `cvlab.store`.
        model: the same network as ONNX file.
        images: normalised float32 [N, 3, H, W].
        threads: for all of them.
        device: "cpu" or "cuda".

    Returns:
        by name, "PyTorch eager" first. `torch.compile` takes part where it finds a compiler,
        OpenVINO where it is installed, ONNX Runtime on a GPU where it was built for that. A name
        says the precision where it is not fp32; bf16 takes part where the hardware has it.
    """
    fast_bf16 = device != "cpu" or hardware().has("avx512_bf16", "amx_bf16")
    torch_call = partial(pytorch, net, device=device)
    calls = {
        "PyTorch eager": torch_call,
        "PyTorch folded": partial(torch_call, folded=True),
        "PyTorch channels_last": partial(torch_call, layout="channels_last"),
    }
    if fast_bf16:
        calls["PyTorch bf16"] = partial(torch_call, layout="channels_last", precision="bf16")
    if why := no_compiler():
        warnings.warn(f"No row of torch.compile: {why}", stacklevel=2)
    else:
        calls["PyTorch compiled"] = partial(torch_call, layout="channels_last", compiled=True)
    if device == "cpu":
        for level in runtime.LEVELS:
            calls[f"ONNX Runtime, {level}"] = partial(onnx, model, level=level)
        if find_spec("openvino"):
            calls["OpenVINO"] = partial(openvino, model)
        if find_spec("openvino") and fast_bf16:
            calls["OpenVINO bf16"] = partial(openvino, model, precision="bf16")
    elif runtime.has_cuda():
        calls["ONNX Runtime"] = partial(onnx_bound, model, device=device)
    return {name: Contestant(call, images, threads) for name, call in calls.items()}


def timed(
    calls: Mapping[str, Callable[[np.ndarray, int], Call]],
    images: np.ndarray,
    threads: int,
    *,
    rounds: int = 12,
    what: str | None = None,
) -> pd.DataFrame:
    """Race on one batch; `calls` of `images` and `threads` by name, the first is the reference.

    Returns:
        a row each: `latency_ms` of the batch with `p10` and `p90`, `throughput` in images a second,
        `speedup` over the first with its 95 % interval `speedup_low` to `speedup_high`.
    """
    field = {name: Contestant(call, images, threads) for name, call in calls.items()}
    return race(field, rounds=rounds, what=what)[[*COLUMNS]].rename(columns=COLUMNS)


def throughputs(
    net: Path, model: Path, names: Sequence[str], batches: Mapping[int, np.ndarray], threads: int
) -> dict[str, list[float]]:
    """Images a second of some of the `contestants` for each of `batches`, in their order.

    Races of six rounds in one process a contestant: for a curve, without intervals.
    """
    found = {name: [] for name in names}
    for n, images in batches.items():
        field = contestants(net, model, images, threads)
        field = {name: field[name] for name in names}
        table = race(field, rounds=6, processes=1, what=f"batch {n}, threads {threads}")
        for name in names:
            found[name].append(table.loc[name, "images/s"])
    return found


def network(
    net: Path, threads: int, *, device: str = "cpu", layout: str = "contiguous_format"
) -> nn.Module:
    """A stored network, its weights in `layout`; sets PyTorch's threads in this process, for good.

    Ask for the layout: a convolution works channels_last if only its weights lie so, and those
    of `cvlab.lessons.pretrained.zoo` do.
    """
    torch.set_num_threads(threads)
    return store.load(net).model.to(device, memory_format=getattr(torch, layout))


def rounded_to_bf16(net: nn.Module) -> nn.Module:
    """A copy in eval mode with every weight, and what every layer gives, rounded to bfloat16.

    It adds in float32, as hardware does that has bfloat16, and is as fast as `net` on any CPU.
    """
    copy = deepcopy(net).eval().bfloat16().float()
    for layer in (module for module in copy.modules() if not [*module.children()]):
        layer.register_forward_hook(lambda *seen: seen[2].bfloat16().float())
    return copy


def pytorch(
    net: Path,
    images: np.ndarray,
    threads: int,
    *,
    device: str = "cpu",
    layout: str = "contiguous_format",
    precision: str = "fp32",
    folded: bool = False,
    compiled: bool = False,
) -> Call:
    """A call of a stored network in PyTorch.

    Args:
        net: see `cvlab.store`.
        images: float32 [N, 3, H, W].
        threads: for this process, for good.
        device: where weights and images are put, once.
        layout: "contiguous_format" (NCHW) or "channels_last" (NHWC).
        precision: "fp32" or, under autocast, "bf16".
        folded: with batch normalisation inside the convolutions, as exporters do it.
        compiled: by `torch.compile`, at the first call.
    """
    model = network(net, threads, device=device, layout=layout)
    batch = torch.from_numpy(images).to(device, memory_format=getattr(torch, layout))
    model = fold(model, batch) if folded else model
    forward = torch.compile(model) if compiled else model

    def call() -> torch.Tensor:
        with torch.inference_mode(), autocast(torch.device(device), precision):
            return forward(batch)

    return call


def onnx(model: Path, images: np.ndarray, threads: int, level: str = "all") -> Call:
    """A call of an ONNX file on the CPU; `level` is a key of `cvlab.runtime.LEVELS`.

    Its threads spin, as ONNX Runtime's own default is: without, one image takes longer.
    """
    loaded = runtime.Model(model, threads=threads, level=level, spin=True)
    loaded.check(images)
    feed = {loaded.input.name: images}
    return lambda: loaded.session.run(None, feed)


def onnx_bound(model: Path, images: np.ndarray, threads: int, device: str) -> Call:
    """The same with input and output bound to memory of `device`, so that no call copies them."""
    loaded = runtime.Model(model, threads=threads, device=device, spin=True)
    loaded.check(images)
    session, binding = loaded.session, loaded.session.io_binding()
    there = onnxruntime.OrtValue.ortvalue_from_numpy(images, device, 0)
    binding.bind_ortvalue_input(loaded.input.name, there)
    binding.bind_output(session.get_outputs()[0].name, device)

    def call() -> list:
        session.run_with_iobinding(binding)
        return binding.get_outputs()

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


@cache
def no_compiler() -> str:
    """Why `torch.compile` finds no C++ compiler here, in a line; "" where it finds one.

    torch is asked: it takes g++ on Linux, clang++ on macOS, cl on Windows, and tries them.
    """
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        get_cpp_compiler()
    except Exception as error:  # also where it has moved to in another torch
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return ""
