"""From the tutorial's loop to the record's, one change at a time, each measured alike."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import torch

from cvlab.data import ImageData
from cvlab.lessons.fast.loop import Recipe, judge, train
from cvlab.metrics import paired_drop, score

TUTORIAL = Recipe(
    batch_size=100,
    whole_batches=False,
    channels_last=False,
    precision="fp32",
    widths=(30, 60, 120),
    falling=False,
    label_smoothing=0.0,
    augment=False,
    whitened=False,
    muon=False,
    four_views=False,
)

CHANGES = {  # in the order made: name -> what changes
    "whole batches at once": {"whole_batches": True},
    "channels last": {"channels_last": True},
    "bf16, where it pays": {"precision": "auto"},
    "widths that are multiples of 16": {"widths": (32, 64, 128)},
    "a rate that falls to 0": {"falling": True},
    "labels smoothed": {"label_smoothing": 0.2},
    "crops and flips": {"augment": True},
    "a whitening first layer": {"whitened": True},
    "Muon": {"muon": True},
    "small images first": {"sizes": (24, 28, 32)},
    "the mean of the last weights": {"averaged": True},
    "answers for four views": {"four_views": True},
    "compiled": {"compiled": True},
}
FIRST = "the tutorial's loop"


def ladder(names: list[str]) -> dict[str, Recipe]:
    """The tutorial's recipe, then for each of `names` the one before with that change."""
    recipes = {FIRST: TUTORIAL}
    for name in names:
        recipes[name] = replace([*recipes.values()][-1], **CHANGES[name])
    return recipes


def measured(
    recipes: Mapping[str, Recipe],
    data: ImageData,
    passes: float,
    seconds: float,
    seed: int,
    device: torch.device,
) -> pd.DataFrame:
    """Train by each recipe twice: for equally many passes, and for equally many seconds.

    How many passes fit into `seconds`, the first training tells. All are judged on the same
    validation images, so a change is compared with the recipe before it, paired.

    Args:
        recipes: each the one before and a change, see `ladder`.
        data: trained on and judged by.
        passes: over the training images, of the first training.
        seconds: of the second.
        seed: of weights and batches, the same for all.
        device: to compute on.

    Returns:
        a row a recipe: `rate` in images a second, of the faster of both trainings; `after_passes`
        and `after_seconds`, accuracies with the ends `_low`, `_high` of their intervals; `gain` in
        points after equal seconds over the row before, `gain_low`, `gain_high`, paired; `passes`
        and `seconds` of the second one.
    """
    rows, before, labels = {}, None, data.val.labels
    for name, recipe in recipes.items():
        row = {}
        first = train(data, replace(recipe, passes=passes), seed, device, name)
        row |= _accuracy("after_passes", judge(first, data, data.val, device), labels)
        fitting = seconds * first.rate / len(data.train)
        second = train(data, replace(recipe, passes=fitting), seed, device, name)
        logits = judge(second, data, data.val, device)
        row |= _accuracy("after_seconds", logits, labels)
        if before is not None:
            gain, high, low = (-100 * lost for lost in paired_drop(before, logits, labels))
            row |= {"gain": gain, "gain_low": low, "gain_high": high}
        rate = max(first.rate, second.rate)  # what else the machine does can only slow it
        rows[name] = row | {"rate": rate, "passes": fitting, "seconds": second.seconds}
        before = logits
    return pd.DataFrame(rows).T.rename_axis("change")


def _accuracy(name: str, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    found = score(logits, labels)
    low, high = found.interval
    return {name: found.accuracy, f"{name}_low": low, f"{name}_high": high}
