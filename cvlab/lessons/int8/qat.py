"""Quantisation-aware training: the network learns with the rounding that it will live with.

`prepare` puts the rounding in, `cvlab.train.fit` trains, `finish` takes it out again. What is left
is a float network whose activations stay within the ranges that they were rounded in; static
quantisation finds those ranges again.
"""

from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from cvlab import export
from cvlab.lessons.pretrained.zoo import timm

WEIGHTED = (nn.Conv2d, nn.Linear)
CUTTING = (nn.ReLU, nn.ReLU6)  # clipping does their work: they cost nothing in INT8
BENDING = (nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.LeakyReLU, nn.Tanh)

COVERED = 0.999  # of an activation's values lie in its range
SAMPLE = 50_000  # values of a tensor that its range is found from


class Rounded(nn.Module):
    """A layer whose weight, and if asked its output, is rounded to 8 bits; gradients pass inside.

    The weight, [outputs, ...], has 255 levels for each output. The output is cut to a range and has
    256 levels. `mode` is "watch" (find the range), "round", or "cut" (what is exported).
    """

    def __init__(self, layer: nn.Module, output: bool):
        super().__init__()
        self.layer, self.output, self.mode, self.seen = layer, output, "watch", []
        self.cut = ()  # low and high as numbers, once `finish` has fixed them
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """What the layer makes of `x`, as `mode` says."""
        if self.mode == "cut":
            return self._cut(x)
        if self.mode == "watch":
            y = self.layer(x)
            self.seen.append(y.flatten()[:: -(-y.numel() // SAMPLE)])
            return y
        y = functional_call(self.layer, self._weight(), (x,))
        if not self.output:
            return y
        scale = (self.high - self.low) / 255
        zero = (-self.low / scale).round().int()
        return torch.fake_quantize_per_tensor_affine(y, scale, zero, 0, 255)

    def _weight(self) -> dict[str, Tensor]:
        if not isinstance(self.layer, WEIGHTED):
            return {}
        weight = self.layer.weight
        scale = weight.detach().abs().flatten(1).amax(1).clamp_min(1e-12) / 127
        zero = torch.zeros_like(scale, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)
        return {"weight": rounded}

    def _cut(self, x: Tensor) -> Tensor:
        """Without rounding; a ReLU becomes the Clip that keeps the range."""
        x = x if isinstance(self.layer, CUTTING) else self.layer(x)
        return x.clamp(*self.cut) if self.output else x

    def settle(self) -> None:
        """Take the range from what was seen, and round from now on."""
        values, share = torch.cat(self.seen), (1 - COVERED) / 2
        self.low.fill_(min(0.0, values.quantile(share).item()))
        self.high.fill_(max(1e-6, values.quantile(1 - share).item()))
        self.seen, self.mode = [], "round"


def prepare(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """A copy with folded batch normalisation that rounds weights and activations.

    Args:
        model: in eval mode; convolutions, linear layers and activations must be modules.
        batches: normalised float32 [N, 3, H, W] of training images; ranges are taken from them.

    Raises:
        ValueError: folding changed what the network says, so it calls its layers in another order.
    """
    net = export.fold(model, batches[0])
    order = export.called(net, batches[0], (*WEIGHTED, *CUTTING, *BENDING, _BatchNorm))
    for (name, layer), (_, after) in pairwise([*order, ("", None)]):
        cut_next = isinstance(layer, WEIGHTED) and isinstance(after, CUTTING)
        output = not cut_next and after is not None  # logits are left as they are
        net.set_submodule(name, Rounded(layer, output))
    rounded = [module for module in net.modules() if isinstance(module, Rounded)]
    with torch.inference_mode():
        for images in batches:
            net(images)
    for module in rounded:
        module.settle()
    return net


def finish(net: nn.Module) -> nn.Module:
    """A copy without rounding, to be exported: float weights, activations cut to their ranges."""
    plain = deepcopy(net).eval()
    for module in plain.modules():
        if isinstance(module, Rounded):
            module.mode, module.cut = "cut", (module.low.item(), module.high.item())
    return plain


def replace_layers(net: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    """Put `new()` in place of every layer of class `old`."""
    for name, module in list(net.named_modules()):
        if isinstance(module, old):
            net.set_submodule(name, new())


def add_squeeze_excite(net: nn.Module, activation: type[nn.Module]) -> None:
    """Give every block of timm's EfficientNet-Lite, in place, what EfficientNet has and Lite not.

    Behind the depthwise convolution the mean of each channel goes through two small layers,
    `activation` between them, to a factor from 0 to 1 for that channel. The factors begin at 0.9,
    so that what the network knows stays. Source: Hu et al., "Squeeze-and-excitation networks",
    2018.
    """
    for block in (block for stage in net.blocks for block in stage):
        first = next(layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
        block.se = timm.layers.SqueezeExcite(
            block.conv_dw.out_channels, rd_channels=first.in_channels // 4, act_layer=activation
        )
        nn.init.constant_(block.se.fc2.bias, 2.2)  # sigmoid(2.2) is 0.9
