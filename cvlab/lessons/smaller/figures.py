"""Figures and the widget of 08_smaller."""

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from cvlab.lessons.smaller import pack
from cvlab.lessons.smaller.front import frontier
from cvlab.plots import COLOURS, MARKERS, PERCENT, STYLES, canvas, footnote
from cvlab.show import interactive


def sparsity(table: pd.DataFrame, dense: float, title: str) -> Figure:
    """Accuracy over the share of zeros, a line for each `way`, with 95 % intervals.

    `table`: see `prune.curve`; `dense`: accuracy of the network before.
    """
    figure, axis = canvas(title, size=(7.5, 3.9))
    for i, (way, rows) in enumerate(table.groupby("way", sort=False)):
        low, high = rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]
        look = {"fmt": MARKERS[i] + STYLES[i], "color": COLOURS[i], "capsize": 2, "ms": 4.5}
        axis.errorbar(rows["sparsity"], rows["accuracy"], [low, high], label=way, **look)
    axis.axhline(dense, color=COLOURS[7], lw=1, ls=":", label="before, no zeros")
    axis.set(xlabel="share of the weights that are zero", ylabel="validation accuracy")
    axis.set_ylim(0, None)
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_formatter(PERCENT)
    axis.set_xticks(sorted(table["sparsity"].unique()))
    axis.legend(loc="lower left", frameon=False)
    return figure


def teaching(table: pd.DataFrame, alone: float, title: str) -> Figure:
    """Accuracy over `temperature`, a line for each `weight` of the teacher, all with intervals.

    `alone`: accuracy of the student whom nobody taught.
    """
    figure, axis = canvas(title, size=(7.5, 3.6))
    for i, (weight, rows) in enumerate(table.sort_values("temperature").groupby("weight")):
        x = rows["temperature"] * 1.03 ** (i - 1)  # whiskers beside each other
        low, high = rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]
        look = {"fmt": MARKERS[i] + STYLES[i], "color": COLOURS[i], "capsize": 2, "ms": 5}
        axis.errorbar(x, rows["accuracy"], [low, high], label=f"teacher's share {weight:g}", **look)
    axis.axhline(alone, color=COLOURS[7], ls=":", label="labels alone")
    axis.set(xscale="log", xlabel="temperature (log scale)", ylabel="validation accuracy")
    ticks = sorted(table["temperature"].unique())
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(PERCENT)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


PANELS = {"size_mb": "size of the file, MB (log scale)", "latency_ms": "one image, ms (log scale)"}
MARKS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)  # of accuracy, on a log scale of errors


def front(table: pd.DataFrame, title: str) -> Figure:
    """Accuracy over bytes and over milliseconds; a line joins those that nothing beats.

    Networks of unknown accuracy stand as ticks at the bottom. Open markers: a time from another
    machine, which no line joins. Columns: see `front.course`.
    """
    figure, axes = canvas(title, 2, size=(12, 5.6), sharey=True)
    for axis, (cost, label) in zip(axes, PANELS.items(), strict=True):
        _panel(axis, table, cost)
        axis.set_xlabel(label)
    gate, bytes_of = {"color": COLOURS[1], "lw": 1, "ls": "--"}, pack.MLPERF / 1e6
    axes[0].axvline(bytes_of, **gate)
    axes[0].axhline(0.15, label="MLPerf Tiny: bytes, gate", **gate)
    elsewhere = {"color": COLOURS[7], "markerfacecolor": "none", "ls": "none"}
    axes[0].plot([], [], "o", label="a time of another machine", **elsewhere)
    axes[0].set_ylabel("test accuracy")
    axes[0].set_yticks([1 - mark for mark in MARKS], [f"{mark:.0%}" for mark in MARKS])
    axes[0].yaxis.set_minor_locator(NullLocator())
    for axis, cost in zip(axes, PANELS, strict=True):
        _names(axis, table.dropna(subset=["accuracy", cost]), cost)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5, frameon=False)
    return figure


def _panel(axis, table: pd.DataFrame, cost: str) -> None:
    """Every network at its `cost` and its share of errors, and the line of the front."""
    for i, (kind, rows) in enumerate(table.groupby("kind", sort=False)):
        ours = rows["here"] | (cost != "latency_ms")
        for part, face in ((rows[ours], COLOURS[i]), (rows[~ours], "none")):
            look = {"color": COLOURS[i], "markerfacecolor": face, "ms": 6}
            axis.plot(part[cost], 1 - part["accuracy"], MARKERS[i], **look)
        axis.plot([], [], MARKERS[i], color=COLOURS[i], label=kind)
    best = frontier(table[table["here"]] if cost == "latency_ms" else table, cost)
    errors = 1 - best["accuracy"]
    axis.step(best[cost], errors, where="post", color=COLOURS[7], lw=1, zorder=0)
    axis.set(xscale="log", yscale="log", ylim=(3, 0.02))
    axis.margins(x=0.14)
    axis.xaxis.set_major_locator(LogLocator(numticks=9))
    axis.xaxis.set_major_formatter("{x:g}")
    _unknown(axis, table[table["accuracy"].isna()].dropna(subset=[cost])[cost])


