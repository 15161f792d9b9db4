"""The networks of the workbook, small enough to read. Inputs are [N, 3, 32, 32], outputs logits.

No layer needs a fixed batch, and each model trains on a 2-core CPU in minutes. `arguments` is
what a model was made with: `cvlab.store` makes it again from that.
"""

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Classifier(nn.Module):
    """Convolutions, `features`, and the `classifier` that makes logits of them."""

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, 32, 32] to logits [N, classes]."""
        return self.classifier(self.features(images))


class LeNet(Classifier):
    """LeNet-5 with ReLU and max pooling on colour images: 62,006 parameters for 10 classes.

    The network of most first optimizer experiments: no normalisation, so the learning rate
    matters. Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998.
    """

    def __init__(self, classes: int = 10):
        super().__init__()
        self.arguments = {"classes": classes}
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, classes),
        )


class BlurPool(nn.Module):
    """Halve the image: smooth with 1-2-1 in both directions, then keep every second pixel.

    Smoothing first removes the detail that half the pixels cannot show and would show falsely.
    Source: Zhang, "Making convolutional networks shift-invariant again", 2019.
    """

    edge = "reflect"  # or "circular": beyond the left edge is the right one

    def forward(self, features: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C, H/2, W/2]."""
        padded = F.pad(features, (1, 0, 1, 0), mode=self.edge)
        return F.avg_pool2d(F.avg_pool2d(padded, 2, stride=1), 2)  # 1-1 after 1-1 is 1-2-1


POOLINGS = {  # how a 2 x 2 window becomes one pixel: channels -> layer
    "stride": lambda channels: nn.Identity(),  # the convolution before it steps by 2
    "max": lambda channels: nn.MaxPool2d(2),
    "avg": lambda channels: nn.AvgPool2d(2),
    "blur": lambda channels: BlurPool(),
}
NORMS = {  # channels -> layer
    "batch": nn.BatchNorm2d,
    "none": lambda channels: nn.Identity(),
}


def conv_block(
    inputs: int, outputs: int, stride: int = 1, pooling: str | None = None, norm: str = "batch"
) -> nn.Sequential:
    """3 x 3 convolution, pooling if asked for, normalisation, ReLU.

    Pooled before it is normalised: a quarter of the values is left to normalise.
    """
    stride = 2 if pooling == "stride" else stride
    layers = [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=norm == "none")]
    if pooling:
        layers.append(POOLINGS[pooling](outputs))
    return nn.Sequential(*layers, NORMS[norm](outputs), nn.ReLU(inplace=True))


class ChannelMax(nn.AdaptiveMaxPool2d):
    """The largest value of each channel.

    While it is exported it says so in other words: torch 2.11, which Colab has, cannot translate
    adaptive max pooling to ONNX; torch 2.13 makes the same operator of both.
    """

    def __init__(self):
        super().__init__(1)

    def forward(self, features: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C, 1, 1]."""
        if torch.compiler.is_exporting():
            return features.amax((2, 3), keepdim=True)
        return super().forward(features)


class SmallCNN(Classifier):
    """Six convolutions, strong for its size: above 87 % on CIFAR-10 after minutes on 2 cores.

    Widths are multiples of 16, the block that CPU convolutions work in: 16 channels in the
    first layer train a third faster than 24 (measured on a 2-core AVX512 machine).
    """

    def __init__(self, classes: int = 10):
        super().__init__()
        self.arguments = {"classes": classes}
        self.features = nn.Sequential(
            conv_block(3, 16),
            conv_block(16, 48, pooling="max"),
            conv_block(48, 48),
            conv_block(48, 96, pooling="max"),
            conv_block(96, 96),
            conv_block(96, 96),
        )
        self.classifier = nn.Sequential(ChannelMax(), nn.Flatten(), nn.Linear(96, classes))


class PoolingNet(Classifier):
    """Six convolutions in three stages; `pooling` halves the image at the end of each.

    A convolution with stride 2 is one with stride 1 of which every second row and column is kept,
    so all four kinds have the same weights: with one seed they start as the same network.
    """

    def __init__(self, classes: int, pooling: str = "max", width: int = 32):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling!r} was given; choose one of {list(POOLINGS)}.")
        self.arguments = {"classes": classes, "pooling": pooling, "width": width}
        stages, inputs, last_stride = [], 3, 2 if pooling == "stride" else 1
        for outputs in (width, 2 * width, 4 * width):
            stages += [conv_block(inputs, outputs), conv_block(outputs, outputs, last_stride)]
            stages.append(POOLINGS[pooling](outputs))
            inputs = outputs
        self.features = nn.Sequential(*stages)
        pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(pool, nn.Flatten(), nn.Linear(inputs, classes))


MODELS: dict[str, type[nn.Module]] = {kind.__name__: kind for kind in (LeNet, SmallCNN, PoolingNet)}


def summary(model: nn.Module, size: tuple[int, ...] = (3, 32, 32)) -> pd.DataFrame:
    """The layers of a model as torchinfo finds them for one image of `size`.

    Returns:
        one row a layer: `layer` (its type), `output` (shape without the batch), `parameters`,
        `MACs` (multiply-accumulate operations for one image); the index is the layer's path.
    """
    from torchinfo import summary as inspect

    found = inspect(model, (1, *size), verbose=0, depth=20, device=next(model.parameters()).device)
    rows, path = {}, []
    for layer in found.summary_list:
        path = [*path[: layer.depth], layer.var_name]
        if layer.is_leaf_layer:
            output = " x ".join(map(str, layer.output_size[1:]))
            rows[".".join(path[1:])] = (layer.class_name, output, layer.num_params, layer.macs)
    columns = ["layer", "output", "parameters", "MACs"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)
