"""Every point of a small space, trained ahead: a search over it is a look-up and takes no time.

The space, `GRID`, is a smaller relative of 04's better space. Each of its points is trained with
two seeds, and some with a third, which checks the table. While they are trained, a journal gets a
line a training; after an interrupt the same command goes on. `pack` makes one file of the journal,
and `Table.read` reads it. All by `python -m cvlab table`.

What an epoch costs is the CPU time of its process, which trains on one thread: wall time would
count whatever else the machine did meanwhile. The idea: Klein and Hutter, "Tabular benchmarks for
joint architecture and hyperparameter optimization", 2019.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
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
from cvlab.paths import carried, project_root, replace_atomically
from cvlab.show import progress
from cvlab.train import Training, TrainingDiverged, fit

GRID = {  # parameter -> values; from point to point the last one changes first
    "width": (4, 8),
    "depth": (1, 2),
    "pooling": ("stride", "max", "avg"),
    "norm": ("batch", "none"),
    "optimizer": ("Nesterov", "AdamW"),
    "lr": (0.001, 0.004, 0.016, 0.064, 0.256),
    "schedule": ("constant", "one-cycle"),
}
SHAPE = tuple(len(values) for values in GRID.values())
NETWORK = ("width", "depth", "pooling", "norm")  # the others say how it is trained
POINTS = [dict(zip(GRID, values, strict=True)) for values in product(*GRID.values())]
BUDGET = {  # of a training; an epoch is one of the parts of one pass over the images
    "images": 5000,
    "epochs": 4,
    "parts": 4,
    "batch_size": 64,
    "weight_decay": 5e-4,
    "val_images": 2000,
}
SEEDS = (0, 1)
CHECKED, CHECK_SEED = 20, 2  # so many points, drawn at random, are trained with a third seed
COMMAND = "python -m cvlab table"
OWN = "data/results/04_table.npz"  # the project's
Pair = tuple[int, int]  # a point's number, and a seed
Row = dict[str, Any]  # of a journal, see `train_point`


class TableError(RuntimeError):
    """A table or its journal cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Table:
    """What the trainings gave; points in the order of `POINTS`, seeds in that of `SEEDS`.

    From where a training diverges it has the accuracy of guessing and costs nothing.
    """

    accuracy: np.ndarray  # float [points, seeds, epochs]: of the validation images, after an epoch
    seconds: np.ndarray  # float [points, seeds, epochs]: CPU seconds of an epoch, on one thread
    diverged: np.ndarray  # bool [points, seeds]
    macs: np.ndarray  # int [points]: of one image
    parameters: np.ndarray  # int [points]
    checked: np.ndarray  # int [checks]: numbers of the points trained with `CHECK_SEED`, too
    again: np.ndarray  # float [checks, epochs]: their accuracy with it
    about: dict[str, Any]  # settings, machine, versions, command, seconds

    @classmethod
    def read(cls, path: Path | None = None) -> "Table":
        """The table in a file; by default the project's own, or the copy that the wheel carries.

        Raises:
            TableError: there is none, or it is of another grid than this code's.
        """
        path = path or carried(OWN)
        if not path.exists():
            raise TableError(f"There is no table {path}. Make it: {COMMAND}")
        with np.load(path) as file:
            about = json.loads(str(file["about"]))
            if about["settings"]["grid"] != _listed(GRID):
                raise TableError(f"{path} is of another grid. Make it anew: {COMMAND}")
            n = about["settings"]["budget"]["val_images"]
            right = {name: file[name] / n for name in ("accuracy", "again")}
            exact = {name: file[name] for name in ("diverged", "macs", "parameters", "checked")}
            return cls(**right, **exact, seconds=file["seconds"].astype(float), about=about)

    def frame(self) -> pd.DataFrame:
        """One row a point: its parameters, mean `accuracy` of the seeds, `MACs`, CPU `seconds`."""
        frame = pd.DataFrame(POINTS)
        frame["accuracy"] = self.accuracy[:, :, -1].mean(1)
        return frame.assign(MACs=self.macs, seconds=self.seconds.sum(2).mean(1))

    def checks(self) -> pd.DataFrame:
        """The checked points: final accuracy with each seed of the table, and trained `again`."""
        columns = {f"seed {s}": self.accuracy[self.checked, i, -1] for i, s in enumerate(SEEDS)}
        return pd.DataFrame(columns | {"again": self.again[:, -1]}, self.checked)


def turned(one: np.ndarray, other: np.ndarray) -> float:
    """The share of pairs that two scores put in another order; a tie in either counts half."""
    one, other = np.asarray(one), np.asarray(other)
    first, second = np.triu_indices(len(one), 1)
    agree = np.sign(one[first] - one[second]) * np.sign(other[first] - other[second])
    return float((1 - agree).mean() / 2)


def default_file() -> Path:
    """Where the project's own table lies."""
    return project_root() / OWN


def checked_points() -> list[int]:
    """The points that are trained with a third seed: drawn without a look at any score."""
    return sorted(np.random.default_rng(25).choice(len(POINTS), CHECKED, replace=False).tolist())


def plan() -> list[Pair]:
    """All that the table needs, in the random order in which it is trained."""
    order = np.random.default_rng(26).permutation(len(POINTS)).tolist()
    checks = [(point, CHECK_SEED) for point in checked_points()]
    return [(point, seed) for point in order for seed in SEEDS] + checks


