"""Figures. Each function takes data frames or arrays, returns a matplotlib Figure, decides nothing.

The title (`suptitle`) says what to see; colours are Okabe and Ito's, told apart by the
colour-blind, with line styles and markers that survive printing in grey.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999"]
PERCENT = PercentFormatter(1, decimals=0)
STYLES = ["-", "--", "-.", ":"]
MARKERS = "osD^vPX*"
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "legend.frameon": False,
}


def canvas(title: str, columns: int = 1, rows: int = 1, size=(8.0, 4.2), **options):
    """A figure with the workbook's style and its title at the left: (figure, axes)."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", **options)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11.5)
    return figure, axes


def footnote(figure: Figure, text: str) -> None:
    """Small print under the figure: how it was measured."""
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color="#555555")


def image_grid(images: Sequence, labels: Sequence, classes: Sequence[str], title: str) -> Figure:
    """One row of thumbnails a class. `images` uint8 [N, 3, H, W]; the first 8 of each class."""
    labels = np.asarray(labels)
    figure, axes = canvas(title, 8, len(classes), size=(7.2, 0.78 * len(classes) + 0.5))
    for row, name in zip(axes, range(len(classes)), strict=True):
        members = np.flatnonzero(labels == name)[:8]
        for axis, index in zip(row, members, strict=False):
            axis.imshow(np.asarray(images[index]).transpose(1, 2, 0))
        for axis in row:
            axis.axis("off")
        row[0].set_title(classes[name], loc="left", fontsize=9, pad=2)
    return figure


