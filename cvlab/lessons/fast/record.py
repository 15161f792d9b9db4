"""The run for the record: seeds, a log that goes on where it stopped, and who believes it."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import optim
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cvlab.data import ImageData, Split
from cvlab.lessons.fast.loop import (
    STEM_LEARNS,
    Recipe,
    judge,
    keep_memory,
    optimizers,
    step,
    train,
    tutorial_loader,
)
from cvlab.lessons.fast.network import STEM, FastNet
from cvlab.machine import hardware, versions
from cvlab.metrics import score
from cvlab.models import LeNet
from cvlab.paths import carried

TARGETS = ((0.92, 300), (0.93, 300), (0.94, 600))  # a mean accuracy, and seconds for each run
RECIPE = Recipe(passes=5.25)
PUBLISHED = "data/results/09_fast_full.json"


class LogError(ValueError):
    """A log holds what cannot be compared; the message names the line and what is wrong."""


def everything(data: ImageData) -> ImageData:
    """`data` with its validation images among those to train on: nothing is to be chosen now."""
    images, labels = (
        torch.cat([getattr(part, kind) for part in (data.train, data.val)])
        for kind in ("images", "labels")
    )
    return replace(data, train=Split(images, labels))


def once(
    data: ImageData, recipe: Recipe, seed: int, device: torch.device, what: str | None = None
) -> dict:
    """Train once on `data.train`, then read the test images: a line of a log.

    `correct` of `n` test images; `seconds` of the training and of the answers to all of them.
    """
    trained = train(data, recipe, seed, device, what)
    start = time.perf_counter()
    right = score(judge(trained, data, data.test, device), data.test.labels)
    seconds = trained.seconds + time.perf_counter() - start
    result = {"seed": seed, "correct": right.correct, "seconds": seconds}
    return result | {"images": trained.images} | _facts(data, recipe, device)


def _facts(data: ImageData, recipe: Recipe, device: torch.device) -> dict:
    """What all runs of a log have in common."""
    return {
        "recipe": json.loads(json.dumps(asdict(recipe))),  # tuples are lists there
        "data": str(data),
        "real": data.real,
        "n": len(data.test),
        "machine": hardware().on(device),
        "versions": versions(("torch",)),
    }


def keep_log(
    log: Path, data: ImageData, recipe: Recipe, seeds: Sequence[int], device: torch.device
) -> list[dict]:
    """Add a line to `log` for each of `seeds` that it has not; returns all lines.

    Raises:
        LogError: the log is of another recipe, machine or data; nothing is trained then.
    """
    lines = read(log) if log.exists() else []
    alike([*lines, {"seed": None} | _facts(data, recipe, device)], log)
    log.parent.mkdir(parents=True, exist_ok=True)
    keep_memory()
    for seed in [seed for seed in seeds if seed not in {one["seed"] for one in lines}]:
        lines.append(once(data, recipe, seed, device, f"seed {seed}"))
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(lines[-1]) + "\n")
    return lines


def published() -> list[dict]:
    """The lines of the log that came with the workbook."""
    return json.loads(carried(PUBLISHED).read_text(encoding="utf-8"))["log"]


def stored(lines: Sequence[dict]) -> dict:
    """What is published of a log: its lines, and its numbers as a notebook records them."""
    found, first = summary(lines), lines[0]
    about = {"device": first["machine"], "source": first["data"], "profile": "full"}
    interval = {"low": found["low"], "high": found["high"], "n": first["n"]}
    records = [
        {"name": "test_accuracy", "value": found["accuracy"], "unit": "fraction"}
        | {"tags": interval | {"seeds": found["seeds"]}}
        | about,
        {"name": "training_seconds", "value": found["seconds"], "unit": "s"}
        | {"tags": {"longest": found["longest"]}}
        | about,
    ]
    return {"notebook": "09_fast", "parameters": {}, "records": records, "log": [*lines]}


def read(log: Path) -> list[dict]:
    """The lines of a log.

    Raises:
        LogError: a line is damaged, or two lines are not of one recipe, machine and data.
    """
    lines = []
    for number, text in enumerate(log.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            if not 0 <= line["correct"] <= line["n"] or line["seconds"] <= 0:
                raise ValueError("it counts more right answers than images, or no time")
        except (ValueError, KeyError, TypeError) as error:
            raise LogError(f"{log}, line {number} is no line of a run: {error}.") from error
        lines.append(line)
    alike(lines, log)
    return lines


def alike(lines: Sequence[dict], log: Path) -> None:
    """Check that all lines are of one recipe, machine and data, and of different seeds.

    Raises:
        LogError: they are not.
    """
    for fact in ("recipe", "machine", "versions", "data", "real", "n"):
        if len({json.dumps(line[fact]) for line in lines}) > 1:
            raise LogError(
                f"{log} holds runs that differ in {fact}; runs of one kind belong in one log."
            )
    if len({line["seed"] for line in lines}) < len(lines):
        raise LogError(f"{log} holds a seed twice; a run that is repeated is not another one.")


def summary(lines: Sequence[dict]) -> dict[str, float]:
    """Mean accuracy over seeds with its 95 % interval, by Student's t, and the seconds.

    The interval is that of the recipe's mean on these test images: seeds are the sample.
    """
    from scipy import stats

    accuracies = np.array([line["correct"] / line["n"] for line in lines])
    seconds = [line["seconds"] for line in lines]
    mean, half = accuracies.mean(), np.nan
    if len(lines) > 1:
        half = stats.t.ppf(0.975, len(lines) - 1) * stats.sem(accuracies)
    return {
        "seeds": len(lines),
        "accuracy": mean,
        "low": mean - half,
        "high": mean + half,
        "worst": accuracies.min(),
        "seconds": float(np.median(seconds)),
        "longest": max(seconds),
    }


def verdict(lines: Sequence[dict], target: float, limit: float) -> str:
    """Does a log show a mean accuracy of `target`, in 0..1, each run within `limit` seconds?

    Shown is what the whole interval of the mean says, of ten seeds or more, on the real images.
    """
    found = summary(lines)
    faults = []
    if not lines[0]["real"]:
        faults.append("the data is the stand-in")
    if found["seeds"] < 10:
        faults.append(f"{found['seeds']} seeds, fewer than 10")
    if not found["low"] >= target:
        faults.append(f"the interval of the mean begins at {found['low']:.2%}")
    if found["longest"] > limit:
        faults.append(f"one run took {found['longest']:.0f} s")
    claimed = f"{target:.0%} within {limit:.0f} s"
    return f"{claimed}: not shown, {'; '.join(faults)}" if faults else f"{claimed}: shown"


def in_words(lines: Sequence[dict]) -> str:
    """Machine, mean and times of a log, and what it shows of `TARGETS`."""
    found = summary(lines)
    told = [
        f"{found['seeds']} seeds, {lines[0]['versions']}, on",
        lines[0]["machine"],
        f"mean {found['accuracy']:.2%} (95 % interval {found['low']:.2%} to {found['high']:.2%}), "
        f"worst {found['worst']:.2%}; {found['seconds']:.0f} s, the longest {found['longest']:.0f}",
    ]
    return "\n".join([*told, *(verdict(lines, *target) for target in TARGETS)])


def operations(recipe: Recipe, images: int) -> float:
    """Floating-point operations of the whole training, Muon's included, as torch counts them.

    On tensors without numbers, so nothing is computed: a step of each size, and of each with the
    stem at rest. Products and convolutions count, what is done to each number by itself does not.

    Args:
        images: of the training set; each is met in every pass.
    """
    plain, a_step = replace(recipe, precision="fp32"), 0.0
    for size in recipe.sizes:
        for learns, share in ((True, STEM_LEARNS), (False, 1 - STEM_LEARNS)):
            with torch.device("meta"):
                net = FastNet(10, recipe.widths, torch.empty(STEM, 3, 2, 2))
                pictures = torch.empty(recipe.batch_size, 3, size, size)
                labels = torch.empty(recipe.batch_size, dtype=torch.int64)
            net.stem.bias.requires_grad_(learns)
            with FlopCounterMode(display=False) as counter:
                step(net, pictures, labels, optimizers(net, plain), plain, 1.0)
            a_step += share / len(recipe.sizes) * counter.get_total_flops()
    return recipe.passes * images / recipe.batch_size * a_step


def tutorial_pass(data: ImageData, steps: int = 1_000) -> float:
    """Seconds of a pass of PyTorch's tutorial over `data.train` on this machine's CPU.

    Its network, which is a LeNet, its batches of 4 and its SGD; timed over so many steps after
    the first hundred.
    """
    net, loader = LeNet(len(data.classes)), tutorial_loader(data, 4)
    optimizer = optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    for done, (images, labels) in enumerate(islice(loader, steps + 100)):
        if done == 100:
            start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return (time.perf_counter() - start) / (done - 99) * len(loader)


def table(lines: Sequence[dict]) -> pd.DataFrame:
    """A row a seed: `accuracy`, `seconds`."""
    rows = {
        line["seed"]: {"accuracy": line["correct"] / line["n"], "seconds": line["seconds"]}
        for line in lines
    }
    return pd.DataFrame(rows).T.rename_axis("seed")