def _unknown(axis, costs: pd.Series) -> None:
    """Ticks at the bottom, their names upright; of two close together the second is higher."""
    low, before, height = 2.8, 0.0, 8
    axis.plot(costs, [low] * len(costs), "|", color=COLOURS[6], ms=9)
    for name, value in costs.sort_values().items():
        height = 8 + 45 * (height == 8 and value < 1.3 * before)
        text = {"textcoords": "offset points", "rotation": 90, "fontsize": 7}
        axis.annotate(name, (value, low), (0, height), ha="center", va="bottom", **text)
        before = value


def _names(axis, known: pd.DataFrame, cost: str) -> None:
    """The name of each point, at the first of some places where it covers nothing."""
    axis.figure.canvas.draw()  # decides where points are
    points = axis.transData.transform([(x, 1 - y) for x, y in known[[cost, "accuracy"]].to_numpy()])
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    scale = axis.figure.dpi / 72
    for name, (x, y) in zip(known.index, points, strict=True):
        half = 2.1 * len(name) * scale
        shifts = [(0, up * side) for up in (11, 22, 33, 44) for side in (1, -1)]
        shifts += [(side * (half / scale + 8), 0) for side in (1, -1)]
        boxes = []
        for right, up in shifts:
            a, b = x + right * scale, y + up * scale
            boxes.append((a - half, b - 5 * scale, a + half, b + 5 * scale))
        free = [i for i, box in enumerate(boxes) if not any(_overlap(box, one) for one in taken)]
        chosen = min(free, key=lambda i: sum(map(abs, shifts[i]))) if free else 0
        taken.append(boxes[chosen])
        place = axis.transData.inverted().transform((x, y))
        look = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 7.5}
        axis.annotate(name, place, shifts[chosen], **look)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    apart = one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]
    return not apart


def explore(table: pd.DataFrame) -> widgets.Widget:
    """Choose a share of zeros: what is left of accuracy, bytes and milliseconds.

    `table`: a row a sparsity with `accuracy` of each way in a column of its own, `bytes`,
    `zipped`, `latency_ms`, `p10`, `p90`; the first row is the network without zeros.
    """
    shares = {f"{sparsity:.0%}": sparsity for sparsity in table.index}
    slider = widgets.SelectionSlider(options=shares, description="zeros", continuous_update=False)
    ways = [name for name in table.columns if name not in COSTS]

    def draw(sparsity: float) -> Figure:
        row = table.loc[sparsity]
        saved = f"{row['bytes'] / 1e3:,.0f} kB, zipped {row['zipped'] / 1e3:,.0f}"
        title = f"{sparsity:.0%} zeros: {saved}, {row['latency_ms']:.2g} ms"
        figure, axes = canvas(title, 3, size=(10, 2.6), width_ratios=(2, 1, 1))
        _bars(axes[0], row[ways], 1, "validation accuracy")
        axes[0].xaxis.set_major_formatter(PERCENT)
        sizes = (row[["bytes", "zipped"]] / 1e3).rename({"bytes": "as it is"})
        _bars(axes[1], sizes, table["bytes"].max() / 1e3, "file, kB")
        _bars(axes[2], row[["latency_ms"]].rename({"latency_ms": ""}), table["p90"].max(), "ms")
        ends = [[row["latency_ms"] - row["p10"]], [row["p90"] - row["latency_ms"]]]
        axes[2].errorbar([row["latency_ms"]], [0], xerr=ends, color=COLOURS[6], capsize=3)
        footnote(figure, "ms: the median of one image, p10 to p90.")
        return figure

    return interactive(draw, {"sparsity": slider})


COSTS = ("bytes", "zipped", "latency_ms", "p10", "p90")


def _bars(axis, values: pd.Series, end: float, label: str) -> None:
    places = np.arange(len(values))
    axis.barh(places, values, color=COLOURS[0], height=0.6)
    axis.set(xlabel=label, xlim=(0, 1.05 * end))
    axis.set_yticks(places, values.index)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
