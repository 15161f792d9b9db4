"""Figures and the widget of 04_optuna."""

import warnings
from collections.abc import Mapping

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.visualization import matplotlib as optuna_plots

from cvlab.metrics import Z
from cvlab.plots import COLOURS, PERCENT, canvas, curves, log_scale, set_title
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
    log_scale(axis)
    best = table[table["best"]].sort_values("x")
    axis.plot(table["x"], table["y"], "o", color=COLOURS[7], markersize=5, label="beaten")
    axis.step(best["x"], best["y"], "-s", where="post", color=COLOURS[0], label="Pareto front")
    ours = table.loc[chosen]
    axis.plot(ours["x"], ours["y"], "*", color=COLOURS[1], markersize=16, label="our choice")
    axis.set(xlabel=xlabel, ylabel=ylabel)
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


def again(checks: pd.DataFrame, title: str) -> Figure:
    """Accuracies of the same points with the table's seeds (across) and trained `again` (up)."""
    figure, axis = canvas(title, size=(6.5, 4))
    ends = [checks.to_numpy().min(), checks.to_numpy().max()]
    axis.plot(ends, ends, color=COLOURS[7], linewidth=1, label="no change")
    for i, name in enumerate(checks.columns.drop("again")):
        axis.plot(checks[name], checks["again"], "os"[i], color=COLOURS[i], alpha=0.75, label=name)
    axis.xaxis.set_major_formatter(PERCENT)
    axis.yaxis.set_major_formatter(PERCENT)
    axis.set(xlabel="accuracy in the table", ylabel="trained again with a third seed")
    axis.legend(loc="lower right")
    return figure


def bands(regrets: pd.DataFrame, title: str, xlabel: str, ylabel: str) -> Figure:
    """Mean over seeds at each time, one line a method, with the mean's 95 % interval as a band.

    `regrets`: a row for each (method, seed), a column for each time.
    """
    means, half = (regrets.groupby("method", sort=False).agg(how).T for how in ("mean", "sem"))
    lines = {name: (means.index.tolist(), means[name].tolist()) for name in means}
    top = float((means + Z * half).max(axis=None))
    figure = curves(lines, title, xlabel, ylabel, ylim=(0, top))
    axis, times = figure.axes[0], means.index.to_numpy()
    for name, colour in zip(means, COLOURS, strict=False):
        low, high = (means[name] + side * Z * half[name] for side in (-1, 1))
        axis.fill_between(times, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.set_xlim(left=0)
    return figure


def differences(apart: pd.Series, title: str, xlabel: str) -> Figure:
    """How often each difference came out, in points, those below 0 in another colour; the mean."""
    figure, axis = canvas(title, size=(7.5, 3.6))
    step = max(0.5, float(np.ceil(np.ptp(apart) / 12) / 2))  # no bar has both sides of 0
    edges = np.arange(np.floor(apart.min() / step), np.ceil(apart.max() / step) + 1.5) * step
    counts, _ = np.histogram(apart, edges)
    colours = [COLOURS[1] if edge < 0 else COLOURS[0] for edge in edges[:-1]]
    axis.bar(edges[:-1], counts, 0.9 * step, align="edge", color=colours, alpha=0.75)
    mean, half = apart.mean(), Z * apart.sem()
    axis.axvspan(mean - half, mean + half, color=COLOURS[7], alpha=0.4, linewidth=0)
    axis.axvline(mean, color=COLOURS[6], linestyle="--", label=f"mean {mean:+.1f} ± {half:.1f}")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel=xlabel, ylabel="pairs of searches")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
