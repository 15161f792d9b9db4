"""Weights that become zero, the smallest first: what it costs in accuracy, bytes and time.

The masks are those of `torch.nn.utils.prune`: a masked weight stays zero while the others learn.
"""

import zlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from cvlab import export
from cvlab.data import Batches, ImageData
from cvlab.lessons.engines import calls
from cvlab.metrics import score
from cvlab.show import each
from cvlab.train import Training, fit, predict

WEIGHTED = (nn.Conv2d, nn.Linear)

WAYS = {  # how a network becomes sparse -> may it learn again, and is it pruned little by little?
    "not trained again": (False, False),
    "at once, trained again": (True, False),
    "little by little, trained again": (True, True),
}


def weights(net: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every weight of a convolution or linear layer, as `torch.nn.utils.prune` names them."""
    return [(module, "weight") for module in net.modules() if isinstance(module, WEIGHTED)]


def zeros(net: nn.Module) -> float:
    """The share of these weights that are zero."""
    values = torch.cat([getattr(*one).detach().flatten() for one in weights(net)])
    return (values == 0).double().mean().item()


def mask(net: nn.Module, sparsity: float) -> None:
    """Switch off the smallest weights of all layers together: a share `sparsity` of them.

    Called again with more, it keeps what is off: zeros are the smallest.
    """
    bake(net)
    torch_prune.global_unstructured(weights(net), torch_prune.L1Unstructured, amount=sparsity)


def bake(net: nn.Module) -> None:
    """Make the zeros a part of the weights and drop the masks; optimizers keep their parameters."""
    for module, name in weights(net):
        if torch_prune.is_pruned(module):
            torch_prune.remove(module, name)
    net.to(memory_format=torch.contiguous_format)  # as the library wants them


def stops(sparsity: float, epochs: int, gradual: bool) -> list[float]:
    """The sparsity in each epoch: steep first and flat at the end, reached before the last one.

    Source: Zhu and Gupta, "To prune, or not to prune", 2017, with a cubic curve.
    """
    if not gradual or epochs < 2:
        return [sparsity] * epochs
    shares = 1 - (1 - np.arange(1, epochs) / (epochs - 1)) ** 3
    return [*(sparsity * shares), sparsity]


def pruned(
    net: nn.Module, sparsity: float, way: str, data: ImageData, training: Training
) -> nn.Module:
    """A copy of `net` with this share of zeros, made in one of `WAYS`.

    Whoever learns again does so for `training`, all for the same number of steps.
    """
    again, gradual = WAYS[way]
    copy, plan = deepcopy(net), stops(sparsity, training.epochs, gradual)
    mask(copy, plan[0] if again else sparsity)

    def watch(history, optimizer) -> None:
        if (done := len(history.epoch_rows)) < len(plan):
            mask(copy, plan[done])

    if again:
        fit(copy, data, training, watch=watch, what=None)
    bake(copy)
    return copy.eval()


def curve(
    net: nn.Module,
    sparsities: Sequence[float],
    data: ImageData,
    training: Training,
    val: Batches,
    what: str,
) -> tuple[pd.DataFrame, dict[tuple[str, float], nn.Module], dict[tuple[str, float], Tensor]]:
    """Accuracy on the images of `val` of every way and sparsity, see `pruned`.

    Returns:
        (a row each: `way`, `sparsity`, `zeros` as counted, `accuracy`, its interval `low` to
        `high`, `n`; the networks, and their logits, by way and sparsity).
    """
    plan = [(way, sparsity) for way in WAYS for sparsity in sparsities]
    nets, answers, rows = {}, {}, []
    for way, sparsity in each(plan, what, "network"):
        made = nets[way, sparsity] = pruned(net, sparsity, way, data, training)
        answers[way, sparsity], labels = predict(made, val)
        judged = score(answers[way, sparsity], labels).row
        rows.append({"way": way, "sparsity": sparsity, "zeros": zeros(made)} | judged)
    return pd.DataFrame(rows), nets, answers


def files(nets: Mapping[str, nn.Module], folder: Path) -> dict[str, Path]:
    """An ONNX file of each network, named as it is."""
    return {
        name: export.to_onnx(net, folder / f"{name.replace(' ', '_')}.onnx")
        for name, net in nets.items()
    }


def sizes(models: Mapping[str, Path]) -> pd.DataFrame:
    """`bytes` of each file, and `zipped`: what is left of them when it is packed by zlib."""
    rows = {
        name: (path.stat().st_size, len(zlib.compress(path.read_bytes(), 9)))
        for name, path in models.items()
    }
    return pd.DataFrame(rows, index=["bytes", "zipped"]).T


def race(
    models: Mapping[str, Path], image: np.ndarray, threads: int, rounds: int, what: str
) -> pd.DataFrame:
    """ONNX files in turns on one image, the first is the reference: see `calls.timed`."""
    ways = {name: partial(calls.onnx, path) for name, path in models.items()}
    return calls.timed(ways, image, threads, rounds=rounds, what=what)
