"""Figures and the widget of 06_int8."""

from collections.abc import Mapping, Sequence

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from cvlab import metrics, plots
from cvlab.plots import COLOURS, canvas
from cvlab.show import interactive


def channel_levels(table: pd.DataFrame, title: str) -> Figure:
    """Every channel a dot, in the row of its layer (`title`), at its `levels` on a log scale."""
    names = list(table.groupby("title")["levels"].median().sort_values().index)
    figure, axis = canvas(title, size=(8, 0.5 * len(names) + 1.5))
    spread = np.random.default_rng(0).uniform(-0.28, 0.28, len(table))
    levels = table["levels"].clip(lower=0.05)
    axis.plot(levels, table["title"].map(names.index) + spread, ".", color=COLOURS[0], alpha=0.45)
    axis.axvline(0.5, color=COLOURS[1], linestyle="--", linewidth=1.5)
    note, place = "left of this: all weights become 0", (0.5, -0.5)
    beside = axis.annotate(note, place, (-5, 0), textcoords="offset points", ha="right")
    beside.set(fontsize=9, color=COLOURS[1])
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


def draws(table: pd.DataFrame, title: str, x: str, y: str, xlabel: str, ylabel: str) -> Figure:
    """Every draw as a dot over `x` (log scale), medians joined, the range of draws as a band."""
    figure, axis = canvas(title, size=(7.5, 3.8))
    groups = table.groupby(x)[y]
    median, low, high = groups.median(), groups.min(), groups.max()
    axis.fill_between(median.index, low, high, color=COLOURS[4], alpha=0.35, lw=0)
    axis.plot(table[x], table[y], "o", color=COLOURS[0], alpha=0.6, markersize=4)
    axis.plot(median.index, median, "-", color=COLOURS[0])
    axis.set_xscale("log")
    axis.set_xticks(list(median.index), [f"{n:g}" for n in median.index])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(table[y].min() - 0.02, 1))
    return figure


def explore(
    answers: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    classes: Sequence[str],
    megabytes: Mapping[str, float],
) -> widgets.Widget:
    """Choose a model by name; see what it confuses, and what it weighs.

    `answers`: logits, float [N, classes], by name; `labels`: int64 [N].
    """
    rung = widgets.Dropdown(options=list(answers), description="model")

    def draw(rung: str):
        right = metrics.score(answers[rung], labels)
        title = (
            f"{rung}: {megabytes[rung]:.1f} MB, {right.accuracy:.1%} of {right.n:,} images right"
        )
        return plots.confusion(metrics.confusion(answers[rung], labels, classes), title)

    return interactive(draw, {"rung": rung})
