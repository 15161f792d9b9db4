"""Whole channels taken out by Torch-Pruning, so that shapes shrink and with them the work."""

from collections.abc import Sequence
from copy import deepcopy

import pandas as pd
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

from cvlab import models
from cvlab.data import ImageData
from cvlab.metrics import paired_drop
from cvlab.show import each
from cvlab.train import predict

BLOCK = 8  # channels come in multiples of it: what a CPU's kernels work in

CRITERIA = {  # by what a channel is judged
    "at random": torch_pruning.importance.RandomImportance(),
    "sum of weights (L1)": torch_pruning.importance.MagnitudeImportance(p=1),
    "BatchNorm's scale": torch_pruning.importance.BNScaleImportance(),
    "gradient (Taylor)": torch_pruning.importance.TaylorImportance(),
}

Batch = tuple[Tensor, Tensor]  # images float32 [N, 3, H, W], labels int64 [N]


def pruned(
    net: nn.Module, ratio: float, criterion: str, batches: Sequence[Batch], layer: str | None = None
) -> nn.Module:
    """A copy of `net` without a share `ratio` of the channels, the least important by `criterion`.

    Args:
        net: its last linear layer, which makes the logits, keeps its outputs.
        ratio: of each convolution's channels, or of those of `layer` alone.
        criterion: a key of `CRITERIA`.
        batches: training images; "Taylor" takes the gradients of the loss from them.
        layer: name of a convolution.
    """
    copy = deepcopy(net).eval().to(memory_format=torch.contiguous_format)  # the library wants it
    for images, labels in batches:
        F.cross_entropy(copy(images), labels).backward()
    head = [module for module in copy.modules() if isinstance(module, nn.Linear)]
    only = {copy.get_submodule(layer): ratio} if layer else {}
    torch_pruning.pruner.BasePruner(
        copy,
        batches[0][0][:1],
        CRITERIA[criterion],
        pruning_ratio=0.0 if layer else ratio,
        pruning_ratio_dict=only,
        ignored_layers=head,
        round_to=BLOCK,
    ).step()
    copy.zero_grad(set_to_none=True)
    return copy


def sensitivity(
    net: nn.Module, ratio: float, batches: Sequence[Batch], data: ImageData, what: str
) -> pd.DataFrame:
    """What each convolution alone costs that loses a share `ratio` of its channels, by L1.

    Nothing is trained again.

    Returns:
        a row a layer, by its name: `drop_pp` on the validation images with its paired interval
        `drop_low` to `drop_high`; `saved`, the share of all multiplications that went with it.
    """
    val, whole = data.batches("val", 250), costs(net)["MACs"]
    reference, labels = predict(net, val)
    names = [name for name, one in net.named_modules() if isinstance(one, nn.Conv2d)]
    rows = {}
    for name in each(names, what, "layer"):
        made = pruned(net, ratio, "sum of weights (L1)", batches[:1], name)
        drop, low, high = (100 * x for x in paired_drop(reference, predict(made, val)[0], labels))
        saved = 1 - costs(made)["MACs"] / whole
        rows[name] = {"drop_pp": drop, "drop_low": low, "drop_high": high, "saved": saved}
    return pd.DataFrame(rows).T.rename_axis("layer")


def fresh(net: nn.Module, seed: int) -> nn.Module:
    """A copy of the same shapes with new weights: what `net` would be if nobody had pruned it."""
    torch.manual_seed(seed)
    copy = deepcopy(net)
    for module in copy.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return copy


def costs(net: nn.Module) -> pd.Series:
    """`parameters` and `MACs` of one image of 32 pixels, see `cvlab.models.summary`."""
    return models.summary(net)[["parameters", "MACs"]].sum()
