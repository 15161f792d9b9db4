"""Every point of a small space, trained ahead: a search over it is a look-up and takes no time.

The space is a smaller relative of 04's better space, `GRID`; each of its points is trained with two
seeds, and some with a third, to check the table. A journal, one line a training, is written while
the points are trained; interrupted, the same command goes on where it was. `pack` makes one file
of it, `data/results/04_table.npz`, which `Table.read` reads. Made by `python -m cvlab table`.

What an epoch costs is the CPU time of its process, on one thread: wall time would hold whatever
else the machine did meanwhile. Tabulated benchmarks of this kind: Klein and Hutter, "Tabular
benchmarks for joint architecture and hyperparameter optimization", 2019.
"""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cvlab import data as cvdata
from cvlab.data import ImageData
from cvlab.lessons.search.networks import TunableCNN
from cvlab.machine import hardware, versions
from cvlab.models import summary
from cvlab.paths import project_root, replace_atomically
from cvlab.show import progress
from cvlab.train import Training, TrainingDiverged, fit

GRID = {  # parameter -> values; the last one changes first from point to point
    "width": (4, 8),
    "depth": (1, 2),
    "pooling": ("stride", "max", "avg"),
    "norm": ("batch", "none"),
    "optimizer": ("Nesterov", "AdamW"),
    "lr": (0.001, 0.004, 0.016, 0.064, 0.256),
    "schedule": ("constant", "one-cycle"),
    "augment": (False, True),
}
NETWORK = ("width", "depth", "pooling", "norm")  # the others say how it is trained
POINTS = [dict(zip(GRID, values, strict=True)) for values in product(*GRID.values())]
BUDGET = {  # of a point; an epoch is one of the parts of a single pass over the images
    "images": 5000,
    "epochs": 4,
    "parts": 4,
    "batch_size": 64,
    "weight_decay": 5e-4,
    "val_images": 2000,
}
SEEDS = (0, 1)
CHECKED, CHECK_SEED = 20, 2  # so many points, drawn at random, are trained with a third seed
ORDER_SEED = 25  # of the order in which points are trained, and of those that are checked


class TableError(RuntimeError):
    """A table or its journal cannot be used; the message says why and what to do."""


def default_file() -> Path:
    """Where the table of this project lies."""
    return project_root() / "data" / "results" / "04_table.npz"


def check_points() -> list[int]:
    """The points that are trained with a third seed: drawn without a look at any score."""
    random = np.random.default_rng(ORDER_SEED)
    return sorted(random.choice(len(POINTS), CHECKED, replace=False).tolist())


def plan() -> list[tuple[int, int]]:
    """All (point, seed) that the table needs, in an order that any part of is a random part of."""
    order = np.random.default_rng(ORDER_SEED + 1).permutation(len(POINTS))
    checks = [(point, CHECK_SEED) for point in check_points()]
    return [(int(point), seed) for point in order for seed in SEEDS] + checks


def train_point(point: int, seed: int, data: ImageData) -> dict[str, Any]:
    """Train a point of the grid once; `data` holds the images of `BUDGET` and no more.

    A training that diverges is at chance from then on, and costs nothing more.

    Returns:
        `point`, `seed`; for each epoch `right`, right answers of the validation images, and
        `cpu`, seconds of this process; `diverged`.
    """
    values = POINTS[point]
    torch.manual_seed(seed)
    model = TunableCNN(len(data.classes), *(values[name] for name in NETWORK))
    training = Training(
        optimizer=values["optimizer"],
        lr=values["lr"],
        weight_decay=BUDGET["weight_decay"],
        schedule=values["schedule"],
        epochs=BUDGET["epochs"],
        batch_size=BUDGET["batch_size"],
        augment=values["augment"],
        parts=BUDGET["parts"],
        precision="fp32",
        seed=seed,
    )
    marks, right = [time.process_time()], []

    def watch(history, optimizer) -> None:
        marks.append(time.process_time())
        right.append(round(history.epoch_rows[-1]["val_accuracy"] * len(data.val)))

    diverged = False
    try:
        fit(model, data, training, watch=watch, what=None)
    except TrainingDiverged:
        marks.append(time.process_time())
        diverged = True
    missing = BUDGET["epochs"] - len(right)
    cpu = [*np.diff(marks).round(4).tolist(), *[0.0] * BUDGET["epochs"]][: BUDGET["epochs"]]
    right += [len(data.val) // len(data.classes)] * missing
    return {"point": point, "seed": seed, "right": right, "cpu": cpu, "diverged": diverged}


def settings(data: ImageData) -> dict[str, Any]:
    """All that a line of the journal depends on: lines of other settings are not mixed."""
    name = data.name if data.real else f"stand-in for {data.name}"
    grid = {name: list(values) for name, values in GRID.items()}
    return {"grid": grid, "budget": BUDGET, "data": f"{name} {data.fingerprint}"}


def generate(journal: Path, where: str = "auto", workers: int = 2, limit: int | None = None) -> int:
    """Train what the journal lacks, at most `limit` trainings; returns how many are lacking still.

    Args:
        journal: a JSON document a line; the first holds the settings and the machine.
        where: of the data, see `cvlab.data.load`.
        workers: processes, each of which trains on one thread.

    Raises:
        TableError: the journal was begun with other settings.
    """
    begin(journal, settings(cvdata.load("cifar10", where)))
    known = {(row["point"], row["seed"]) for row in rows(journal)}
    missing = [pair for pair in plan() if pair not in known]
    now = missing[:limit]
    with (
        progress(len(now), "table", "training") as bar,
        journal.open("a", encoding="utf-8") as file,
        ProcessPoolExecutor(workers, get_context("spawn"), _open, (where,)) as pool,
    ):
        for row in pool.map(_work, now):
            file.write(json.dumps(row) + "\n")
            file.flush()
            bar.update()
    return len(missing) - len(now)


def begin(journal: Path, wanted: dict[str, Any]) -> None:
    """Start a journal, or look whether it was started with the same settings.

    A half line at its end, as a killed process leaves it, is cut off.

    Raises:
        TableError: it was started with others.
    """
    if not journal.exists():
        about = {"settings": wanted, "machine": hardware().name, "versions": versions()}
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.write_text(json.dumps(about) + "\n", encoding="utf-8")
        return
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(journal, whole)
    if head(journal)["settings"] != json.loads(json.dumps(wanted)):
        raise TableError(
            f"{journal} was begun with another grid, budget or data; name another journal, or "
            "remove this one."
        )


def head(journal: Path) -> dict[str, Any]:
    """The journal's first line: `settings`, `machine`, `versions`."""
    with journal.open(encoding="utf-8") as file:
        return json.loads(file.readline())


def rows(journal: Path) -> Iterator[dict[str, Any]]:
    """The trainings that a journal holds, see `train_point`."""
    with journal.open(encoding="utf-8") as file:
        next(file)
        for line in file:
            yield json.loads(line)


_mine: ImageData  # a worker's images: loaded once, when it starts


def _open(where: str) -> None:
    """Load a worker's images, and warm it up: the first training of a process costs more."""
    global _mine
    torch.set_num_threads(1)
    loaded = cvdata.load("cifar10", where)
    _mine = loaded.take(n_train=BUDGET["images"], n_val=BUDGET["val_images"])
    train_point(0, SEEDS[0], _mine)


def _work(pair: tuple[int, int]) -> dict[str, Any]:
    return train_point(*pair, _mine)
