"""What textbooks do about one ruler for unequal channels: weights are rescaled, not trained."""

import torch
from torch import Tensor, nn

from cvlab import export


class Capped(nn.Module):
    """ReLU6 with an upper end of its own for each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("cap", torch.full((1, channels, 1, 1), 6.0))

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] cut to 0 ... cap."""
        return torch.minimum(x.relu(), self.cap)


def equalised(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy whose neighbouring convolutions have equal ranges, channel by channel.

    What one convolution makes is divided by s, and the next one, which reads it, multiplied. An
    activation ReLU6 between them lets that pass if its upper end, 6, is divided too. Source: Nagel
    et al., "Data-free quantization through weight equalization and bias correction", 2019.

    Args:
        model: in eval mode; where ReLU6 stands between two convolutions, nothing else reads it.
        images: normalised float32 [N, 3, H, W], to fold batch normalisation with.
    """
    net = export.fold(model, images)
    order = export.called(net, images, (nn.Conv2d, nn.ReLU6, nn.Linear))
    kinds = (nn.Conv2d, nn.ReLU6, nn.Conv2d)
    triples = []
    for three in zip(order, order[1:], order[2:], strict=False):
        if all(isinstance(layer, kind) for (_, layer), kind in zip(three, kinds, strict=True)):
            (_, first), (name, _), (_, second) = three
            net.set_submodule(name, capped := Capped(first.out_channels))
            triples.append((first, capped, second))
    for triple in 5 * triples:  # a convolution in the middle is changed by both neighbours
        _equalise(*triple)
    return net


@torch.no_grad()
def _equalise(first: nn.Conv2d, capped: Capped, second: nn.Conv2d) -> None:
    """Give each channel between two convolutions the same range on both sides."""
    depthwise = second.groups > 1
    read = second.weight if depthwise else second.weight.transpose(0, 1)
    made, taken = (weight.abs().flatten(1).amax(1) for weight in (first.weight, read))
    s = (made / taken).sqrt().where((made > 0) & (taken > 0), torch.ones(()))
    first.weight /= s.view(-1, 1, 1, 1)
    first.bias /= s
    capped.cap /= s.view(1, -1, 1, 1)
    second.weight *= s.view(-1, 1, 1, 1) if depthwise else s.view(1, -1, 1, 1)
