"""01: every optimizer at every rate, Adagrad's steps, walks down a ravine, costs."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn, optim

from cvlab.bench import compare
from cvlab.data import ImageData
from cvlab.metrics import Z, over_seeds, paired_means, score
from cvlab.models import LeNet
from cvlab.plots import COLOURS, PERCENT, canvas, curves, footnote
from cvlab.show import each, interactive
from cvlab.train import MOMENTUM, OPTIMIZERS, History, Training, TrainingDiverged, fit, predict

STEPS = 60  # of a walk down the ravine
FUSED = ("SGD", "momentum", "Nesterov", "Adagrad", "Adam", "AdamW")  # can step in one operation


def train_lenet(
    data: ImageData,
    training: Training,
    device: torch.device,
    watch: Callable | None = None,
    what: str | None = None,
) -> tuple[LeNet, History]:
    """Train a fresh LeNet; the same seed gives every optimizer the same start and batches."""
    torch.manual_seed(training.seed)
    model = LeNet(len(data.classes))
    return model, fit(model, data, training, device=device, watch=watch, what=what)


def sweep(
    data: ImageData,
    training: Training,
    device: torch.device,
    optimizers: Sequence[str],
    rates: Sequence[float],
    seeds: Sequence[int],
) -> pd.DataFrame:
    """Validation accuracy of LeNet for every optimizer, rate and seed; `training` says the rest.

    Returns:
        one row a run: `optimizer`, `lr`, `seed`, `score` (fraction), `diverged`. A run whose loss
        became infinite scores what guessing does.
    """
    plan = [(name, lr, seed) for name in optimizers for lr in rates for seed in seeds]
    rows = []
    for name, lr, seed in each(plan, "sweep", "run"):
        this = replace(training, optimizer=name, lr=lr, seed=seed)
        try:
            _, history = train_lenet(data, this, device)
            score, diverged = history.epoch_rows[-1]["val_accuracy"], False
        except TrainingDiverged:
            score, diverged = 1 / len(data.classes), True
        rows.append((name, lr, seed, score, diverged))
    return pd.DataFrame(rows, columns=["optimizer", "lr", "seed", "score", "diverged"])


def best_rates(table: pd.DataFrame) -> pd.Series:
    """Optimizer -> the rate with the best mean score over seeds, from a `sweep`."""
    means = table.groupby(["optimizer", "lr"], sort=False)["score"].mean().unstack()
    return means.idxmax(axis=1)


def final_runs(
    data: ImageData, training: Training, device: torch.device, rates: pd.Series, seeds: Sequence
) -> tuple[pd.DataFrame, dict[tuple[str, int], Tensor]]:
    """Train LeNet with each optimizer at its own rate, then read the test set once a run.

    Returns:
        one row a run: `optimizer`, `lr`, `seed`, `val_accuracy`, `test_accuracy`, `correct`, `n`,
        `seconds` of training; and (optimizer, seed) -> its logits on the test images.
    """
    rows, answers, plan = [], {}, [(name, lr, seed) for name, lr in rates.items() for seed in seeds]
    test = data.batches("test", 1000, device=device)
    for name, lr, seed in each(plan, "final runs", "run"):
        this = replace(training, optimizer=name, lr=lr, seed=seed)
        model, history = train_lenet(data, this, device)
        logits, labels = predict(model, test, precision=training.precision)
        tested, answers[name, seed] = score(logits, labels), logits
        row = {"optimizer": name, "lr": lr, "seed": seed, "seconds": history.seconds}
        row["val_accuracy"] = history.epoch_rows[-1]["val_accuracy"]
        row |= {"test_accuracy": tested.accuracy, "correct": tested.correct, "n": tested.n}
        rows.append(row)
    return pd.DataFrame(rows), answers


def summary(runs: pd.DataFrame, answers: Mapping, labels: Tensor) -> pd.DataFrame:
    """One row an optimizer, best first, from `final_runs` and the test images' labels.

    Its rate, `cvlab.metrics.over_seeds`, by how much it is behind the first on the same images
    (`cvlab.metrics.paired_means`), seconds a run.
    """
    first, rows = runs.groupby("optimizer")["correct"].mean().idxmax(), []

    def logits(name: str) -> list[Tensor]:
        return [one for (optimizer, _), one in answers.items() if optimizer == name]

    for (name, lr), group in runs.groupby(["optimizer", "lr"], sort=False):
        cells = {"optimizer": name, "rate": f"{lr:g}"}
        cells |= over_seeds(group["correct"], int(group["n"].iloc[0]))
        apart, low, high = (100 * x for x in paired_means(logits(first), logits(name), labels))
        told = f"{apart:.1f} ({low:.1f} to {high:.1f})"
        cells["behind the first, points"] = "–" if name == first else told
        cells["seconds a run"] = f"{group['seconds'].median():.1f}"
        rows.append(cells | {"mean": group["test_accuracy"].mean()})
    table = pd.DataFrame(rows).sort_values("mean", ascending=False).drop(columns="mean")
    return table.set_index("optimizer")


def duel(
    data: ImageData,
    training: Training,
    device: torch.device,
    rates: Sequence[float],
    known: Mapping[str, History],
) -> pd.DataFrame:
    """The loss of every step of momentum and Adagrad at each rate; one seed, the same batches.

    `known` are histories at `training.lr`, which are not made again.

    Returns:
        float [steps, (optimizer, rate)]; a training that diverged guesses for the rest.
    """
    plan, losses = [(name, lr) for name in ("momentum", "Adagrad") for lr in rates], {}
    for name, lr in each(plan, "other rates", "run"):
        try:
            this = replace(training, optimizer=name, lr=lr)
            history = known[name] if lr == training.lr else train_lenet(data, this, device)[1]
        except TrainingDiverged as stopped:
            history = stopped.history
        losses[name, lr] = history.batches["loss"].where(np.isfinite)
    return pd.DataFrame(losses).fillna(math.log(len(data.classes)))


def leads(losses: pd.DataFrame) -> pd.DataFrame:
    """By how much Adagrad's loss is lower than momentum's, from `duel`, had training ended sooner.

    A constant rate makes a short run the beginning of a long one. The loss at a length is the mean
    of its last tenth; batches are paired.

    Returns:
        a row a length in steps: a column for each rate, "own" where each takes the rate that is
        best for it at that length, and the 95 % interval of that, `low` to `high`.
    """
    lengths = np.unique(np.geomspace(100, len(losses), 13).round().astype(int))
    rows = {}
    for length in lengths:
        last = losses.iloc[length - length // 10 : length]
        apart = last["momentum"] - last["Adagrad"]
        best = last.mean().groupby(level=0).idxmin()
        own = last[best["momentum"]] - last[best["Adagrad"]]
        half = Z * own.std() / math.sqrt(len(own))
        ends = {"own": own.mean(), "low": own.mean() - half, "high": own.mean() + half}
        rows[length] = apart.mean().to_dict() | ends
    return pd.DataFrame.from_dict(rows, orient="index")


def leader(row: pd.Series) -> str:
    """In words, who is ahead at own rates and by how much, from a row of `leads`."""
    if row["low"] < 0 < row["high"]:
        return "neither leads"
    return f"{'Adagrad' if row['own'] > 0 else 'momentum'} leads by {abs(row['own']):.2f}"


def plot_leads(table: pd.DataFrame, title: str) -> Figure:
    """`leads` over the length of training: above 0 Adagrad is ahead."""
    names = {rate: f"both at {rate:g}" for rate in table.columns if isinstance(rate, float)}
    names["own"] = "each at its best"
    steps = table.index.tolist()
    lines = {name: (steps, table[column].tolist()) for column, name in names.items()}
    labels = ("training steps (log scale)", "momentum's loss minus Adagrad's")
    ends = table.to_numpy().min() - 0.03, table.to_numpy().max() + 0.03
    figure = curves(lines, title, *labels, xscale="log", ylim=ends)
    band = {"color": COLOURS[len(names) - 1], "alpha": 0.25}
    figure.axes[0].fill_between(steps, table["low"], table["high"], **band)
    figure.axes[0].axhline(0, color=COLOURS[6], linewidth=1)
    footnote(figure, "Above 0 Adagrad is ahead. Band: 95 % interval over the batches; one seed.")
    return figure


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


def path(name: str, lr: float, *, angle: float = 0.0, momentum: float = MOMENTUM) -> np.ndarray:
    """Let an optimizer walk down the ravine, from 4 along and 0.5 across.

    Args:
        name: key of `cvlab.train.OPTIMIZERS`, not "Muon", which is made for matrices.
        lr: learning rate, > 0.
        angle: degrees by which ravine and start are turned.
        momentum: replaces 0.9 for "momentum" and "Nesterov".

    Returns:
        float [STEPS + 1, 2], the points visited; NaN after the walk has left for infinity.
    """
    turn = math.radians(angle)
    start = [-4 * math.cos(turn) - 0.5 * math.sin(turn), 0.5 * math.cos(turn) - 4 * math.sin(turn)]
    point = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = Training(optimizer=name, lr=lr).make_optimizer([point])
    for group in optimizer.param_groups:
        if group.get("momentum"):
            group["momentum"], group["nesterov"] = momentum, group["nesterov"] and momentum > 0
    points = [point.detach().clone()]
    for _ in range(STEPS):
        optimizer.zero_grad()
        ravine(*point, angle).backward()
        optimizer.step()
        points.append(point.detach().clone())
    walked = torch.stack(points).numpy()
    walked[~(np.abs(walked).max(1) < 1e6)] = np.nan
    return walked


def momentum_step(
    weight: np.ndarray, gradient: np.ndarray, velocity: np.ndarray, lr: float, momentum: float
) -> tuple[np.ndarray, np.ndarray]:
    """The weight and the velocity after one step of SGD with momentum, as PyTorch takes it."""
    velocity = momentum * velocity + gradient
    return weight - lr * velocity, velocity


def best_rate(name: str) -> float:
    """The rate of 25 between 0.001 and 10 whose walk ends nearest to the ravine's minimum."""
    rates = np.geomspace(1e-3, 10, 25)
    ends = [np.hypot(*path(name, lr)[-1]) for lr in rates]
    return float(rates[np.nanargmin(ends)])


