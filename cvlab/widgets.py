"""Widgets: each lets the reader feel one trade-off. A notebook says the same without them."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch

from cvlab import engines, metrics, optimizers, plots, zeroshot, zoo
from cvlab.bench import time_calls
from cvlab.data import ImageData
from cvlab.train import predict


def browse(data: ImageData) -> widgets.Widget:
    """Pick a class and a page, see its images."""
    name = widgets.Dropdown(options=data.classes, description="class")
    page = widgets.IntSlider(min=1, max=50, description="page", continuous_update=False)

    def draw(name: str, page: int):
        members = np.flatnonzero(data.train.labels.numpy() == data.classes.index(name))
        chosen = np.roll(members, -24 * (page - 1))[:24]
        figure, axes = plots.canvas(name, 8, 3, size=(7, 2.9))
        for axis, index in zip(axes.flat, chosen, strict=False):
            axis.imshow(data.train.images[index].permute(1, 2, 0).numpy())
        for axis in axes.flat:
            axis.axis("off")
        return figure

    return _interactive(draw, {"name": name, "page": page})


def ravine(names: Sequence[str] = ("momentum", "Nesterov", "SGD", "Adagrad", "Adam")):
    """Choose an optimizer, its rate and its momentum; see where 60 steps lead on the ravine."""
    name = widgets.Dropdown(options=names, description="optimizer")
    rate = widgets.FloatLogSlider(
        value=0.03, min=-3, max=0.5, step=0.05, description="rate", continuous_update=False
    )
    momentum = widgets.FloatSlider(
        value=0.9, min=0, max=0.99, step=0.01, description="momentum", continuous_update=False
    )

    angle = widgets.IntSlider(
        min=0, max=45, step=5, description="turned by", continuous_update=False
    )

    def draw(name: str, rate: float, momentum: float, angle: int):
        points = optimizers.path(name, rate, momentum=momentum, angle=angle)
        distance = np.hypot(*points[-1])
        end = "left for infinity" if np.isnan(distance) else f"{distance:.2g} from the minimum"
        walk = {"name": f"rate {rate:.3g}", "angle": angle, "points": points}
        figure = plots.ravine_paths([walk], optimizers.ravine, f"{name}: after 60 steps {end}")
        figure.set_size_inches(5, 4.6)
        return figure

    controls = {"name": name, "rate": rate, "momentum": momentum, "angle": angle}
    return _interactive(draw, controls)


def shift(models: Mapping[str, torch.nn.Module], data: ImageData, first: int = 0) -> widgets.Widget:
    """Pick a validation image, move it by pixels, see what each model makes of it."""
    image = widgets.BoundedIntText(value=first, max=len(data.val) - 1, description="image")
    sliders = {
        name: widgets.IntSlider(min=-4, max=4, description=name, continuous_update=False)
        for name in ("right", "down")
    }

    def draw(image: int, right: int, down: int):
        moved = data.val.select([image]).shifted(right, down)
        batch = data.batches(moved, 1)
        says = {name: predict(model, batch)[0].softmax(1)[0] for name, model in models.items()}
        truth = data.classes[int(moved.labels[0])]
        picture = moved.images[0].permute(1, 2, 0).numpy()
        table = pd.DataFrame(says, index=data.classes).T
        title = f"True class {truth}, moved {right} to the right, {down} down"
        return plots.answers(picture, table, title)

    return _interactive(draw, {"image": image, **sliders})


def top5(models: Mapping[str, torch.nn.Module], data: ImageData) -> widgets.Widget:
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
        return plots.top_answers(
            one.images[0].permute(1, 2, 0).numpy(),
            pd.Series(likeliest.values.numpy(), names),
            pd.Series(sums.numpy(), data.classes),
            f"{about.title} on a picture of class {data.classes[int(labels[0])]}",
        )

    return _interactive(draw, {"model": model, "image": image})


def slices(trials: pd.DataFrame) -> widgets.Widget:
    """Pick two parameters of a search, see where the good trials lie.

    `trials`: columns `score`, a fraction, and the parameters.
    """
    names = [name for name in trials if name != "score" and trials[name].nunique() > 1]
    x, y = (
        widgets.Dropdown(options=names, value=names[i], description=label)
        for i, label in enumerate(("across", "up"))
    )

    def draw(x: str, y: str):
        title = f"{len(trials)} trials: where are the bright ones?"
        return plots.scatter(trials.dropna(subset=[x, y]), x, y, "score", title)

    return _interactive(draw, {"x": x, "y": y})


def speed(model: Path, images: np.ndarray) -> widgets.Widget:
    """Choose batch size and threads of ONNX Runtime, see what 30 calls take.

    `images`: at least one, float32 [N, 3, H, W].
    """
    sizes = [1, 2, 4, 8, 16, 32, 64]
    batch = widgets.SelectionSlider(options=sizes, description="batch", continuous_update=False)
    most = os.cpu_count() or 1
    threads = widgets.IntSlider(
        min=1, max=most, value=most, description="threads", continuous_update=False
    )

    def draw(batch: int, threads: int):
        feed = np.resize(images, (batch, *images.shape[1:]))  # repeated where there are too few
        seconds = time_calls(engines.onnx_runtime(model, feed, threads), 30)
        steady = np.median(seconds[15:])
        title = f"{steady * 1e3:.3g} ms for a batch of {batch}: {batch / steady:,.0f} images/s"
        return plots.first_calls(seconds, title)

    return _interactive(draw, {"batch": batch, "threads": threads})


def rungs(
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

    return _interactive(draw, {"rung": rung})


def device(models: pd.DataFrame) -> widgets.Widget:
    """Say what a device has to spare, in ms and MB; see which models fit, and the best of them.

    `models`: `accuracy`, `latency_ms`, `size_mb` by name.
    """
    most = {"latency_ms": "at most, ms", "size_mb": "at most, MB"}
    sliders = {
        column: widgets.FloatLogSlider(
            value=100, min=-2, max=2, step=0.1, description=label, continuous_update=False
        )
        for column, label in most.items()
    }

    def draw(latency_ms: float, size_mb: float):
        fits = (models["latency_ms"] <= latency_ms) & (models["size_mb"] <= size_mb)
        best = models["accuracy"][fits].idxmax() if fits.any() else "nothing"
        title = f"With {latency_ms:.3g} ms and {size_mb:.3g} MB: {best}"
        title += f", {models.loc[best, 'accuracy']:.1%}" if fits.any() else " fits"
        return plots.products(models[fits] if fits.any() else models, title)

    return _interactive(draw, sliders)


def _interactive(draw: Callable, controls: dict[str, widgets.Widget]) -> widgets.Widget:
    """Controls over a picture that `draw` makes anew whenever one of them moves.

    The picture is an Image widget: an Output widget, as `interactive_output` uses, can make a
    headless run wait for ever, because nbclient takes part in filling it.
    """
    import matplotlib.pyplot as plt

    from cvlab.run import png

    natural = {"align_self": "flex-start", "max_width": "100%"}  # a VBox would stretch it
    picture = widgets.Image(format="png", layout=natural)

    def redraw(change=None) -> None:
        figure = draw(**{name: control.value for name, control in controls.items()})
        picture.value = png(figure)
        plt.close(figure)

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    return widgets.VBox([*controls.values(), picture])
