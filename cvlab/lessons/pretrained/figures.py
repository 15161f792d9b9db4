"""Figures and the widget of 03_pretrained_zoo."""

from collections.abc import Mapping

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from cvlab.data import ImageData
from cvlab.lessons.pretrained import zeroshot, zoo
from cvlab.plots import (
    COLOURS,
    MARKERS,
    PERCENT,
    STYLES,
    bars,
    canvas,
    footnote,
    log_scale,
    pictures,
)
from cvlab.show import interactive
from cvlab.train import predict


def cost(costs: pd.DataFrame) -> Figure:
    """Time, with p10 to p90, peak memory and published accuracy; a row a network."""
    slow, greedy, best = (costs[column].idxmax() for column in ("ms", "memory", "top1"))
    title = f"Slowest: {slow}. Most memory: {greedy}. Most accurate: {best}"
    panels = {"ms": "ms for one image, p10 to p90", "memory": "peak memory, MB"}
    return bars(costs.sort_values("ms"), title, panels | {"top1": "ImageNet top-1, as published"})


def trade_off(costs: pd.DataFrame) -> Figure:
    """Accuracy over time; discs have the area of the file, rings are torchvision's first recipe."""
    points = costs.dropna(subset="top1")
    quick, slow = points.loc[points["ms"].idxmin()], points.loc[points["ms"].idxmax()]
    times = slow.ms / quick.ms
    least, most = (row["top1" if np.isnan(row["first"]) else "first"] for row in (quick, slow))
    title = f"{slow.name}: {times:.0f} times the time of {quick.name}, "
    title += f"{100 * (most - least):+.0f} points by first recipes"
    figure, axis = canvas(title, size=(7.5, 4.2))
    log_scale(axis)
    x, y, size = points["ms"], points["top1"], 8 * points["MB"]
    axis.scatter(x, y, s=size, color=COLOURS[4], alpha=0.6, ec=COLOURS[0])
    axis.plot(x, y, ".", color=COLOURS[6])
    axis.vlines(x, points["first"], y, color=COLOURS[1], lw=1)
    axis.plot(x, points["first"], "o", mfc="none", color=COLOURS[1], ms=5)
    places = np.column_stack([np.log10(x), 5 * y])
    for place, (name, row) in zip(places, points.iterrows(), strict=True):
        away = 8 + np.sqrt(8 * row["MB"] / np.pi)
        nearest = np.argsort(np.hypot(*(places - place).T))[:2][-1]
        side = 1 if row["top1"] >= points["top1"].iloc[nearest] else -1  # off the neighbour
        ring = side < 0 and row["first"] < row["top1"]  # then the label goes under the ring
        at, away = (row["ms"], row["first"] if ring else row["top1"]), 10 if ring else away
        text, to = f"{name}, {row['MB']:,.0f} MB", (0, side * away)
        axis.annotate(text, at, to, textcoords="offset points", ha="center", va="center")
    axis.set(xlabel="latency of one image, ms (log scale)", ylabel="ImageNet top-1, as published")
    axis.margins(x=0.25, y=0.35)
    axis.yaxis.set_major_formatter(PERCENT)
    footnote(figure, "Disc: the weights used here, its area the file. Ring: torchvision's first.")
    return figure


def throughput(speed: pd.DataFrame) -> Figure:
    """`cost.throughput`: how many times as fast an image is in a batch, with 95 % intervals."""
    last = speed[speed["batch"] == speed["batch"].max()].set_index("network")["times"]
    title = f"Large batches: {last.idxmax()} {last.max():.1f} times as fast, "
    figure, axis = canvas(title + f"{last.idxmin()} {last.min():.1f} times", size=(8, 4))
    for i, (name, rows) in enumerate(speed.groupby("network", sort=False)):
        x, y = rows["batch"], rows["times"]
        reach, look = [y - rows["low"], rows["high"] - y], MARKERS[i % 8] + STYLES[i % 4]
        axis.errorbar(x, y, reach, fmt=look, color=COLOURS[i % 8], capsize=3, label=name)
    axis.axhline(1, color=COLOURS[7], lw=1)
    axis.set(xlabel="images in a batch", ylabel="images a second, relative to batch 1", ylim=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks := speed["batch"].unique(), ticks)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def gains(table: pd.DataFrame, title: str) -> Figure:
    """`zeroshot.gains`: paired differences with their 95 % intervals, a row each."""
    figure, axis = canvas(title, size=(8, 0.5 * len(table) + 1.4))
    places, x = np.arange(len(table)), table["points"]
    reach = [x - table["low"], table["high"] - x]
    axis.errorbar(x, places, xerr=reach, fmt="o", color=COLOURS[0], capsize=3)
    axis.axvline(0, color=COLOURS[6], lw=1)
    names = [f"{name}\nn = {n:,.0f}" for name, n in table["n"].items()]
    axis.set_yticks(places, names)
    axis.set_ylim(len(table) - 0.5, -0.5)
    axis.set_xlabel("points of accuracy gained on the same images, 95 % interval")
    axis.grid(visible=False, axis="y")
    return figure


