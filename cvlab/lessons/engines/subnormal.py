"""Numbers nearer to 0 than floats are made for: how many a network has, and what they cost."""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pandas as pd
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from cvlab import runtime
from cvlab.bench import compare

SMALLEST = np.finfo(np.float32).tiny  # 1.2e-38, of the normal ones


def census(net: nn.Module, file: Path, images: np.ndarray) -> pd.DataFrame:
    """Subnormal numbers among the float32 weights and running statistics of a network, the weights
    of the ONNX file made of it, and what its layers compute of `images`, float32 [N, 3, H, W].

    Returns:
        columns `numbers` and `subnormal`, counts.
    """
    found, device = [], next(net.parameters()).device
    with torch.inference_mode(), ExitStack() as hooks:
        for layer in (module for module in net.modules() if not [*module.children()]):
            hook = layer.register_forward_hook(lambda *seen: found.append(_count(seen[2:])))
            hooks.callback(hook.remove)
        net.eval()(torch.from_numpy(images).to(device))
    stored = (numpy_helper.to_array(one).copy() for one in onnx.load(file).graph.initializer)
    rows = {"weights, PyTorch": _count(net.parameters())}
    rows["statistics, PyTorch"] = _count(net.buffers())
    rows["weights, ONNX file"] = _count(map(torch.from_numpy, stored))
    rows["activations"] = tuple(np.sum(found, axis=0))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["numbers", "subnormal"])


def _count(tensors: Iterable[Tensor]) -> tuple[int, int]:
    sizes = [t.abs() for t in tensors if t.dtype == torch.float32]
    small = sum(((size > 0) & (size < SMALLEST)).sum().item() for size in sizes)
    return sum(size.numel() for size in sizes), small


def shrink(file: Path, out: Path, factor: float = 1e-39) -> Path:
    """Write a network to `out` whose first weight and all biases are multiplied by `factor`.

    If it is made of convolutions, normalisation, ReLU, pooling and linear layers, all that it
    computes is then `factor` times what it was, its logits too.
    """
    content = onnx.load(file)
    nodes = [n for n in content.graph.node if n.op_type in ("Conv", "Gemm", "BatchNormalization")]
    names = {nodes[0].input[1], *(name for node in nodes for name in node.input[2:4])}
    for tensor in content.graph.initializer:
        if tensor.name in names:  # weights, biases, and means that are subtracted
            value = numpy_helper.to_array(tensor).astype(float) * factor
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    onnx.save(content, out)
    return out


def cost(file: Path, images: np.ndarray, rounds: int = 7) -> pd.DataFrame:
    """Time a network, its shrunken copy, and that with subnormal numbers taken for 0.

    In ONNX Runtime with one thread, the caller's: taking them for 0 is a mode of a thread, which
    `torch.set_flush_denormal` sets.

    Args:
        file: see `shrink`.
        images: float32 [N, 3, H, W].
        rounds: see `cvlab.bench.compare`.

    Returns:
        see `cvlab.bench.summary`; where the CPU has no such mode, the last row equals the second.
    """
    with TemporaryDirectory() as folder:
        small = shrink(file, Path(folder) / "small.onnx")
        normal, tiny = (runtime.session(path, threads=1) for path in (file, small))
    feed = {normal.get_inputs()[0].name: images}

    def flushed() -> None:
        torch.set_flush_denormal(True)
        try:
            tiny.run(None, feed)
        finally:
            torch.set_flush_denormal(False)

    ways = {"as it is": partial(normal.run, None, feed), "subnormal": partial(tiny.run, None, feed)}
    return compare(ways | {"subnormal, taken for 0": flushed}, rounds=rounds, warmup=1)
