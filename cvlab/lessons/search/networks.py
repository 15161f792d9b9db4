"""The networks that 04 searches; inputs are [N, 3, 32, 32], outputs logits."""

from collections.abc import Sequence

from torch import Tensor, nn

from cvlab.models import NORMS, POOLINGS, ChannelMax, Classifier, conv_block


class FlatCNN(nn.Module):
    """One convolution, then linear layers: the shape of network that two reports searched.

    Conv2d, Flatten, {Linear, ReLU, Dropout} for each of `units`, Linear. No pooling: the first
    linear layer holds nearly all weights, and sees no two places of the image alike.
    """

    CHANNELS = 8

    def __init__(
        self, classes: int, kernel_size: int, units: Sequence[int], dropouts: Sequence[float]
    ):
        super().__init__()
        self.arguments = {"classes": classes, "kernel_size": kernel_size}
        self.arguments |= {"units": list(units), "dropouts": list(dropouts)}
        layers: list[nn.Module] = [nn.Conv2d(3, self.CHANNELS, kernel_size), nn.Flatten()]
        inputs = self.CHANNELS * (33 - kernel_size) ** 2
        for outputs, share in zip(units, dropouts, strict=True):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(share)]
            inputs = outputs
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, classes))

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, 32, 32] to logits [N, classes]."""
        return self.layers(images)


class TunableCNN(Classifier):
    """A stem and three stages that halve the image; what a search may change are its arguments.

    Channels are `width` times 1, 2, 4, 8; a stage has `depth` convolutions, the first of which
    ends in the pooling. Classified by the largest value of each channel.
    """

    def __init__(self, classes: int, width: int, depth: int, pooling: str, norm: str):
        super().__init__()
        if pooling not in POOLINGS or norm not in NORMS:
            raise ValueError(
                f"pooling={pooling!r}, norm={norm!r} were given; choose one of {list(POOLINGS)} "
                f"and one of {list(NORMS)}."
            )
        self.arguments = {"classes": classes, "width": width, "depth": depth}
        self.arguments |= {"pooling": pooling, "norm": norm}
        layers = [conv_block(3, width, norm=norm)]
        for outputs in (2 * width, 4 * width, 8 * width):
            layers.append(conv_block(outputs // 2, outputs, pooling=pooling, norm=norm))
            layers += [conv_block(outputs, outputs, norm=norm) for _ in range(depth - 1)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(ChannelMax(), nn.Flatten(), nn.Linear(8 * width, classes))
