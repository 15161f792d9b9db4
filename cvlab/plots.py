"""Figures. Each function takes data frames or arrays, returns a matplotlib Figure, decides nothing.

The title (`suptitle`) says what to see; colours are Okabe and Ito's, told apart by the
colour-blind, with line styles and markers that survive printing in grey.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

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
    set_title(figure, title)
    return figure, axes


def set_title(figure: Figure, title: str) -> None:
    """The finding, above the figure at the left."""
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11.5)


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
    steps: bool = False,
    **axis_options,
) -> Figure:
    """Lines with their names at their right ends: name -> (x, y); `steps` holds y to the next x."""
    figure, axis = canvas(title, size=(7.5, 4))
    for i, (x, y) in enumerate(series.values()):
        look = {"color": COLOURS[i % 8], "marker": MARKERS[i % 8], "markersize": 4}
        look["drawstyle"] = "steps-post" if steps else "default"
        axis.plot(x, y, STYLES[i % 4], **look)
    axis.set(xlabel=xlabel, ylabel=ylabel, **axis_options)
    axis.margins(x=0.12)
    if xlabel == "epoch":
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.autoscale_view()
    ends = [(x[-1], y[-1]) for x, y in series.values()]
    heights = (axis.transData - axis.transAxes).transform(ends)[:, 1]  # 0..1 of the axes
    for i, (name, height) in enumerate(zip(series, apart(heights, 0.055), strict=True)):
        how = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        where = {"xy": (ends[i][0], height), "xytext": (6, 0), "va": "center"}
        axis.annotate(name, **where, **how, color=COLOURS[i % 8])
    return figure


def apart(places: Sequence[float], gap: float) -> np.ndarray:
    """The places, some of them moved up so that each is at least `gap` above the one below it."""
    moved = np.array(places, float)
    order = np.argsort(moved)
    for below, above in pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    return moved


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


def dots(
    table: pd.DataFrame, title: str, by: str, values: Mapping[str, str], hue: str | None = None
) -> Figure:
    """Every run as a dot, each mean as a bar; a row for each `by`, best mean on top.

    `values` maps a column of `table` to its label: a panel each. `hue` names a column whose
    values are told apart by colour and marker.
    """
    names = table.groupby(by)[next(iter(values))].mean().sort_values(ascending=False).index
    groups = list(table.groupby(hue, sort=False)) if hue else [(None, table)]
    size = (7.5, 0.42 * len(names) * len(groups) + (1.6 if hue else 1.3))
    figure, axes = canvas(title, len(values), size=size, sharey=True, squeeze=False)
    for axis, (column, label) in zip(axes[0], values.items(), strict=True):
        for i, (group, rows) in enumerate(groups):
            look = {"marker": MARKERS[i], "color": COLOURS[2 * i], "alpha": 0.75, "mew": 0}
            for place, name in enumerate(names):
                scores = rows[column][rows[by] == name]
                y = place + (i - (len(groups) - 1) / 2) * 0.4
                axis.plot(scores, np.full(len(scores), y), linestyle="", **look)
                line = {"color": COLOURS[1], "linewidth": 2.5}
                axis.plot(
                    [scores.mean()] * 2, [y - 0.3 / len(groups), y + 0.3 / len(groups)], **line
                )
            axis.plot([], linestyle="", label=group, **look)
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
            text = "not known" if np.isnan(value) else text
            end = 0 if np.isnan(value) else end
            axis.annotate(text, (end, place), (4, -4), textcoords="offset points", fontsize=9)
        axis.set_xlabel(label)
        axis.set_xlim(0, 1.25 * ends.max())
        axis.xaxis.set_major_locator(MaxNLocator(4))
        if shares:
            axis.xaxis.set_major_formatter(PERCENT)
        axis.grid(visible=False, axis="y")
    axes[0, 0].set_yticks(places, table.index)
    axes[0, 0].invert_yaxis()
    return figure


def ratios(table: pd.DataFrame, title: str, honest: str) -> Figure:
    """Ratios on a log scale, with their range: columns `ratio`, `low`, `high`, index the names.

    A dashed line marks the row `honest`; right of 1 ONNX Runtime seems faster, left PyTorch.
    """
    table = table.sort_values("ratio", ascending=False)
    figure, axis = canvas(title, size=(8, 0.45 * len(table) + 1.6))
    for place, (name, row) in enumerate(table.iterrows()):
        colour = COLOURS[6] if name == honest else COLOURS[1]
        axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2)
        axis.plot(row["ratio"], place, "D" if name == honest else "o", color=colour)
        text = f"{row['ratio']:.1f}x" if row["ratio"] >= 1 else f"1/{1 / row['ratio']:.1f}"
        axis.annotate(text, (row["high"], place), (8, -4), textcoords="offset points")
    axis.axvline(table.loc[honest, "ratio"], color=COLOURS[6], linestyle="--", linewidth=1)
    axis.axvline(1, color=COLOURS[7], linewidth=1)
    axis.set_xscale("log")
    axis.margins(x=0.15)
    axis.set_yticks(range(len(table)), table.index)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.invert_yaxis()
    axis.set_xlabel("PyTorch's time / ONNX Runtime's time (log scale)")
    axis.grid(visible=False, axis="y")
    return figure


def asynchronous(title: str) -> Figure:
    """A drawing, nothing measured: a CPU orders work from a GPU and does not wait for it."""
    launch, work, calls = 0.3, 2.0, 4
    figure, axis = canvas(title, size=(8, 2.8))
    orders = [(i * launch, 0.85 * launch) for i in range(calls)]
    tasks = [(launch + i * work, 0.97 * work) for i in range(calls)]
    axis.broken_barh(orders, (0.7, 0.5), color=COLOURS[0])
    axis.broken_barh(tasks, (0, 0.5), color=COLOURS[1])
    ends = {"clock stops here": calls * launch, "should stop here": launch + calls * work}
    for (text, end), side in zip(ends.items(), ("left", "right"), strict=True):
        axis.axvline(end, color=COLOURS[6], linestyle="--", linewidth=1)
        shift = 4 if side == "left" else -4
        axis.annotate(text, (end, 1.4), (shift, 0), textcoords="offset points", ha=side)
    axis.set_yticks([0.25, 0.95], ["GPU computes", "CPU orders"])
    axis.set(xlabel="time", ylim=(-0.1, 1.7), xticks=[])
    axis.grid(visible=False)
    return figure


def channel_levels(table: pd.DataFrame, title: str) -> Figure:
    """Every channel a dot, in the row of its layer (`title`), at its `levels` on a log scale."""
    names = list(table.groupby("title")["levels"].median().sort_values().index)
    figure, axis = canvas(title, size=(8, 0.5 * len(names) + 1.5))
    spread = np.random.default_rng(0).uniform(-0.28, 0.28, len(table))
    levels = table["levels"].clip(lower=0.05)
    axis.plot(levels, table["title"].map(names.index) + spread, ".", color=COLOURS[0], alpha=0.45)
    axis.axvline(0.5, color=COLOURS[1], linestyle="--", linewidth=1.5)
    axis.annotate("left of this: all weights become 0", (0.5, -0.5), (-5, 0), **_beside("right"))
    axis.set(xscale="log", xlim=(0.02, 180))
    axis.set_xticks([0.05, 0.5, 1, 10, 127], ["0", "0.5", "1", "10", "127"])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.8)
    axis.set_xlabel(
        "steps that a channel's largest weight is long, if its layer has one scale (log)"
    )
    axis.grid(visible=False, axis="y")
    return figure


def _beside(side: str) -> dict:
    """How a note is put at one side of a line."""
    return {"textcoords": "offset points", "ha": side, "fontsize": 9, "color": COLOURS[1]}


def draws(table: pd.DataFrame, title: str, x: str, y: str, xlabel: str, ylabel: str) -> Figure:
    """Every draw as a dot over `x` (log scale), medians joined, the range of draws as a band."""
    figure, axis = canvas(title, size=(7.5, 3.8))
    groups = table.groupby(x)[y]
    median, look = groups.median(), {"color": COLOURS[4], "alpha": 0.35, "lw": 0}
    axis.fill_between(median.index, groups.min(), groups.max(), **look)
    axis.plot(table[x], table[y], "o", color=COLOURS[0], alpha=0.6, markersize=4)
    axis.plot(median.index, median, "-", color=COLOURS[0])
    axis.set_xscale("log")
    axis.set_xticks(list(median.index), [f"{n:g}" for n in median.index])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(table[y].min() - 0.02, 1))
    return figure


def bubbles(table: pd.DataFrame, title: str, xlabel: str, ylabel: str) -> Figure:
    """Accuracy (column `y`) over cost (`x`, log scale); circles have the area `area`, in MB."""
    figure, axis = canvas(title, size=(7.5, 4.2))
    axis.set_xscale("log")
    axis.scatter(
        table["x"], table["y"], s=8 * table["area"], color=COLOURS[4], alpha=0.6, ec=COLOURS[0]
    )
    axis.plot(table["x"], table["y"], ".", color=COLOURS[6])
    places = np.column_stack([np.log10(table["x"]), 5 * table["y"]])
    for place, (name, row) in zip(places, table.iterrows(), strict=True):
        away = 8 + np.sqrt(8 * row["area"] / np.pi)
        nearest = np.argsort(np.hypot(*(places - place).T))[:2][-1]
        side = 1 if row["y"] >= table["y"].iloc[nearest] else -1  # labels keep off the neighbour
        how = {"textcoords": "offset points", "ha": "center", "va": "center"}
        text = f"{name}, {row['area']:,.0f} MB"
        axis.annotate(text, (row["x"], row["y"]), (0, side * away), **how)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.margins(x=0.25, y=0.35)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter(PERCENT)
    return figure


def products(table: pd.DataFrame, title: str) -> Figure:
    """Accuracy over latency, the area of a circle its size; steps of one `kind` are joined.

    Columns `kind`, `accuracy`, `latency_ms`, `size_mb`; rows of a kind in the order of its steps.
    """
    figure, axis = canvas(title, size=(8.5, 4.4))
    axis.set_xscale("log")
    above = table["latency_ms"].rank().astype(int) % 2 == 1  # neighbours' labels keep apart
    for i, (kind, rows) in enumerate(table.groupby("kind", sort=False)):
        x, y = rows["latency_ms"], rows["accuracy"]
        axis.plot(x, y, STYLES[i], color=COLOURS[i], marker=MARKERS[i], markersize=3, label=kind)
        axis.scatter(x, y, s=20 * rows["size_mb"], color=COLOURS[i], alpha=0.35)
        if y.max() - y.min() > 0.2:  # and off a steep line
            above[rows.index] = y > y.mean()
    for name, row in table.iterrows():
        size = f"{row['size_mb']:,.0f}" if row["size_mb"] >= 10 else f"{row['size_mb']:.2g}"
        side = 1 if above[name] else -1
        place = (row["latency_ms"], row["accuracy"])
        away = 10 + np.sqrt(20 * row["size_mb"] / np.pi)
        how = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 9}
        axis.annotate(f"{name}, {size} MB", place, (0, side * away), **how)
    axis.set(xlabel="latency of one image, ms (log scale)", ylabel="accuracy", ylim=(-0.1, 1.15))
    axis.margins(x=0.2)
    axis.set_yticks(np.arange(0, 1.01, 0.2))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter(PERCENT)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    footnote(figure, "Area of the circles: size of the file.")
    return figure


def accuracies(tables: Mapping[str, pd.DataFrame], title: str, xlabel: str) -> Figure:
    """Accuracies with 95 % intervals: a row for each index entry, a colour for each table.

    Columns `accuracy`, `low`, `high`, `n`.
    """
    names = list(dict.fromkeys(name for table in tables.values() for name in table.index))
    figure, axis = canvas(title, size=(8, 0.28 * len(names) * len(tables) + 1.6))
    for i, (label, table) in enumerate(tables.items()):
        places = [names.index(name) + (i - (len(tables) - 1) / 2) * 0.22 for name in table.index]
        low, high = table["accuracy"] - table["low"], table["high"] - table["accuracy"]
        look = {"fmt": MARKERS[i], "color": COLOURS[i], "capsize": 3, "label": label}
        axis.errorbar(table["accuracy"], places, xerr=[low, high], **look)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PERCENT)
    axis.set_xlabel(f"{xlabel}, n = {int(next(iter(tables.values()))['n'].min()):,}")
    axis.grid(visible=False, axis="y")
    if len(tables) > 1:
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def samples(shares: Mapping[str, np.ndarray], title: str, xlabel: str) -> Figure:
    """Histograms of accuracies measured in many small samples, with their means."""
    figure, axis = canvas(title, size=(7.5, 3.4))
    edges = np.arange(0, 1.0001, 0.04) - 0.01
    for i, (name, values) in enumerate(shares.items()):
        look = {"color": COLOURS[i], "histtype": "stepfilled" if i == 0 else "step"}
        axis.hist(values, edges, label=name, alpha=0.4 if i == 0 else 1, linewidth=2, **look)
        axis.axvline(np.mean(values), color=COLOURS[i], linestyle=STYLES[i])
    everything = np.concatenate(list(shares.values()))
    axis.set_xlim(max(0, everything.min() - 0.08), min(1, everything.max() + 0.08))
    axis.xaxis.set_major_formatter(PERCENT)
    axis.set(xlabel=xlabel, ylabel="samples")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    footnote(figure, "Lines: all images together.")
    return figure


def lottery(scores: Mapping[str, np.ndarray], n: int, truth: float, title: str) -> Figure:
    """How often each score k/n comes out: name -> scores, float; `truth` is what they estimate."""
    figure, axis = canvas(title, size=(7.5, 3.6))
    edges = (np.arange(n + 2) - 0.5) / n
    for i, (name, values) in enumerate(scores.items()):
        weights = np.full(len(values), 1 / len(values))
        look = {"color": COLOURS[i], "alpha": 0.75 if i else 0.45, "rwidth": 0.8, "label": name}
        axis.hist(values, edges, weights=weights, **look)
    axis.axvline(truth, color=COLOURS[6], linestyle="--", label=f"all images: {truth:.1%}")
    everything = np.concatenate(list(scores.values()))
    axis.set_xlim(everything.min() - 1 / n, everything.max() + 1 / n)
    axis.xaxis.set_major_formatter(PERCENT)
    axis.yaxis.set_major_formatter(PERCENT)
    axis.set(xlabel=f"accuracy on {n} images", ylabel="share of the draws")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def by_optuna(kind: str, study, title: str, **options) -> Figure:
    """A figure of `optuna.visualization.matplotlib`, `plot_<kind>`, with our title and style.

    The objective must be a share: it is shown in percent.
    """
    import warnings

    from optuna.visualization import matplotlib as optuna_plots

    with plt.rc_context(), warnings.catch_warnings():  # Optuna changes the style of all figures
        warnings.simplefilter("ignore")
        axes = np.ravel(getattr(optuna_plots, f"plot_{kind}")(study, **options))
    figure = axes[0].figure
    if kind != "param_importances":
        axes[0].yaxis.set_major_formatter(PERCENT)
    if kind in ("optimization_history", "intermediate_values"):
        axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes:
        for place in ("left", "center"):
            axis.set_title("", loc=place)
        axis.set_facecolor("white")
        axis.grid(visible=True, color="#DDDDDD")
        axis.xaxis.set_minor_formatter("")  # on log scales they lie over each other
        if axis.get_legend() and len(axis.get_legend().texts) != 2:
            axis.get_legend().remove()
    if kind != "parallel_coordinate":  # its axes are laid over each other
        figure.set_layout_engine("constrained")
    figure.set_size_inches(max(8.5, 2.2 * len(axes)), 4.2)
    set_title(figure, title)
    return figure


def front(table: pd.DataFrame, title: str, xlabel: str, ylabel: str, chosen=None) -> Figure:
    """Candidates by cost (`x`, log scale) and accuracy (`y`); those with `best` are joined."""
    figure, axis = canvas(title, size=(7.5, 4))
    axis.set_xscale("log")
    best = table[table["best"]].sort_values("x")
    axis.plot(table["x"], table["y"], "o", color=COLOURS[7], markersize=5, label="beaten in both")
    axis.step(best["x"], best["y"], "-s", where="post", color=COLOURS[0], label="Pareto front")
    if chosen is not None:
        place = table.loc[chosen]
        look = {"color": COLOURS[1], "markersize": 16, "linestyle": "", "label": "our choice"}
        axis.plot(place["x"], place["y"], "*", **look)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter(PERCENT)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def scatter(table: pd.DataFrame, x: str, y: str, colour: str, title: str) -> Figure:
    """Two columns of a table against each other, coloured by a share in a third."""
    figure, axis = canvas(title, size=(6.5, 4))
    points = axis.scatter(
        _places(axis, "x", table[x]), _places(axis, "y", table[y]), c=table[colour], cmap="viridis"
    )
    figure.colorbar(points, label=colour, format=PERCENT)
    axis.set(xlabel=x, ylabel=y)
    return figure


def _places(axis, side: str, values: pd.Series) -> np.ndarray:
    """Where a parameter's values go: names in a row, spread a little; rates on a log scale."""
    if not pd.api.types.is_numeric_dtype(values) or values.dtype == bool:
        names = sorted(values.astype(str).unique())
        getattr(axis, f"set_{side}ticks")(range(len(names)), names)
        spread = np.random.default_rng(0).uniform(-0.15, 0.15, len(values))
        return values.astype(str).map(names.index).to_numpy() + spread
    if values.min() > 0 and values.max() / values.min() > 30:
        getattr(axis, f"set_{side}scale")("log")
    return values.to_numpy()


