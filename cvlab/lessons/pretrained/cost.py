"""What a network costs on paper, and the calls that measure the rest."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import nn

from cvlab.zoo import build, card


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
