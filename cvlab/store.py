"""Trained networks on disk: the weights with everything that is needed to use them again.

A file of weights alone is not a model: one must also know the architecture, the order of the
classes and how inputs were normalised.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from cvlab.data import ImageData
from cvlab.models import MODELS
from cvlab.paths import replace_atomically
from cvlab.train import usable


@dataclass(frozen=True)
class Stored:
    """A network in eval mode with what it was trained for."""

    model: nn.Module
    classes: list[str]
    mean: list[float]  # of the inputs, per channel, in 0..1
    std: list[float]
    size: int | None  # pixels a side that images are resized to; None: as they are
    interpolation: str

    def view(self, data: ImageData) -> ImageData:
        """`data` with batches as this network was trained on: their size and normalisation."""
        resized = replace(data, size=self.size, interpolation=self.interpolation)
        return replace(resized, mean=tuple(self.mean), std=tuple(self.std))


def save(model: nn.Module, path: Path, data: ImageData) -> Path:
    """Write a network of `cvlab.models` or of 03's zoo with what it must know of `data`.

    The file is complete or absent; a full disk leaves an older one as it was.

    Raises:
        ValueError: it is neither.
        OSError: it cannot be written; the message names the file and the reason.
    """
    kind = "zoo" if "name" in model.arguments else type(model).__name__
    if kind != "zoo" and kind not in MODELS:
        raise ValueError(
            f"A {kind} was given; `load` can build {list(MODELS)} and the zoo's networks."
        )
    content = {
        "model": kind,
        "arguments": model.arguments,
        "weights": {name: tensor.cpu() for name, tensor in model.state_dict().items()},
        "classes": data.classes,
        "mean": list(data.mean),
        "std": list(data.std),
        "size": data.size,
        "interpolation": data.interpolation,
    }
    try:
        return replace_atomically(lambda temporary: torch.save(content, temporary), path)
    except (OSError, RuntimeError) as error:  # torch's zip writer makes a RuntimeError of either
        raise OSError(
            f"The model cannot be written to {path}: {error}. It is still in memory: free some "
            "space or choose another place, and save again."
        ) from error


def load(path: Path) -> Stored:
    """Read a network that `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        cvlab.train.CheckpointError: the file is damaged, or not one of ours.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no model file {path}. Train and save the model first.")
    cure = "It is damaged or not written by cvlab.store.save; train and save the model again."
    with usable(path, cure):
        content = torch.load(path, map_location="cpu", weights_only=True)
        kind, arguments, weights = map(content.pop, ("model", "arguments", "weights"))
        if kind == "zoo":
            from cvlab.lessons.pretrained import (
                zoo,  # torchvision and timm take two seconds to import
            )

            model = zoo.build(**arguments)
        else:
            model = MODELS[kind](**arguments)
        model.load_state_dict(weights)
        return Stored(model.eval(), **content)
