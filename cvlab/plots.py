"""Figures. Each function takes data frames or arrays, returns a matplotlib Figure, decides nothing.

The title (`suptitle`) says what to see; colours are Okabe and Ito's, told apart by the
colour-blind, with line styles and markers that survive printing in grey.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

Lines = Mapping[str, tuple[Sequence, Sequence]]  # name -> (x, y)
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999"]
STYLES = ["-", "--", "-.", ":"]
MARKERS = "osD^vPX*"
PERCENT = PercentFormatter(1, decimals=0)
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 10,
}


def canvas(title: str, columns: int = 1, rows: int = 1, size=(8.0, 4.2), bare=False, **options):
    """A figure in the workbook's style: (figure, axes). `bare` hides the axes, for images."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", **options)
    for axis in figure.axes if bare else ():
        axis.axis("off")
    set_title(figure, title)
    return figure, axes


def set_title(figure: Figure, title: str) -> None:
    """The finding, above the figure at the left."""
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11.5)


def footnote(figure: Figure, text: str) -> None:
    """Small print under the figure: how it was measured."""
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color="#555555")


def log_scale(axis: Axes) -> None:
    """The x axis logarithmic, with the numbers 1, 2 and 5 of each power of ten, written out."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")


def image_grid(images: Sequence, labels: Sequence, classes: Sequence[str], title: str) -> Figure:
    """One row of thumbnails a class. `images` uint8 [N, 3, H, W]; the first 8 of each class."""
    labels = np.asarray(labels)
    figure, axes = canvas(title, 8, len(classes), (7.2, 0.78 * len(classes) + 0.5), bare=True)
    for label, (row, name) in enumerate(zip(axes, classes, strict=True)):
        for axis, index in zip(row, np.flatnonzero(labels == label), strict=False):
            axis.imshow(np.asarray(images[index]).transpose(1, 2, 0))
        row[0].set_title(name, loc="left", fontsize=9, pad=2)
    return figure


def curves(
    series: Lines, title: str, xlabel: str, ylabel: str, steps: bool = False, **axis_options
) -> Figure:
    """Lines with their names at their right ends; `steps` holds y to the next x."""
    figure, axis = canvas(title, size=(7.5, 4))
    kind = "steps-post" if steps else "default"
    for i, (x, y) in enumerate(series.values()):
        axis.plot(x, y, MARKERS[i % 8] + STYLES[i % 4], color=COLOURS[i % 8], ms=4, drawstyle=kind)
    axis.set(xlabel=xlabel, ylabel=ylabel, **axis_options)
    axis.margins(x=0.12)
    if xlabel == "epoch":
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.autoscale_view()
    ends = [(x[-1], y[-1]) for x, y in series.values()]
    heights = (axis.transData - axis.transAxes).transform(ends)[:, 1]  # 0..1 of the axes
    units, colours = ("data", "axes fraction"), cycle(COLOURS)
    for name, (x, _), y, colour in zip(series, ends, apart(heights, 0.055), colours, strict=False):
        axis.annotate(name, (x, y), (6, 0), units, "offset points", va="center", color=colour)
    return figure


def apart(places: Sequence[float], gap: float) -> np.ndarray:
    """The places, some of them moved up so that each is at least `gap` above the one below it."""
    moved = np.array(places, float)
    order = np.argsort(moved)
    for below, above in pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    return moved


def dots(
    table: pd.DataFrame,
    title: str,
    by: str,
    values: Mapping[str, str],
    hue: str | None = None,
    join: str | None = None,
) -> Figure:
    """Every run as a dot, each mean as a bar; a row for each `by`, best mean on top.

    `values` maps a column of `table` to its label: a panel each. `hue` names a column whose
    values are told apart by colour and marker; a thin line joins what is equal in `join`.
    """
    names = table.groupby(by)[next(iter(values))].mean().sort_values(ascending=False).index
    groups = list(table.groupby(hue, sort=False)) if hue else [(None, table)]
    size = (7.5, 0.42 * len(names) * len(groups) + (1.6 if hue else 1.3))
    figure, axes = canvas(title, len(values), size=size, sharey=True, squeeze=False)
    for axis, (column, label) in zip(axes[0], values.items(), strict=True):
        for i, (group, rows) in enumerate(groups):
            y = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * 0.4
            at, look = y[names.get_indexer(rows[by])], COLOURS[2 * i]
            for value in rows[join].unique() if join else ():
                pair = (rows[join] == value).to_numpy()
                order = np.argsort(at[pair])
                axis.plot(rows[column][pair].iloc[order], at[pair][order], color="#BBBBBB", lw=0.8)
            axis.plot(rows[column], at, MARKERS[i], color=look, alpha=0.75, mew=0, label=group)
            means, half = rows.groupby(by)[column].mean().reindex(names), 0.3 / len(groups)
            axis.plot([means, means], [y - half, y + half], color=COLOURS[1], linewidth=2.5)
        axis.set_xlabel(label)
        axis.xaxis.set_major_formatter(PERCENT)
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.grid(visible=False, axis="y")
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].invert_yaxis()
    if hue:
        handles = axes[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=len(groups), frameon=False)
    return figure


def bars(table: pd.DataFrame, title: str, columns: Mapping[str, str]) -> Figure:
    """A panel of horizontal bars for each column (name -> label), a row for each entry.

    Columns `<name>_low` and `<name>_high`, where they are, become whiskers.
    """
    size = (9, 0.42 * len(table) + 1.4)
    figure, axes = canvas(title, len(columns), size=size, sharey=True, squeeze=False)
    places = np.arange(len(table))
    for axis, (name, label) in zip(axes[0], columns.items(), strict=True):
        values = table[name]
        axis.barh(places, values, color=COLOURS[0], height=0.6)
        ends = values
        if f"{name}_low" in table:
            ends = table[f"{name}_high"]
            whiskers = [values - table[f"{name}_low"], ends - values]
            axis.errorbar(values, places, xerr=whiskers, fmt="none", color=COLOURS[6], capsize=3)
        shares = values.max() <= 1
        for place, value, end in zip(places, values, ends, strict=True):
            text = f"{value:.0%}" if shares else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
            if np.isnan(value):
                text, end = "not known", 0
            axis.annotate(text, (end, place), (4, -4), textcoords="offset points", fontsize=9)
        axis.set(xlabel=label, xlim=(0, 1.25 * ends.max()))
        axis.xaxis.set_major_locator(MaxNLocator(4))
        if shares:
            axis.xaxis.set_major_formatter(PERCENT)
        axis.grid(visible=False, axis="y")
    axes[0, 0].set_yticks(places, table.index)
    axes[0, 0].invert_yaxis()
    return figure


def training(histories: Mapping, title: str) -> Figure:
    """Loss left, accuracy right, over epochs, one row a training: name -> History.

    The band holds the middle half of the batches, from the 25th to the 75th percentile.
    """
    size = (9, 1.9 * len(histories) + 1.1)
    figure, axes = canvas(title, 2, len(histories), size=size, squeeze=False, sharex=True)
    for row, (name, history) in zip(axes, histories.items(), strict=True):
        batches, epochs = history.batches.groupby("epoch"), history.epochs
        for axis, what in zip(row, ("loss", "accuracy"), strict=True):
            low, high = batches[what].quantile(0.25), batches[what].quantile(0.75)
            axis.fill_between(low.index, low, high, color=COLOURS[0], alpha=0.2, lw=0)
            for part, look, colour in (("train", "-o", COLOURS[0]), ("val", "--s", COLOURS[1])):
                values = epochs[f"{part}_{what}"]
                axis.plot(epochs["epoch"], values, look, color=colour, label=part, markersize=3.5)
            axis.set_ylabel(what)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        row[0].set_title(name, loc="left", fontsize=9.5)
        row[0].set_ylim(0)
        row[1].set_ylim(0, 1.03)
        row[1].yaxis.set_major_formatter(PERCENT)
    axes[0, 0].legend(frameon=False)
    plt.setp(axes[-1], xlabel="epoch")
    return figure


def pictures(images: Mapping[str, np.ndarray], title: str, columns: int = 5) -> Figure:
    """Named pictures in rows, each pixel a square: grey [H, W] in 0..1 or colour [H, W, 3]."""
    rows = -(-len(images) // columns)
    size = (9, 9 / columns * rows + 0.8)
    figure, axes = canvas(title, columns, rows, size, bare=True, squeeze=False)
    for axis, (name, image) in zip(axes.flat, images.items(), strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name, loc="left", fontsize=9)
    return figure


def confusion(counts: pd.DataFrame, title: str) -> Figure:
    """True classes as rows, predicted ones as columns; colour and numbers are shares of a row."""
    table = counts.div(counts.sum(axis=1), axis=0)
    figure = shares(table, title, (0.75 * len(counts) + 2.2, 0.5 * len(counts) + 1.6))
    figure.axes[0].set(xlabel="predicted", ylabel="true")
    return figure


def shares(table: pd.DataFrame, title: str, size: Sequence[float] | None = None) -> Figure:
    """A table of shares as a heat map."""
    figure, axis = canvas(title, size=size or (8.5, 0.45 * len(table) + 1.2))
    heat_map(axis, table)
    axis.set(xlabel="", ylabel="")
    return figure


def heat_map(axis: Axes, table: pd.DataFrame) -> None:
    """A table of shares in colour, with its numbers where they have room."""
    import seaborn

    look = {"annot": len(table.columns) <= 20, "fmt": ".0%", "cmap": "Blues", "cbar": False}
    seaborn.heatmap(table, ax=axis, vmin=0, vmax=1, linewidths=0.5, **look)
    axis.grid(visible=False)
    axis.tick_params(axis="y", rotation=0)


def live(run, what: str, draw: Callable, every: int = 1) -> Callable:
    """A `watch` for `fit` that redraws `draw(history)` in place after each `every` epochs.

    It lets two seconds pass between drawings. Show the finished figure under the same name
    afterwards; a headless run, which keeps the last drawing only, then ends with one figure.
    """
    drawn = float("-inf")

    def watch(history, optimizer) -> None:
        nonlocal drawn
        if len(history.epoch_rows) % every == 0 and time.monotonic() - drawn >= 2:
            run.show(draw(history), what)
            drawn = time.monotonic()

    return watch
