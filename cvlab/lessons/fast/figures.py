"""Figures and the widget of 09_fast."""

from collections.abc import Callable, Mapping

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor
from torch.linalg import svdvals

from cvlab.plots import COLOURS, MARKERS, STYLES, canvas
from cvlab.show import interactive

COLUMNS = {  # of `changes.measured`, as `cvlab.plots.bars` wants them
    "rate": "images a second",
    "after_passes": "after equal passes",
    "after_seconds": "after equal seconds",
}


def spectrum(values: Mapping[str, Tensor], title: str) -> Figure:
    """Singular values of matrices, float [n] each, over their rank; the largest of each is 1."""
    figure, axis = canvas(title, size=(7.5, 3.6))
    for i, (name, of) in enumerate(values.items()):
        ordered = (of / of.max()).sort(descending=True).values
        axis.plot(ordered, STYLES[i], color=COLOURS[i], label=name)
    axis.set(xlabel="direction, the longest first", ylabel="share of the longest (log scale)")
    axis.set(yscale="log", ylim=(1e-3, 1.5))
    axis.legend(loc="lower left", frameon=False)
    return figure


def seeds(logs: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """A dot for each training: test accuracy over seconds; see `record.table`."""
    figure, axis = canvas(title, size=(7.5, 3.6))
    for i, (name, table) in enumerate(logs.items()):
        look = {"color": COLOURS[i], "marker": MARKERS[i], "alpha": 0.8}
        axis.scatter(table["seconds"], 100 * table["accuracy"], label=name, **look)
    axis.set(xlabel="seconds of training (the log: and of answering)", ylabel="test accuracy, %")
    axis.margins(0.15)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def explore(gradient: Tensor, orthogonalise: Callable[[Tensor, int], Tensor]) -> widgets.VBox:
    """The spectrum after so many steps as a slider says; 0 is the gradient itself."""
    slider = widgets.IntSlider(min=0, max=8, value=3, description="steps")

    def draw(steps: int) -> Figure:
        values = svdvals(orthogonalise(gradient.clone(), steps))
        inside = np.mean([0.5 < value < 1.5 for value in values.tolist()])
        title = f"{steps} steps: {inside:.0%} of the directions are between 0.5 and 1.5 long"
        return spectrum({"gradient": svdvals(gradient), "step": values}, title)

    return interactive(draw, {"steps": slider})
