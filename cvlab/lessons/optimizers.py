"""01: every optimizer at every rate, Adagrad's steps, walks down a ravine, costs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn, optim

from cvlab.data import Batches
from cvlab.metrics import over_seeds
from cvlab.models import LeNet
from cvlab.plots import COLOURS, PERCENT, canvas, curves, footnote
from cvlab.show import each, interactive
from cvlab.train import MOMENTUM, History, TrainingDiverged, evaluate, fit, make_optimizer


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
        optimizer: a name in `cvlab.train.OPTIMIZERS`.
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


def adagrad_step_factor(optimizer: optim.Adagrad) -> float:
    """Median over all weights of what Adagrad multiplies a gradient with: lr / sqrt(sum of g^2).

    It can only shrink, because squares are added and nothing is ever forgotten.
    Source: Duchi, Hazan, Singer, "Adaptive subgradient methods", 2011.
    """
    factors = [
        group["lr"] / (optimizer.state[p]["sum"].sqrt() + group["eps"]).flatten()
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    return torch.cat(factors).median().item()


def ravine(x: Tensor, y: Tensor, angle: float = 0.0) -> Tensor:
    """A valley 100 times more curved across than along, turned by `angle` degrees; minimum at 0."""
    turn = math.radians(angle)
    along = math.cos(turn) * x + math.sin(turn) * y
    across = math.cos(turn) * y - math.sin(turn) * x
    return 0.5 * (along**2 + 100 * across**2)


def path(
    name: str, lr: float, *, angle: float = 0.0, steps: int = 60, momentum: float = MOMENTUM
) -> np.ndarray:
    """Let an optimizer walk down the ravine, from 4 along and 0.5 across.

    Args:
        name: key of `OPTIMIZERS`, not "Muon", which is made for matrices.
        lr: learning rate, > 0.
        angle: degrees by which ravine and start are turned.
        steps: how many.
        momentum: replaces 0.9 for "momentum" and "Nesterov".

    Returns:
        float [steps + 1, 2], the points visited; NaN after the walk has left for infinity.
    """
    turn = math.radians(angle)
    start = [-4 * math.cos(turn) - 0.5 * math.sin(turn), 0.5 * math.cos(turn) - 4 * math.sin(turn)]
    point = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = make_optimizer(name, [point], lr)
    for group in optimizer.param_groups:
        if group.get("momentum"):
            group["momentum"], group["nesterov"] = momentum, group["nesterov"] and momentum > 0
    points = [point.detach().clone()]
    for _ in range(steps):
        optimizer.zero_grad()
        ravine(*point, angle).backward()
        optimizer.step()
        points.append(point.detach().clone())
    walked = torch.stack(points).numpy()
    walked[~(np.abs(walked).max(1) < 1e6)] = np.nan
    return walked


def best_rate(name: str, *, angle: float = 0.0, steps: int = 60) -> float:
    """The rate of 25 between 0.001 and 10 whose walk ends nearest to the ravine's minimum."""
    rates = np.geomspace(1e-3, 10, 25)
    ends = [np.hypot(*path(name, lr, angle=angle, steps=steps)[-1]) for lr in rates]
    return float(rates[np.nanargmin(ends)])