def shares(table: pd.DataFrame, title: str) -> Figure:
    """A table of shares as a heat map."""
    figure, axis = canvas(title, size=(8.5, 0.45 * len(table) + 1.2))
    _shares(axis, table)
    axis.set(xlabel="", ylabel="")
    return figure


def top_answers(picture: np.ndarray, names: pd.Series, sums: pd.Series, title: str) -> Figure:
    """A picture, [H, W, 3], its likeliest ImageNet classes, and what each CIFAR class adds up to.

    `names` and `sums` are probabilities by name.
    """
    figure, axes = canvas(title, 3, size=(9, 2.9), width_ratios=[1, 1.2, 1.2])
    axes[0].imshow(picture)
    axes[0].axis("off")
    panels = {"the 5 likeliest of 1,000": names, "added up": sums}
    for axis, (label, values) in zip(axes[1:], panels.items(), strict=True):
        axis.barh(values.index, values, color=COLOURS[0], height=0.65)
        axis.invert_yaxis()
        axis.set_xlim(0, 1)
        axis.set_title(label, loc="left", fontsize=9.5)
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
                line = {"color": colour, "label": part, "markersize": 3.5}
                axis.plot(epochs["epoch"], epochs[f"{part}_{what}"], look, **line)
            axis.set_ylabel(what)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        row[0].set_title(f"{name}: {history.seconds:.0f} s in all", loc="left", fontsize=9.5)
        row[0].set_ylim(0)
        row[1].set_ylim(0, 1.03)
        row[1].yaxis.set_major_formatter(PERCENT)
    axes[0, 0].legend(frameon=False)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    return figure


