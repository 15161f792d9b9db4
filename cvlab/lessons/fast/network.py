"""The network of the record: three stages of two convolutions behind a layer that is not learnt."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEM = 24  # channels that `whitening` makes: 3 x 2 x 2 directions, each with both signs


def whitening(images: Tensor) -> Tensor:
    """Filters of 2 x 2 whose answers to `images` are uncorrelated and of equal size.

    The covariance of all patches of 2 x 2 pixels has 12 eigenvectors. Each is a filter, divided by
    the root of its eigenvalue, and each comes with both signs, for the activation behind it lets
    only one through. Source: Page, "How to train your ResNet 8", 2019; Jordan, "94 % on CIFAR-10
    in 3.29 seconds on a single GPU", 2024.

    Args:
        images: normalised float32 [N, 3, H, W].

    Returns:
        float32 [24, 3, 2, 2].
    """
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    filters = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2)
    return torch.cat([filters, -filters])


class Conv(nn.Conv2d):
    """3 x 3 convolution without bias that begins by passing its inputs through.

    Its weight is a matrix, [outputs, 9 * inputs], for `torch.optim.Muon` takes nothing else.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        with torch.no_grad():
            nn.init.dirac_(self.weight[:inputs])
        self.weight = nn.Parameter(self.weight.flatten(1))

    def forward(self, features: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H, W]."""
        weight = self.weight.view(self.out_channels, self.in_channels, 3, 3)
        return F.conv2d(features, weight, padding=1)


class Norm(nn.BatchNorm2d):
    """Batch normalisation without scales, that soon forgets: a few hundred steps are all it has."""

    def __init__(self, channels: int):
        super().__init__(channels, momentum=0.4)
        self.weight.requires_grad_(False)


class FastNet(nn.Module):
    """Six convolutions of 3 x 3 in three stages, behind a layer that is computed, not learnt.

    Each stage pools after its first convolution, so only one works on 31 x 31 pixels. The logits
    are divided by the number of features: they begin small, and large weights make them.
    Source: Jordan, "94 % on CIFAR-10 in 3.29 seconds on a single GPU", 2024 (airbench).

    Args:
        classes: logits of an image.
        widths: channels of each stage; each halves the image.
        stem: filters of `whitening`; None learns them, from random ones.
    """

    def __init__(self, classes: int, widths: Sequence[int], stem: Tensor | None = None):
        super().__init__()
        self.stem = nn.Conv2d(3, STEM, 2)
        if stem is not None:
            self.stem.weight.requires_grad_(False).copy_(stem)
        layers, inputs = [nn.GELU()], STEM
        for outputs in widths:
            layers += [Conv(inputs, outputs), nn.MaxPool2d(2), Norm(outputs), nn.GELU()]
            layers += [Conv(outputs, outputs), Norm(outputs), nn.GELU()]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes, bias=False)
        with torch.no_grad():
            self.classifier.weight.div_(self.classifier.weight.std())

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] to logits [N, classes]."""
        features = self.features(self.stem(images)).amax((2, 3))
        return self.classifier(features) / features.shape[1]