def state_bytes(optimizer: optim.Optimizer) -> int:
    """Bytes of memory that an optimizer keeps between steps, beside the weights and gradients."""
    parts = getattr(optimizer, "_parts", [optimizer])
    states = [state for part in parts for state in part.state.values()]
    tensors = [v for state in states for v in state.values() if isinstance(v, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors if t.ndim)


def cost(model: nn.Module, names: Iterable[str], *, rounds: int = 30) -> pd.DataFrame:
    """Step time and memory of optimizers on copies of `model` with random gradients.

    Returns:
        one row an optimizer: `ms` a step (median), `p10`, `p90`, `bytes_per_weight`.
    """
    import copy

    from cvlab.bench import compare

    steps, optimizers = {}, {}
    for name in names:
        params = list(copy.deepcopy(model).parameters())
        for p in params:
            p.grad = torch.randn_like(p)
        optimizers[name] = make_optimizer(name, params, lr=1e-6)
        steps[name] = optimizers[name].step
    table = compare(steps, rounds=rounds)
    weights = sum(p.numel() for p in model.parameters())
    table["bytes_per_weight"] = [state_bytes(optimizers[n]) / weights for n in table.index]
    return table


def plot_rates(table: pd.DataFrame, title: str, ylabel: str, chance: float) -> Figure:
    """Small multiples, one optimizer each: score over learning rate, band = all seeds.

    `table` has columns optimizer, lr, score (one row a seed); a diverged run counts as chance.
    """
    names = list(dict.fromkeys(table["optimizer"]))
    rows = -(-len(names) // 4)
    figure, axes = canvas(title, 4, rows, size=(9, 2.2 * rows + 0.9), sharex=True, sharey=True)
    for axis, name in zip(axes.flat, names, strict=False):
        scores = table[table["optimizer"] == name].groupby("lr")["score"]
        median = scores.median()
        axis.fill_between(
            median.index, scores.min(), scores.max(), color=COLOURS[4], alpha=0.4, lw=0
        )
        axis.plot(median.index, median, "o-", color=COLOURS[0], markersize=4)
        best = median.idxmax()
        axis.plot(best, median[best], "*", color=COLOURS[1], markersize=13)
        axis.axhline(chance, color="#999999", linestyle=":", linewidth=1)
        axis.set_title(f"{name}: best {best:g}", fontsize=9.5, loc="left")
        axis.set_xscale("log")
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis in axes.reshape(-1, 4)[:, 0]:
        axis.set_ylabel(ylabel)
        axis.yaxis.set_major_formatter(PERCENT)
    footnote(figure, "Learning rate (log scale). Band: lowest to highest seed. Dotted: guessing.")
    return figure


def plot_losses(histories: Mapping, title: str = "Mean training loss of each epoch") -> Figure:
    """Mean training loss over epochs: name -> History."""
    epochs = {name: history.epochs for name, history in histories.items()}
    series = {name: (e["epoch"].tolist(), e["train_loss"].tolist()) for name, e in epochs.items()}
    return curves(series, title, "epoch", "mean training loss (cross-entropy)")


def plot_ravine(walks: Sequence[dict], surface: Callable, title: str, columns: int = 4) -> Figure:
    """Walks over the contours of `surface(x, y, angle)`, one panel each.

    A walk is a dict: `name`, `angle` in degrees, `points` float [steps + 1, 2].
    """
    columns = min(columns, len(walks))
    rows = -(-len(walks) // columns)
    size = (2.25 * columns + 0.3, 2.4 * rows + 0.5)
    figure, axes = canvas(title, columns, rows, size=size, squeeze=False, sharex=True, sharey=True)
    x, y = np.meshgrid(*[np.linspace(-4.6, 4.6, 160)] * 2)
    levels, thin = np.geomspace(0.3, 900, 8), {"colors": "#BBBBBB", "linewidths": 0.7}
    for axis, walk in zip(axes.flat, walks, strict=True):
        axis.contour(x, y, surface(x, y, walk["angle"]), levels=levels, **thin)
        axis.plot(*walk["points"].T, "-o", color=COLOURS[0], markersize=2.5, linewidth=1)
        axis.plot(0, 0, "*", color=COLOURS[1], markersize=9)
        axis.set_title(walk["name"], fontsize=9, loc="left")
        axis.set(xlim=(-4.6, 4.6), ylim=(-4.6, 4.6), aspect="equal", xticks=[], yticks=[])
    return figure


def explore(names: Sequence[str] = ("momentum", "Nesterov", "SGD", "Adagrad", "Adam")):
    """Choose an optimizer, its rate and its momentum; see where 60 steps lead on the ravine."""
    name = widgets.Dropdown(options=names, description="optimizer")
    rate = widgets.FloatLogSlider(
        value=0.03, min=-3, max=0.5, step=0.05, description="rate", continuous_update=False
    )
    momentum = widgets.FloatSlider(
        value=0.9, min=0, max=0.99, step=0.01, description="momentum", continuous_update=False
    )

    angle = widgets.IntSlider(
        min=0, max=45, step=5, description="turned by", continuous_update=False
    )

    def draw(name: str, rate: float, momentum: float, angle: int):
        points = path(name, rate, momentum=momentum, angle=angle)
        distance = np.hypot(*points[-1])
        end = "left for infinity" if np.isnan(distance) else f"{distance:.2g} from the minimum"
        walk = {"name": f"rate {rate:.3g}", "angle": angle, "points": points}
        figure = plot_ravine([walk], ravine, f"{name}: after 60 steps {end}")
        figure.set_size_inches(5, 4.6)
        return figure

    controls = {"name": name, "rate": rate, "momentum": momentum, "angle": angle}
    return interactive(draw, controls)
