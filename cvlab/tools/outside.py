"""Networks of other kinds than ours, trained here and exported as PyTorch does by default.

On them `make bench` compares our quantiser with others: small networks for 32 x 32 pixels, of
timm's building blocks.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvlab import runtime
from cvlab.data import ImageData
from cvlab.lessons.pretrained.zoo import timm
from cvlab.paths import project_root, replace_atomically
from cvlab.train import Training, fit


class Residual(nn.Module):
    """A block of ResNet-20: two convolutions beside a shortcut without weights (option A)."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.step = out // channels  # 2 where the image is halved and channels are doubled
        self.inside = nn.Sequential(
            nn.Conv2d(channels, out, 3, self.step, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, out, H / step, W / step]."""
        y = self.inside(x)
        short = x[:, :, :: self.step, :: self.step]
        return F.relu(y + F.pad(short, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1])))


def resnet20() -> nn.Module:
    """For CIFAR, 270,000 weights. Source: He et al., "Deep residual learning", 2016."""
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Residual(*pair) for pair in pairwise(widths)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def _unhalved(net: nn.Module) -> nn.Module:
    """A network for large images whose first convolution keeps all of 32 x 32 pixels."""
    net.conv_stem.stride = (1, 1)
    return net


def vision_transformer() -> nn.Module:
    """Four blocks of attention on 8 x 8 patches, made by three convolutions.

    Source: Xiao et al., "Early convolutions help transformers see better", 2021.
    """
    layers, widths = OrderedDict(), (3, 32, 64, 128)
    for i in range(3):
        step = 2 if i else 1
        layers[f"conv{i}"] = nn.Conv2d(widths[i], widths[i + 1], 3, step, 1, bias=False)
        layers |= {f"norm{i}": nn.BatchNorm2d(widths[i + 1]), f"relu{i}": nn.ReLU()}
    embed = partial(timm.layers.HybridEmbed, backbone=nn.Sequential(layers))
    shape = {"img_size": 32, "patch_size": 1, "embed_dim": 128, "depth": 4, "num_heads": 4}
    head = {"class_token": False, "global_pool": "avg", "num_classes": 10}
    return timm.models.VisionTransformer(**shape, **head, embed_layer=embed)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Training]] = {
    "ResNet-20": (resnet20, Training(weight_decay=5e-4, schedule="one-cycle", epochs=10)),
    "MobileNetV3": (
        lambda: _unhalved(timm.create_model("mobilenetv3_small_100", num_classes=10)),
        Training(optimizer="AdamW", lr=4e-3, weight_decay=0.05, schedule="one-cycle", epochs=8),
    ),
    "ConvNeXt": (
        lambda: timm.create_model("convnext_atto", num_classes=10, patch_size=2),
        Training(optimizer="AdamW", lr=2e-3, weight_decay=0.05, schedule="one-cycle", epochs=12),
    ),
    "vision transformer": (
        vision_transformer,
        Training(optimizer="AdamW", lr=1e-3, weight_decay=0.05, schedule="one-cycle", epochs=12),
    ),
    "MobileNetV2 with SiLU": (
        lambda: _unhalved(timm.create_model("mobilenetv2_050", num_classes=10, act_layer=nn.SiLU)),
        Training(optimizer="AdamW", lr=3e-3, weight_decay=0.05, schedule="one-cycle", epochs=8),
    ),
}


def file(name: str, data: ImageData) -> Path:
    """The ONNX file of a network in `NETWORKS`, trained now if it is not in `data/models`.

    It is written by `torch.onnx.export` as its documentation calls it, with one batch size free.
    A training that was stopped goes on where it was.
    """
    stem = name.replace(" ", "-").lower()
    path = project_root() / "data" / "models" / f"outside-{stem}-{data.fingerprint}.onnx"
    if not path.is_file():
        make, training = NETWORKS[name]
        torch.manual_seed(training.seed)
        net = make()
        fit(net, data, training, what=name, checkpoint=path.with_suffix(".checkpoint"))
        replace_atomically(partial(_export, net.eval()), path)
    return path


def _export(net: nn.Module, path: Path) -> None:
    free, images = {0: torch.export.Dim("batch")}, torch.zeros(2, 3, 32, 32)
    with runtime.quiet():
        torch.onnx.export(
            net, (images,), path, dynamic_shapes=(free,), external_data=False, verbose=False
        )