def pictures(images: Mapping[str, np.ndarray], title: str, columns: int = 5) -> Figure:
    """Named pictures in rows, each pixel a square: grey [H, W] in 0..1 or colour [H, W, 3]."""
    rows = -(-len(images) // columns)
    figure, axes = canvas(title, columns, rows, size=(9, 9 / columns * rows + 0.8), squeeze=False)
    for axis, (name, image) in zip(axes.flat, images.items(), strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name, loc="left", fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    return figure


def answers(picture: np.ndarray, probabilities: pd.DataFrame, title: str) -> Figure:
    """A picture, [H, W, 3], and what each model (rows) gives each class (columns)."""
    size = (8.5, 0.4 * len(probabilities) + 1.6)
    figure, (left, right) = canvas(title, 2, size=size, width_ratios=[1, 3])
    left.imshow(picture)
    left.axis("off")
    _shares(right, probabilities)
    for row, column in enumerate(probabilities.to_numpy().argmax(1)):
        frame = plt.Rectangle((column, row), 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=2.5)
        right.add_patch(frame)
    return figure


def confusion(counts: pd.DataFrame, title: str) -> Figure:
    """True classes as rows, predicted ones as columns; colour and numbers are shares of a row."""
    shares = counts.div(counts.sum(axis=1), axis=0)
    figure, axis = canvas(title, size=(0.75 * len(counts) + 2.2, 0.5 * len(counts) + 1.6))
    _shares(axis, shares)
    axis.set(xlabel="predicted", ylabel="true")
    return figure


def _shares(axis, table: pd.DataFrame) -> None:
    """A table of shares as a heat map, with its numbers where they have room."""
    import seaborn

    look = {"annot": len(table.columns) <= 20, "fmt": ".0%", "cmap": "Blues", "cbar": False}
    seaborn.heatmap(table, ax=axis, vmin=0, vmax=1, linewidths=0.5, **look)
    axis.grid(visible=False)
    axis.tick_params(axis="y", rotation=0)


def shift_curves(panels: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Consistency over distance, one panel each: columns `pooling`, `shift_1` to `shift_4`."""
    figure, axes = canvas(title, len(panels), size=(8, 3.6), sharey=True, squeeze=False)
    for axis, (name, table) in zip(axes[0], panels.items(), strict=True):
        columns = [column for column in table if column.startswith("shift_")]
        distances = [int(column.removeprefix("shift_")) for column in columns]
        for i, (pooling, rows) in enumerate(table.groupby("pooling", sort=False)):
            middle, low, high = rows[columns].mean(), rows[columns].min(), rows[columns].max()
            look = {"color": COLOURS[i], "marker": MARKERS[i], "label": pooling, "markersize": 4}
            axis.plot(distances, middle, STYLES[i % 4], **look)
            axis.fill_between(distances, low, high, color=COLOURS[i], alpha=0.15, lw=0)
        axis.set_title(name, loc="left", fontsize=9.5)
        axis.set(xlabel="the image moves by, pixels", xticks=distances)
        axis.yaxis.set_major_formatter(PERCENT)
    axes[0, 0].set_ylabel("images that keep their class")
    axes[0, 0].legend(frameon=False)
    footnote(figure, "Mean of four directions, validation images. Band: lowest to highest seed.")
    return figure


def losses(histories: Mapping, title: str = "Mean training loss of each epoch") -> Figure:
    """Mean training loss over epochs: name -> History."""
    epochs = {name: history.epochs for name, history in histories.items()}
    series = {name: (e["epoch"].tolist(), e["train_loss"].tolist()) for name, e in epochs.items()}
    return curves(series, title, "epoch", "mean training loss (cross-entropy)")


def live(run, what: str, draw: Callable, every: int = 1) -> Callable:
    """A `watch` for `fit` that redraws `draw(history)` in place after each `every` epochs.

    It lets two seconds pass between drawings. Show the finished figure under the same name
    afterwards; a headless run, which keeps the last drawing only, then ends with one figure.
    """
    drawn = [-math.inf]

    def watch(history, optimizer) -> None:
        due = len(history.epoch_rows) % every == 0 and time.monotonic() - drawn[0] >= 2
        if due:
            run.show(draw(history), what)
            drawn[0] = time.monotonic()

    return watch
