"""Learning-rate sweeps: every optimizer at every rate, then each again at its own best."""

from collections.abc import Sequence

import pandas as pd
import torch

from cvlab.data import Batches
from cvlab.metrics import over_seeds
from cvlab.models import LeNet
from cvlab.progress import each
from cvlab.train import History, TrainingDiverged, evaluate, fit


def train_lenet(
    train: Batches,
    val: Batches,
    optimizer: str,
    lr: float,
    seed: int,
    *,
    epochs: int = 1,
    **options,
) -> tuple[LeNet, History]:
    """Train a fresh LeNet in fp32; the same seed gives every optimizer the same start and batches.

    Args:
        train: augmented batches; `seed` replaces theirs.
        val: batches that judge.
        optimizer: a name in `cvlab.optimizers.OPTIMIZERS`.
        lr: constant learning rate.
        seed: of the weights and the order of images.
        epochs: passes over `train`.
        options: more for `fit`.

    Raises:
        TrainingDiverged: the loss is no longer finite.
    """
    torch.manual_seed(seed)
    model = LeNet(int(train.labels.max()) + 1)
    how = {"optimizer": optimizer, "lr": lr, "epochs": epochs, "precision": "fp32", **options}
    return model, fit(model, train.reseeded(seed), val, **how)


def sweep(
    train: Batches,
    val: Batches,
    optimizers: Sequence[str],
    rates: Sequence[float],
    seeds: Sequence[int],
) -> pd.DataFrame:
    """Validation accuracy after one epoch for every optimizer, rate and seed.

    Returns:
        one row a run: `optimizer`, `lr`, `seed`, `score` (fraction), `diverged`. A run whose loss
        became infinite scores what guessing does.
    """
    plan = [(name, lr, seed) for name in optimizers for lr in rates for seed in seeds]
    rows = []
    for name, lr, seed in each(plan, "sweep", "run"):
        try:
            _, history = train_lenet(train, val, name, lr, seed, what=None)
            score, diverged = history.epoch_rows[-1]["val_accuracy"], False
        except TrainingDiverged:
            score, diverged = 1 / (int(train.labels.max()) + 1), True
        rows.append((name, lr, seed, score, diverged))
    return pd.DataFrame(rows, columns=["optimizer", "lr", "seed", "score", "diverged"])


def best_rates(table: pd.DataFrame) -> pd.Series:
    """Optimizer -> the rate with the best mean score over seeds, from a `sweep`."""
    means = table.groupby(["optimizer", "lr"], sort=False)["score"].mean().unstack()
    return means.idxmax(axis=1)


def final_runs(
    train: Batches, val: Batches, test: Batches, rates: pd.Series, seeds: Sequence[int], epochs: int
) -> pd.DataFrame:
    """Train each optimizer at its own rate with fresh seeds, then read the test set once a run.

    Returns:
        one row a run: `optimizer`, `lr`, `seed`, `val_accuracy`, `test_accuracy`, `correct`, `n`,
        `seconds` of training.
    """
    rows, plan = [], [(name, lr, seed) for name, lr in rates.items() for seed in seeds]
    for name, lr, seed in each(plan, "final runs", "run"):
        rows.append({"optimizer": name, "lr": lr, "seed": seed})
        rows[-1] |= _final(train, val, test, name, lr, seed, epochs)
    return pd.DataFrame(rows)


def _final(train, val, test, name, lr, seed, epochs) -> dict:
    model, history = train_lenet(train, val, name, lr, seed, epochs=epochs, what=None)
    score = evaluate(model, test, precision="fp32")
    return {
        "val_accuracy": history.epoch_rows[-1]["val_accuracy"],
        "test_accuracy": score.accuracy,
        "correct": score.correct,
        "n": score.n,
        "seconds": history.seconds,
    }


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """One row an optimizer, best first: its rate, `cvlab.metrics.over_seeds`, seconds a run."""
    rows = []
    for (name, lr), group in runs.groupby(["optimizer", "lr"], sort=False):
        cells = {"optimizer": name, "rate": f"{lr:g}"}
        cells |= over_seeds(group["correct"], int(group["n"].iloc[0]))
        cells["seconds a run"] = f"{group['seconds'].median():.1f}"
        rows.append(cells | {"mean": group["test_accuracy"].mean()})
    table = pd.DataFrame(rows).sort_values("mean", ascending=False).drop(columns="mean")
    return table.set_index("optimizer")