def seen(images: torch.Tensor, about: zoo.Card, other: ImageData) -> Figure:
    """Pictures as a network takes them that are normalised rightly, wrongly, or the reverse.

    Args:
        images: uint8 [N, 3, H, W].
        about: the network's card.
        other: a view with the wrong mean and deviation.
    """
    right, theirs = ((torch.tensor(v.mean), torch.tensor(v.std)) for v in (about, other))
    given = images.permute(0, 2, 3, 1) / 255  # [N, H, W, 3]
    ways = {
        "as trained": given,
        "the mistake": (given - theirs[0]) / theirs[1] * right[1] + right[0],
        "its reverse": (given - right[0]) / right[1] * theirs[1] + theirs[0],
    }
    named = {}
    for how, batch in ways.items():
        for i, image in enumerate(batch):  # only the first of a row has a name
            named[how if i == 0 else " " * len(named)] = image.clamp(0, 1).numpy()
    factor = float((right[1] / theirs[1]).mean())
    title = f"The mistake: {factor:.1f} times the contrast. Its reverse: {1 / factor:.1f} times"
    return pictures(named, title, len(images))


def accuracies(tables: Mapping[str, pd.DataFrame], title: str, xlabel: str) -> Figure:
    """`accuracy`, `low`, `high`, `n`: a row for each index entry, a colour for each table."""
    names = list(dict.fromkeys(name for table in tables.values() for name in table.index))
    figure, axis = canvas(title, size=(8, 0.28 * len(names) * len(tables) + 1.6))
    for i, (label, table) in enumerate(tables.items()):
        places = [names.index(name) + (i - (len(tables) - 1) / 2) * 0.22 for name in table.index]
        x = table["accuracy"]
        bars = [x - table["low"], table["high"] - x]
        axis.errorbar(
            x, places, xerr=bars, fmt=MARKERS[i], color=COLOURS[i], capsize=3, label=label
        )
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
        kind, alpha = ("stepfilled", 0.4) if i == 0 else ("step", 1)
        axis.hist(values, edges, color=COLOURS[i], histtype=kind, alpha=alpha, lw=2, label=name)
        axis.axvline(np.mean(values), color=COLOURS[i], linestyle=STYLES[i])
    everything = np.concatenate(list(shares.values()))
    axis.set_xlim(max(0, everything.min() - 0.08), min(1, everything.max() + 0.08))
    axis.xaxis.set_major_formatter(PERCENT)
    axis.set(xlabel=xlabel, ylabel="samples")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    footnote(figure, "Lines: all images together.")
    return figure


def top_answers(picture: np.ndarray, names: pd.Series, sums: pd.Series, title: str) -> Figure:
    """A picture, [H, W, 3], its likeliest ImageNet classes, and the sum of each CIFAR class."""
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


def explore(models: Mapping[str, torch.nn.Module], data: ImageData) -> widgets.Widget:
    """Pick a network of the zoo and an image; see its 5 likeliest classes and their sums."""
    model = widgets.Dropdown(options=list(models), description="network")
    image = widgets.BoundedIntText(value=0, max=len(data.val) - 1, description="image")
    members = zeroshot.groups(data.classes)

    def draw(model: str, image: int):
        about, one = zoo.card(model), data.val.select([image])
        logits, labels = predict(models[model], zoo.as_seen_by(about, data).batches(one, 1))
        likeliest = logits.softmax(1)[0].topk(5)
        names = [zoo.categories()[index] for index in likeliest.indices]
        sums = zeroshot.group_scores(logits, members, "sum")[0]
        return top_answers(
            one.images[0].permute(1, 2, 0).numpy(),
            pd.Series(likeliest.values.numpy(), names),
            pd.Series(sums.numpy(), data.classes),
            f"{about.title} on a picture of class {data.classes[int(labels[0])]}",
        )

    return interactive(draw, {"model": model, "image": image})
