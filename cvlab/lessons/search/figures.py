"""Figures and the widget of 04_optuna."""

import warnings
from collections.abc import Mapping

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from optuna.visualization import matplotlib as optuna_plots

from cvlab.plots import COLOURS, PERCENT, canvas, set_title
from cvlab.show import interactive


def lottery(scores: Mapping[str, np.ndarray], n: int, truth: float, title: str) -> Figure:
    """How often each score k/n comes out: name -> scores, float; `truth` is what they estimate."""
    figure, axis = canvas(title, size=(7.5, 3.6))
    edges = (np.arange(n + 2) - 0.5) / n
    for i, (name, values) in enumerate(scores.items()):
        each, alpha = np.full(len(values), 1 / len(values)), 0.75 if i else 0.45
        axis.hist(
            values, edges, weights=each, color=COLOURS[i], alpha=alpha, rwidth=0.8, label=name
        )
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


def front(table: pd.DataFrame, title: str, xlabel: str, ylabel: str, chosen: int) -> Figure:
    """Candidates by cost (`x`, log scale) and accuracy (`y`); those with `best` are joined."""
    figure, axis = canvas(title, size=(7.5, 4))
    axis.set_xscale("log")
    best = table[table["best"]].sort_values("x")
    axis.plot(table["x"], table["y"], "o", color=COLOURS[7], markersize=5, label="beaten")
    axis.step(best["x"], best["y"], "-s", where="post", color=COLOURS[0], label="Pareto front")
    ours = table.loc[chosen]
    axis.plot(ours["x"], ours["y"], "*", color=COLOURS[1], markersize=16, label="our choice")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter(PERCENT)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def explore(trials: pd.DataFrame) -> widgets.Widget:
    """Pick two parameters of a search, see where the good trials lie.

    `trials`: columns `score`, a fraction, and the parameters.
    """
    every = [name for name in trials if name != "score"]
    varied = [name for name in every if trials[name].nunique() > 1]
    names = varied if len(varied) > 1 else every  # of a search that had time for one trial
    x = widgets.Dropdown(options=names, value=names[0], description="across")
    y = widgets.Dropdown(options=names, value=names[1], description="up")

    def draw(x: str, y: str):
        title = f"{len(trials)} trials: where are the bright ones?"
        return scatter(trials.dropna(subset=[x, y]), x, y, "score", title)

    return interactive(draw, {"x": x, "y": y})


def scatter(table: pd.DataFrame, x: str, y: str, colour: str, title: str) -> Figure:
    """Two columns of a table against each other, coloured by a share in a third."""
    figure, axis = canvas(title, size=(6.5, 4))
    across, up = _places(axis, "x", table[x]), _places(axis, "y", table[y])
    points = axis.scatter(across, up, c=table[colour], cmap="viridis")
    figure.colorbar(points, label=colour, format=PERCENT)
    axis.set(xlabel=x, ylabel=y)
    return figure


def _places(axis: Axes, side: str, values: pd.Series) -> np.ndarray:
    """Where a parameter's values go: names in a row, spread a little; rates on a log scale."""
    if not pd.api.types.is_numeric_dtype(values) or values.dtype == bool:
        names = sorted(values.astype(str).unique())
        getattr(axis, f"set_{side}ticks")(range(len(names)), names)
        spread = np.random.default_rng(0).uniform(-0.15, 0.15, len(values))
        return values.astype(str).map(names.index).to_numpy() + spread
    if values.min() > 0 and values.max() / values.min() > 30:
        getattr(axis, f"set_{side}scale")("log")
    return values.to_numpy()
