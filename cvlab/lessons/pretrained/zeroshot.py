"""What an ImageNet network knows of CIFAR-10 without training: 1,000 classes added up to nine.

`imagenet_cifar10.csv` lists the ImageNet classes that belong to each class of CIFAR-10.
ImageNet has no deer; its three antelopes are listed as a proxy, which is never counted unless
asked for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cvlab.data import ImageData, Split
from cvlab.lessons.pretrained.zoo import card
from cvlab.metrics import Score, paired_drop

PROXY = "deer"
RULES = ("sum", "mean", "max")


@cache
def mapping() -> pd.DataFrame:
    """One row an ImageNet class: `class` of CIFAR-10, `index`, WordNet `synset`, `name`."""
    return pd.read_csv(Path(__file__).parent / "imagenet_cifar10.csv")


def groups(classes: Sequence[str]) -> dict[str, Tensor]:
    """The ImageNet indices, int64, of each of these CIFAR-10 classes.

    Raises:
        ValueError: a class has none.
    """
    by_class = mapping().groupby("class")["index"]
    unknown = [name for name in classes if name not in by_class.groups]
    if unknown:
        raise ValueError(f"No ImageNet class is known for {unknown}; only CIFAR-10 is mapped.")
    return {name: torch.tensor(by_class.get_group(name).to_numpy()) for name in classes}


def without_proxy(split: Split, classes: Sequence[str]) -> tuple[Split, list[str]]:
    """The images of all classes but deer, relabelled 0..8, and the names of these classes."""
    kept = [name for name in classes if name != PROXY]
    new = torch.tensor([kept.index(name) if name in kept else -1 for name in classes])
    labels = new[split.labels]
    return Split(split.images[labels >= 0], labels[labels >= 0]), kept


def group_scores(logits: Tensor, members: dict[str, Tensor], rule: str) -> Tensor:
    """Probabilities of 1,000 classes, as logits [N, 1000], put together: float [N, groups].

    `rule` takes the sum, mean or max of each group's probabilities.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} was given; choose one of {RULES}.")
    shares = logits.softmax(1)
    columns = [shares[:, index] for index in members.values()]
    pick = {"sum": lambda c: c.sum(1), "mean": lambda c: c.mean(1), "max": lambda c: c.amax(1)}
    return torch.stack([pick[rule](column) for column in columns], 1)


def hits(logits: Tensor, labels: Tensor, members: dict[str, Tensor]) -> pd.DataFrame:
    """Which images are classified rightly, by five ways to ask: bool, one row an image.

    Columns: `top-1`, `top-5`: one of the 1 or 5 likeliest of all 1,000 classes belongs to the true
    class; `sum`, `mean`, `max`: the true class has the highest score of the groups.
    """
    owner = torch.full((logits.shape[1],), -1)
    for i, index in enumerate(members.values()):
        owner[index] = i
    likeliest = owner[logits.topk(5, dim=1).indices]  # [N, 5]
    right = {
        "top-1": likeliest[:, 0] == labels,
        "top-5": (likeliest == labels[:, None]).any(1),
    }
    for rule in RULES:
        right[rule] = group_scores(logits, members, rule).argmax(1) == labels
    return pd.DataFrame({name: values.numpy() for name, values in right.items()})


def table(right: pd.DataFrame) -> pd.DataFrame:
    """`hits` as accuracies: one row a way to ask; columns `accuracy`, `low`, `high`, `n`."""
    rows = {name: Score(math.nan, int(right[name].sum()), len(right)).row for name in right}
    return pd.DataFrame.from_dict(rows, orient="index")


def samples_of(right: pd.Series, size: int, seed: int = 0) -> np.ndarray:
    """Accuracies in disjoint random samples of `size` images: float [len(right) // size]."""
    order = np.random.default_rng(seed).permutation(len(right))
    count = len(right) // size
    return right.to_numpy()[order[: count * size]].reshape(count, size).mean(1)


def whose(nets: Mapping[str, object], missing: Mapping[str, str]) -> str:
    """Whose weights are here and whose are not; a file that is damaged is told as it was found.

    Args:
        nets: by name, as of `zoo.available`, like `missing`, which says why.
    """
    here, absent = (", ".join(card(name).title for name in them) for them in (nets, missing))
    lines = [f"ImageNet weights are here of {here}"]
    if missing:
        lines.append(f'not of {absent}: DOWNLOAD = "yes" fetches them')
    lines += [why for why in missing.values() if "allow downloads" not in why]
    return "\n".join(lines)


def misnormalised(view: ImageData) -> ImageData:
    """The view with others' normalisation: mean and deviation 0.5, or else ImageNet's."""
    half, imagenet = (0.5,) * 3, card("resnet50")
    if view.mean == half:
        return replace(view, mean=imagenet.mean, std=imagenet.std)
    return replace(view, mean=half, std=half)


def gains(pairs: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> pd.DataFrame:
    """By how many points one way is more accurate than another on the same images, paired.

    Args:
        pairs: what is compared to (logits or scores [N, classes], the other's, labels [N]).

    Returns:
        `points` with their 95 % interval `low` to `high`, `n` images; see `metrics.paired_drop`.
    """
    rows = {what: [*paired_drop(*pair), len(pair[2]) / 100] for what, pair in pairs.items()}
    return 100 * pd.DataFrame.from_dict(
        rows, orient="index", columns=["points", "low", "high", "n"]
    )


def told(row: pd.Series) -> str:
    """A row of `gains` in words."""
    low, high, n = row["low"], row["high"], row["n"]
    return f"{row['points']:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}, n = {n:,.0f})"