def walks(rates: Mapping[str, float], angles: Sequence[float]) -> list[dict]:
    """Every optimizer at its rate down the ravine turned by every angle, for `plot_ravine`.

    Returns:
        dicts: `optimizer`, `angle`, `points`, `end` (distance from the minimum), `name` in words.
    """
    found = []
    for angle in angles:
        for name, lr in rates.items():
            points = path(name, lr, angle=angle)
            end = np.hypot(*points[-1])
            words = f"{name}: arrives" if end < 1e-9 else f"{name}: ends {end:.2g} away"
            found.append(
                {"optimizer": name, "angle": angle, "points": points, "end": end, "name": words}
            )
    return found


def state_bytes(optimizer: optim.Optimizer) -> int:
    """Bytes of memory that an optimizer keeps between steps, beside the weights and gradients."""
    parts = getattr(optimizer, "_parts", [optimizer])
    states = [state for part in parts for state in part.state.values()]
    tensors = [v for state in states for v in state.values() if isinstance(v, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors if t.ndim)


def cost(model: nn.Module, names: Iterable[str], *, rounds: int = 30) -> pd.DataFrame:
    """Step time and memory of optimizers on copies of `model` with random gradients.

    Returns:
        one row an optimizer, where PyTorch has it another for `fused=True`: `ms` a step (median),
        `p10`, `p90`, `bytes_per_weight`.
    """
    optimizers, names = {}, list(names)
    for name in [*names, *(f"{name}, fused" for name in names if name in FUSED)]:
        params = list(copy.deepcopy(model).parameters())
        for p in params:
            p.grad = torch.randn_like(p)
        kind, _, fused = name.partition(", ")
        optimizers[name] = OPTIMIZERS[kind](params, lr=1e-6, **({"fused": True} if fused else {}))
    table = compare({name: one.step for name, one in optimizers.items()}, rounds=rounds)
    weights = sum(p.numel() for p in model.parameters())
    table["bytes_per_weight"] = [state_bytes(optimizers[n]) / weights for n in table.index]
    return table


def plot_rates(table: pd.DataFrame, title: str, chance: float) -> Figure:
    """Small multiples of a `sweep`, one optimizer each: score over learning rate, band = seeds."""
    names = list(dict.fromkeys(table["optimizer"]))
    rows = -(-len(names) // 4)
    figure, axes = canvas(title, 4, rows, size=(9, 2.2 * rows + 0.9), sharex=True, sharey=True)
    for axis, name in zip(axes.flat, names, strict=False):
        scores = table[table["optimizer"] == name].groupby("lr")["score"]
        mean = scores.mean()  # as `best_rates` has it
        axis.fill_between(mean.index, scores.min(), scores.max(), color=COLOURS[4], alpha=0.4, lw=0)
        axis.plot(mean.index, mean, "o-", color=COLOURS[0], markersize=4)
        best = mean.idxmax()
        axis.plot(best, mean[best], "*", color=COLOURS[1], markersize=13)
        axis.axhline(chance, color="#999999", linestyle=":", linewidth=1)
        axis.set_title(f"{name}: best {best:g}", fontsize=9.5, loc="left")
        axis.set_xscale("log")
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis in axes.reshape(-1, 4)[:, 0]:
        axis.set_ylabel("validation accuracy")
        axis.yaxis.set_major_formatter(PERCENT)
    footnote(figure, "Learning rate (log scale). Band: lowest to highest seed. Dotted: guessing.")
    return figure


def plot_losses(histories: Mapping, title: str = "Mean training loss of each epoch") -> Figure:
    """Mean training loss over epochs: name -> History."""
    epochs = {name: history.epochs for name, history in histories.items()}
    series = {name: (e["epoch"].tolist(), e["train_loss"].tolist()) for name, e in epochs.items()}
    return curves(series, title, "epoch", "mean training loss (cross-entropy)")


def plot_ravine(walks: Sequence[dict], title: str) -> Figure:
    """Walks over the contours of the ravine, one panel each.

    A walk is a dict: `name`, `angle` in degrees, and `points`, see `path`. The panels reach as
    far as the walks, but not beyond 9.
    """
    columns = min(4, len(walks))
    rows = -(-len(walks) // columns)
    size = (2.25 * columns + 0.3, 2.4 * rows + 0.5)
    figure, axes = canvas(title, columns, rows, size=size, squeeze=False, sharex=True, sharey=True)
    far = max(np.nanmax(np.abs(walk["points"])) for walk in walks)
    edge = np.clip(1.1 * far, 4.6, 9)
    x, y = np.meshgrid(*[np.linspace(-edge, edge, 200)] * 2)
    levels = np.geomspace(0.3, 900, 8)
    for axis, walk in zip(axes.flat, walks, strict=True):
        height = ravine(x, y, walk["angle"])
        axis.contour(x, y, height, levels=levels, colors="#BBBBBB", linewidths=0.7)
        axis.plot(*walk["points"].T, "-o", color=COLOURS[0], markersize=2.5, linewidth=1)
        axis.plot(0, 0, "*", color=COLOURS[1], markersize=9)
        axis.set_title(walk["name"], fontsize=9, loc="left")
        axis.set(xlim=(-edge, edge), ylim=(-edge, edge), aspect="equal", xticks=[], yticks=[])
    return figure


def explore() -> widgets.Widget:
    """Choose an optimizer, its rate and its momentum; see where 60 steps lead on the ravine."""
    names = ["momentum", "Nesterov", "SGD", "Adagrad", "Adam"]
    name = widgets.Dropdown(options=names, description="optimizer")
    rate = widgets.FloatLogSlider(
        value=0.03, min=-3, max=0.5, step=0.05, description="rate", continuous_update=False
    )
    momentum = widgets.FloatSlider(
        value=0.9, min=0, max=0.99, step=0.01, description="momentum", continuous_update=False
    )
    angle = widgets.IntSlider(max=45, step=5, description="turned by", continuous_update=False)

    def draw(name: str, rate: float, momentum: float, angle: int):
        points = path(name, rate, momentum=momentum, angle=angle)
        distance = np.hypot(*points[-1])
        end = "left for infinity" if np.isnan(distance) else f"{distance:.2g} from the minimum"
        walk = {"name": f"rate {rate:.3g}", "angle": angle, "points": points}
        figure = plot_ravine([walk], f"{name}: after 60 steps {end}")
        figure.set_size_inches(5, 4.6)
        return figure

    return interactive(draw, {"name": name, "rate": rate, "momentum": momentum, "angle": angle})