def train_point(point: int, seed: int, data: ImageData) -> Row:
    """Train a point of the grid on `data`, which holds the images of `BUDGET` and no more.

    Returns:
        `point`, `seed`, `diverged`; for each epoch `right`, the right answers on the validation
        images, and `cpu`, seconds of this process. From where it diverges: guesses, 0 seconds.
    """
    values, epochs = POINTS[point], BUDGET["epochs"]
    torch.manual_seed(seed)
    model = TunableCNN(len(data.classes), *(values[name] for name in NETWORK))
    training = Training(
        optimizer=values["optimizer"],
        lr=values["lr"],
        weight_decay=BUDGET["weight_decay"],
        schedule=values["schedule"],
        precision="fp32",
        epochs=epochs,
        batch_size=BUDGET["batch_size"],
        augment=False,
        parts=BUDGET["parts"],
        seed=seed,
    )
    right, ends, diverged = [], [time.process_time()], False

    def watch(history, optimizer) -> None:
        right.append(round(history.epoch_rows[-1]["val_accuracy"] * len(data.val)))
        ends.append(time.process_time())

    try:
        fit(model, data, training, watch=watch, what=None)
    except TrainingDiverged:
        ends.append(time.process_time())
        diverged = True
    right += [len(data.val) // len(data.classes)] * (epochs - len(right))
    cpu = [*np.diff(ends).round(4).tolist(), *[0.0] * epochs][:epochs]
    return {"point": point, "seed": seed, "right": right, "cpu": cpu, "diverged": diverged}


def generate(journal: Path, where: str = "auto", workers: int = 2) -> None:
    """Train what the journal lacks, with some processes, each on one thread.

    Args:
        journal: a JSON document a line, the first on settings and machine; made if there is none.
        where: of CIFAR-10, see `cvlab.data.load`.
        workers: processes.

    Raises:
        TableError: the journal was begun with other settings.
    """
    begin(journal, settings(cvdata.load("cifar10", where)))
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        fill(journal, partial(pool.map, partial(_train_pair, where)))


def settings(data: ImageData) -> dict[str, Any]:
    """All that a line of the journal depends on: lines of other settings are not mixed."""
    name = data.name if data.real else f"stand-in for {data.name}"
    return {"grid": _listed(GRID), "budget": BUDGET, "data": f"{name} {data.fingerprint}"}


def _listed(grid: dict[str, tuple]) -> dict[str, list]:
    """As JSON gives it back."""
    return {name: list(values) for name, values in grid.items()}


def begin(journal: Path, wanted: dict[str, Any]) -> None:
    """Start a journal, or see whether it was started with these settings.

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
    os.truncate(journal, content.rfind(b"\n") + 1)
    if read_journal(journal)[0]["settings"] != wanted:
        raise TableError(
            f"{journal} was begun with another grid, budget or data. Name another journal, or "
            "remove this one."
        )


def fill(journal: Path, train: Callable[[list[Pair]], Iterable[Row]]) -> None:
    """Add a line for each training that a begun journal lacks, as soon as `train` yields it."""
    known = {(row["point"], row["seed"]) for row in read_journal(journal)[1]}
    missing = [pair for pair in plan() if pair not in known]
    with progress(len(missing), "table", "training") as bar, journal.open("ab") as file:
        for row in train(missing):
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            bar.update()


def read_journal(journal: Path) -> tuple[dict[str, Any], list[Row]]:
    """A journal's first line, on `settings`, `machine` and `versions`, and its trainings."""
    first, *others = journal.read_text(encoding="utf-8").splitlines()
    return json.loads(first), [json.loads(line) for line in others]


def pack(journal: Path, target: Path) -> Path:
    """Make the table's file of a journal that lacks nothing.

    Raises:
        TableError: trainings are missing, or the project's own table would hold the stand-in.
    """
    about, rows = read_journal(journal)
    found = {(row["point"], row["seed"]): row for row in rows}
    missing = sum(pair not in found for pair in plan())
    if missing:
        raise TableError(f"{journal} lacks {missing} trainings. The same command adds them.")
    if about["settings"]["data"].startswith("stand-in") and target == default_file():
        raise TableError("The project's table is of CIFAR-10, not of its stand-in.")
    grid = [[found[point, seed] for seed in SEEDS] for point in range(len(POINTS))]
    checks = [found[point, CHECK_SEED] for point in checked_points()]
    networks = {tuple(point[name] for name in NETWORK): None for point in POINTS}
    costs = {network: _cost(network) for network in networks}
    each = np.array([costs[tuple(point[name] for name in NETWORK)] for point in POINTS])
    spent = round(sum(sum(row["cpu"]) for row in rows))
    content = {
        "accuracy": np.array([[row["right"] for row in pair] for pair in grid], np.uint16),
        "seconds": np.array([[row["cpu"] for row in pair] for pair in grid], np.float32),
        "diverged": np.array([[row["diverged"] for row in pair] for pair in grid]),
        "macs": each[:, 0],
        "parameters": each[:, 1],
        "checked": np.array(checked_points(), np.int16),
        "again": np.array([row["right"] for row in checks], np.uint16),
        "about": json.dumps(about | {"command": COMMAND, "cpu_seconds": spent}),
    }
    return replace_atomically(partial(_save, content), target)


def _save(content: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # given a name, numpy would add its own ending
        np.savez_compressed(file, **content)


def _cost(network: tuple) -> tuple[int, int]:
    """MACs of one image, and parameters."""
    table = summary(TunableCNN(10, *network), (3, 32, 32))
    return int(table["MACs"].sum()), int(table["parameters"].sum())


@cache
def _images(where: str) -> ImageData:
    """A worker's images, loaded once; it is warmed up: the first training of a process is slow."""
    torch.set_num_threads(1)
    loaded = cvdata.load("cifar10", where)
    images = loaded.take(n_train=BUDGET["images"], n_val=BUDGET["val_images"])
    train_point(0, SEEDS[0], images)
    return images


def _train_pair(where: str, pair: Pair) -> Row:
    return train_point(*pair, _images(where))