def class_balance(counts: pd.DataFrame, title: str) -> Figure:
    """Horizontal bars: index the classes, one column a split."""
    figure, axis = canvas(title, size=(7.5, 0.3 * len(counts) + 1.2))
    left = np.zeros(len(counts))
    for colour, part in zip(COLOURS, counts.columns, strict=False):
        axis.barh(counts.index, counts[part], left=left, color=colour, label=part, height=0.7)
        left += counts[part].to_numpy()
    axis.invert_yaxis()
    axis.set_xlabel("images")
    axis.grid(visible=False, axis="y")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def first_calls(seconds: np.ndarray, title: str) -> Figure:
    """Milliseconds of every call in order, with the median of the second half."""
    ms = np.asarray(seconds) * 1e3
    steady = np.median(ms[len(ms) // 2 :])
    figure, axis = canvas(title, size=(7.5, 3.6))
    axis.plot(1, ms[0], "D", color=COLOURS[1], markersize=8, label=f"first call: {ms[0]:.3g} ms")
    axis.plot(np.arange(2, len(ms) + 1), ms[1:], "o", color=COLOURS[0], markersize=4)
    label = f"median of the second half: {steady:.3g} ms"
    axis.axhline(steady, color=COLOURS[6], linestyle="--", linewidth=1, label=label)
    axis.set(xlabel="call", ylabel="time of the call, ms")
    axis.set_ylim(0, ms.max() * 1.15)
    axis.legend(loc="upper right")
    return figure


def intervals(table: pd.DataFrame, title: str, xlabel: str) -> Figure:
    """Medians as points with p10-p90 as bars: columns `median`, `p10`, `p90`, index the names."""
    figure, axis = canvas(title, size=(7.5, 0.5 * len(table) + 1.4))
    low, high = table["median"] - table["p10"], table["p90"] - table["median"]
    places = np.arange(len(table))
    axis.errorbar(table["median"], places, xerr=[low, high], fmt="o", color=COLOURS[0], capsize=4)
    for place, (value, end) in enumerate(zip(table["median"], table["p90"], strict=True)):
        text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        axis.annotate(text, (end, place), (8, -4), textcoords="offset points")
    axis.set_yticks(places, table.index)
    axis.set_ylim(-0.6, len(table) - 0.4)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.invert_yaxis()
    axis.set_xlim(0, table["p90"].max() * 1.2)
    axis.set_xlabel(xlabel)
    axis.grid(visible=False, axis="y")
    return figure


def curves(
    series: Mapping[str, tuple[Sequence, Sequence]],
    title: str,
    xlabel: str,
    ylabel: str,
    **axis_options,
) -> Figure:
    """Lines with their names at their right ends: name -> (x, y)."""
    figure, axis = canvas(title, size=(7.5, 4))
    for i, (name, (x, y)) in enumerate(series.items()):
        colour, style = COLOURS[i % 8], STYLES[i % 4]
        axis.plot(x, y, style, color=colour, marker=MARKERS[i % 8], markersize=4)
        axis.annotate(
            name, (x[-1], y[-1]), (6, 0), textcoords="offset points", color=colour, va="center"
        )
    axis.set(xlabel=xlabel, ylabel=ylabel, **axis_options)
    axis.margins(x=0.12)
    if xlabel == "epoch":
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def sweep(table: pd.DataFrame, title: str, ylabel: str, chance: float) -> Figure:
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


def dots_by_optimizer(table: pd.DataFrame, title: str, xlabel: str) -> Figure:
    """Every run as a dot, each mean as a bar: columns `optimizer`, `test_accuracy`."""
    means = table.groupby("optimizer")["test_accuracy"].mean().sort_values(ascending=False)
    figure, axis = canvas(title, size=(7.5, 0.42 * len(means) + 1.3))
    for place, name in enumerate(means.index):
        scores = table["test_accuracy"][table["optimizer"] == name]
        axis.plot(scores, np.full(len(scores), place), "o", color=COLOURS[0], alpha=0.75, mew=0)
        axis.plot([means[name]] * 2, [place - 0.3, place + 0.3], color=COLOURS[1], linewidth=2.5)
    axis.set_yticks(range(len(means)), means.index)
    axis.invert_yaxis()
    axis.set_xlabel(xlabel)
    axis.xaxis.set_major_formatter(PERCENT)
    axis.grid(visible=False, axis="y")
    return figure


def ravine_paths(walks: Sequence[dict], surface: Callable, title: str, columns: int = 4) -> Figure:
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


def training(history, title: str) -> Figure:
    """Loss left, accuracy right, over epochs; the band holds the middle half of the batches."""
    figure, axes = canvas(title, 2, size=(9, 3.6))
    batches, epochs = history.batches.groupby("epoch"), history.epochs
    for axis, what in zip(axes, ("loss", "accuracy"), strict=True):
        low, high = batches[what].quantile(0.25), batches[what].quantile(0.75)
        axis.fill_between(low.index, low, high, color=COLOURS[0], alpha=0.2, lw=0)
        for part, look, colour in (("train", "-o", COLOURS[0]), ("val", "--s", COLOURS[1])):
            line = {"color": colour, "label": part, "markersize": 4}
            axis.plot(epochs["epoch"], epochs[f"{part}_{what}"], look, **line)
        axis.set(xlabel="epoch", ylabel=what)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes[1].yaxis.set_major_formatter(PERCENT)
    axes[0].legend()
    return figure


def losses(histories: Mapping, title: str = "Mean training loss of each epoch") -> Figure:
    """Mean training loss over epochs: name -> History."""
    epochs = {name: history.epochs for name, history in histories.items()}
    series = {name: (e["epoch"].tolist(), e["train_loss"].tolist()) for name, e in epochs.items()}
    return curves(series, title, "epoch", "mean training loss (cross-entropy)")


def live(run, what: str, draw: Callable, pause: float = 2.0) -> Callable:
    """A `watch` for `fit` that redraws `draw(history)` in place, at most every `pause` seconds.

    Show the finished figure under the same name afterwards; a headless run, which keeps the last
    drawing only, then ends with one figure.
    """
    drawn = [-pause]

    def watch(history, optimizer) -> None:
        if time.monotonic() - drawn[0] >= pause:
            run.show(draw(history), what)
            drawn[0] = time.monotonic()

    return watch
