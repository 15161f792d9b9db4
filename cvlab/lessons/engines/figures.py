"""Figures and the widget of 05_onnx."""

from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cvlab.bench import time_calls
from cvlab.lessons import environment
from cvlab.lessons.engines import calls
from cvlab.machine import usable_cores
from cvlab.plots import COLOURS, canvas, log_scale
from cvlab.show import interactive


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
    log_scale(axis)
    axis.margins(x=0.15)
    axis.set_yticks(range(len(table)), table.index)
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


def explore(model: Path, images: np.ndarray) -> widgets.Widget:
    """Choose batch size and threads of ONNX Runtime, see what 30 calls take.

    `images`: at least one, float32 [N, 3, H, W].
    """
    sizes = [1, 2, 4, 8, 16, 32, 64]
    batch = widgets.SelectionSlider(options=sizes, description="batch", continuous_update=False)
    most = usable_cores()
    threads = widgets.IntSlider(
        min=1, max=most, value=most, description="threads", continuous_update=False
    )

    def draw(batch: int, threads: int):
        feed = np.resize(images, (batch, *images.shape[1:]))  # repeated where there are too few
        seconds = time_calls(calls.onnx(model, feed, threads), 30)
        steady = np.median(seconds[15:])
        title = f"{steady * 1e3:.3g} ms for a batch of {batch}: {batch / steady:,.0f} images/s"
        return environment.first_calls(seconds, title)

    return interactive(draw, {"batch": batch, "threads": threads})
