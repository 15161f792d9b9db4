"""What a network costs: on paper, in memory, in time; and which recipe its accuracy belongs to."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd
import torch
from torch import nn

from cvlab import bench
from cvlab.lessons import environment
from cvlab.lessons.pretrained.zoo import build, card, models


def recipes(names: Sequence[str]) -> pd.DataFrame:
    """ImageNet accuracy as published, with the training recipe behind it, by title.

    Returns:
        `recipe` of the weights used here, with their `top1`; `first`, the accuracy by the recipe
        that torchvision published first, NaN elsewhere; `source` of the numbers.
    """
    rows = {}
    for about in map(card, names):
        row = {"recipe": "its makers'", "top1": about.top1, "first": math.nan}
        if about.library == "torchvision":
            weights = models.get_model_weights(about.name)
            top1 = weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100
            row |= {"recipe": weights.DEFAULT.name, "first": top1}
        rows[about.title] = row | {"source": about.source}
    return pd.DataFrame.from_dict(rows, orient="index")


def on_paper(names: Sequence[str]) -> pd.DataFrame:
    """What networks cost on paper, by title; nothing is computed and no memory taken.

    Returns:
        `layers` with weights (convolutions and linear ones); `parameters`; `MACs`, the
        multiply-accumulate operations for one image; `input`, pixels a side; `MB`, megabytes of
        a file of its fp32 weights; `top1`, ImageNet accuracy as published.
    """
    from torch.utils.flop_counter import FlopCounterMode

    rows = {}
    for about in map(card, names):
        with torch.device("meta"):  # shapes without numbers
            net = build(about.name)
            image = torch.zeros(1, 3, about.size, about.size)
        with FlopCounterMode(display=False) as counter:
            net(image)
        layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
        rows[about.title] = {
            "layers": len(layers),
            "parameters": sum(p.numel() for p in net.parameters()),
            "MACs": counter.get_total_flops() // 2,
            "input": about.size,
            "MB": sum(t.nbytes for t in net.state_dict().values()) / 1e6,
            "top1": about.top1,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def forward_call(
    net: nn.Module, size: int, batch: int, device: str | torch.device = "cpu"
) -> Callable[[], None]:
    """A call that runs `net` in fp32 on `batch` images of noise, `size` pixels a side."""
    net = net.to(device)
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)

    def call() -> None:
        with torch.inference_mode():
            net(images)

    return call


def build_and_call(name: str, batch: int, device: str) -> Callable[[], None]:
    """`forward_call` of a network with random weights: cost does not depend on what was learned."""
    return forward_call(build(name), card(name).size, batch, device)


def memory(names: Sequence[str], device: torch.device) -> pd.Series:
    """Peak memory of one image, MB by title, each in a fresh process: `environment.peak_memory`."""
    tasks = {card(name).title: partial(build_and_call, name, 1, str(device)) for name in names}
    return environment.peak_memory(tasks)


def throughput(
    names: Sequence[str], batches: Sequence[int], device: torch.device, rounds: int = 6
) -> pd.DataFrame:
    """Images a second by batch size; the sizes of a network take turns, the first is the reference.

    Returns:
        a row a network and size: `network` (title), `batch`, `images/s`, and `times`, by which an
        image is quicker than at the first size, with its 95 % interval `low` to `high`.
    """
    tables = []
    for name in names:
        net, size = build(name), card(name).size
        calls = {batch: forward_call(net, size, batch, device) for batch in batches}
        timed = bench.compare(calls, rounds=rounds, warmup=1)
        table = timed[["ratio", "low", "high"]].mul([b / batches[0] for b in batches], axis=0)
        table.insert(0, "images/s", [1e3 * b / ms for b, ms in timed["ms"].items()])
        table.insert(0, "network", card(name).title)
        tables.append(table.rename(columns={"ratio": "times"}).rename_axis("batch").reset_index())
    return pd.concat(tables, ignore_index=True)
