"""The pooling experiment: one network, four ways to halve the image, judged in every respect."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from cvlab.bench import compare
from cvlab.data import ImageData, Split
from cvlab.lessons.environment import peak_memory
from cvlab.metrics import over_seeds, paired_means, score
from cvlab.models import POOLINGS, BlurPool, PoolingNet, summary
from cvlab.plots import COLOURS, MARKERS, PERCENT, STYLES, canvas, footnote, heat_map
from cvlab.show import interactive
from cvlab.train import History, Training, autocast, choose_precision, evaluate, fit, predict

Runs = Mapping[tuple[str, int], tuple[PoolingNet, History]]  # (pooling, seed) -> what came of it
EVAL_BATCH = 250
TIMED_ROUNDS = 10
MEMORY_BATCH = 128
DISTANCES = (1, 2, 3, 4)
FRESH = """
import sys
from pathlib import Path
import torch
from cvlab import store
path, given, answer = map(Path, sys.argv[1:])
with torch.inference_mode():
    torch.save(store.load(path).model(torch.load(given, weights_only=True)), answer)
"""
READS = {"stride": 0, "max": 4, "avg": 4, "blur": 20}  # numbers that pooling reads for each result


def zone_plate(size: int = 128) -> Tensor:
    """Rings that get finer outwards, down to 2 pixels a ring at the edge: float [size, size], 0..1.

    Half the pixels can show the inner half of them only; whatever else a halved picture shows
    is an alias.
    """
    line = torch.linspace(-1, 1, size)
    return 0.5 + 0.5 * torch.cos(torch.pi * size / 4 * (line**2 + line[:, None] ** 2))


def halve(image: Tensor, pooling: str) -> Tensor:
    """One step of pooling on a picture, float [H, W]: [H/2, W/2]."""
    if pooling == "stride":
        return image[::2, ::2]
    return POOLINGS[pooling](1)(image[None, None])[0, 0]


def train(
    data: ImageData,
    pooling: str,
    width: int,
    training: Training,
    device: str | torch.device = "cpu",
    watch: Callable | None = None,
    joined: bool = False,
) -> tuple[PoolingNet, History]:
    """Train a `PoolingNet`; with one seed all kinds have the same start and the same batches.

    Args:
        data: images and classes.
        pooling: a name in `cvlab.models.POOLINGS`.
        width: channels of the first stage.
        training: how; its seed is that of the weights too.
        device: to train on.
        watch: see `fit`.
        joined: see `join_edges`.
    """
    torch.manual_seed(training.seed)
    model = PoolingNet(len(data.classes), pooling, width)
    if joined:
        join_edges(model)
    return model, fit(model, data, training, device=device, watch=watch, what=None)


def join_edges(model: PoolingNet) -> PoolingNet:
    """Join the right edge of every feature map to the left one, the lower to the upper: no border.

    The weights stay; the model is changed in place.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "circular"
        elif isinstance(layer, BlurPool):
            layer.edge = "circular"
    return model


def judge(runs: Runs, data: ImageData, device: str | torch.device = "cpu") -> pd.DataFrame:
    """What training made of each network, seen on training and validation images as they are.

    Returns:
        one row a run: `pooling`, `seed`, `train_accuracy`, `val_accuracy`, `overfit_gap` (their
        difference), all fractions, `seconds` of training, and `shift_1` to `shift_4`, see
        `shift_consistency`.
    """
    rows = []
    for (pooling, seed), (model, history) in runs.items():
        seen = evaluate(model, data.batches(data.train, EVAL_BATCH, device=device)).accuracy
        new = evaluate(model, data.batches("val", EVAL_BATCH, device=device)).accuracy
        row = {"pooling": pooling, "seed": seed, "train_accuracy": seen, "val_accuracy": new}
        row |= {"overfit_gap": seen - new, "seconds": history.seconds}
        same = shift_consistency(model, data, DISTANCES, device)
        rows.append(row | {f"shift_{distance}": share for distance, share in same.items()})
    return pd.DataFrame(rows)


def shift_consistency(
    model: torch.nn.Module, data: ImageData, distances: Sequence[int], device="cpu"
) -> dict[int, float]:
    """Share of validation images that keep their predicted class, right or wrong, when they move.

    For each distance, in pixels, moved to the left, right, up and down; the mean of the four.
    Measure and name as in Zhang, "Making convolutional networks shift-invariant again", 2019.
    """

    def answers(images: Split) -> Tensor:
        return predict(model, data.batches(images, EVAL_BATCH, device=device))[0].argmax(1)

    still, shares = answers(data.val), {}
    for far in distances:
        moves = ((far, 0), (-far, 0), (0, far), (0, -far))
        same = [answers(shifted(data.val, *move)) == still for move in moves]
        shares[far] = torch.stack(same).float().mean().item()
    return shares


def shifted(split: Split, right: int, down: int) -> Split:
    """The images moved by so many pixels (negative: left, up); the edge is reflected.

    Raises:
        ValueError: a shift is larger than half the image.
    """
    height, width = split.images.shape[2:]
    if max(abs(right), abs(down)) > min(height, width) // 2:
        raise ValueError(f"shifted({right}, {down}) was given for {width} x {height} images.")
    rows, columns = (
        np.pad(np.arange(side), abs(by), mode="reflect")[abs(by) - by :][:side]
        for side, by in ((height, down), (width, right))
    )
    return Split(split.images[:, :, rows][..., columns], split.labels)


def same_answer(model: nn.Module, images: Tensor, shift: int = 1) -> Tensor:
    """Share of images that keep their class, rolled to the right: what leaves comes in again."""
    with torch.inference_mode():
        before = model(images).argmax(1)
        after = model(torch.roll(images, shift, dims=3)).argmax(1)
    return (before == after).float().mean()


def other_rates(
    plain: Runs, data: ImageData, width: int, training: Training, rates: Sequence[float], device
) -> pd.DataFrame:
    """Validation accuracy at each rate, of the first seed: a row a rate, a column a kind.

    What `plain` holds, trained at `training.lr`, is not trained again.
    """
    table = pd.DataFrame(index=pd.Index(rates, name="rate"))
    for pooling in POOLINGS:
        for lr in rates:
            net = plain[pooling, training.seed][0]
            if lr != training.lr:
                net, _ = train(data, pooling, width, replace(training, lr=lr), device)
            score = evaluate(net, data.batches("val", EVAL_BATCH, device=device))
            table.loc[lr, pooling] = score.accuracy
    return table


def most_moved(model: torch.nn.Module, data: ImageData) -> int:
    """The validation image whose probabilities change most when it moves one pixel to the right."""

    def says(images: Split) -> Tensor:
        return predict(model, data.batches(images, EVAL_BATCH))[0].softmax(1)

    return int((says(data.val) - says(shifted(data.val, 1, 0))).abs().sum(1).argmax())


def costs(poolings: Sequence[str], classes: int, width: int, device) -> pd.DataFrame:
    """What each kind costs whatever it learns: one row a kind.

    Returns:
        `parameters`; `MACs`, multiply-accumulate operations for one image, one for each number
        that pooling reads included; `training_MB`, the peak memory of a forward and backward
        pass of 128 images; `ms` of such a pass, timed in turns, `p10` to `p90`.
    """
    tasks = {
        kind: partial(forward_backward, kind, classes, width, str(device)) for kind in poolings
    }
    layers = {kind: summary(PoolingNet(classes, kind, width)) for kind in poolings}
    table = pd.DataFrame({kind: t[["parameters", "MACs"]].sum() for kind, t in layers.items()}).T
    pooled = width * (16**2 + 2 * 8**2 + 4 * 4**2)  # results of pooling in three stages
    table["MACs"] += pooled * pd.Series(READS)
    table["training_MB"] = peak_memory(tasks)
    times = compare({kind: task() for kind, task in tasks.items()}, rounds=TIMED_ROUNDS)
    return table.join(times[["ms", "p10", "p90"]])


def forward_backward(pooling: str, classes: int, width: int, device: str) -> Callable[[], None]:
    """A call that runs a fresh `PoolingNet` forward and backward on noise, as `fit` does."""
    model = PoolingNet(classes, pooling, width).to(device, memory_format=torch.channels_last)
    images = torch.randn(MEMORY_BATCH, 3, 32, 32, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(MEMORY_BATCH, dtype=torch.long, device=device)
    precision = choose_precision(images.device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with autocast(images.device, precision):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()

    return step


def comparison(judged: pd.DataFrame) -> pd.DataFrame:
    """`judge`'s table for the eye: one row a kind, means over seeds, lowest and highest seed."""
    rows = {}
    for pooling, runs in judged.groupby("pooling", sort=False):
        val = runs["val_accuracy"]
        rows[pooling] = {
            "train": f"{runs['train_accuracy'].mean():.1%}",
            "validation": f"{val.mean():.1%}",
            "seeds": f"{val.min():.1%} to {val.max():.1%}",
            "overfit gap": f"{100 * runs['overfit_gap'].mean():.1f} points",
            "same answer after 1 pixel": f"{runs['shift_1'].mean():.1%}",
            "seconds a run": f"{runs['seconds'].median():.1f}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def test_table(
    answers: Mapping[tuple[str, str, int], tuple[Tensor, Tensor]], order: Sequence, chosen: tuple
) -> pd.DataFrame:
    """Accuracy on the test set: one row a configuration, in the given order.

    Args:
        answers: (pooling, images, seed) -> (logits, labels), as `cvlab.train.predict` gives them.
        order: (pooling, images) of the rows.
        chosen: that which the others are compared with, on the same images.

    Returns:
        `test accuracy` (mean over seeds), its `95 % interval` for one typical model (the images
        are the sample), `seeds` (lowest to highest), `behind the chosen`, see
        `cvlab.metrics.paired_means`, and whether its interval leaves 0 out.
    """
    logits = {key: [a[0] for k, a in answers.items() if k[:2] == key] for key in order}
    labels, rows = next(iter(answers.values()))[1], {}
    for key in order:
        row = over_seeds([score(one, labels).correct for one in logits[key]], len(labels))
        apart, low, high = (100 * x for x in paired_means(logits[chosen], logits[key], labels))
        row["behind the chosen, points"] = f"{apart:.1f} ({low:.1f} to {high:.1f})"
        row["told apart"] = "yes" if low > 0 or high < 0 else ""
        rows[key] = row if key != chosen else row | {"behind the chosen, points": "chosen"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["pooling", "images"])


def plot_shift_curves(panels: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Consistency over distance, one panel each: columns `pooling`, `shift_1` to `shift_4`."""
    figure, axes = canvas(title, len(panels), size=(8, 3.6), sharey=True, squeeze=False)
    for axis, (name, table) in zip(axes[0], panels.items(), strict=True):
        columns = [f"shift_{distance}" for distance in DISTANCES]
        for i, (pooling, rows) in enumerate(table.groupby("pooling", sort=False)):
            middle, low, high = rows[columns].mean(), rows[columns].min(), rows[columns].max()
            line = f"{MARKERS[i]}{STYLES[i % 4]}"
            axis.plot(DISTANCES, middle, line, color=COLOURS[i], markersize=4, label=pooling)
            axis.fill_between(DISTANCES, low, high, color=COLOURS[i], alpha=0.15, lw=0)
        axis.set_title(name, loc="left", fontsize=9.5)
        axis.set(xlabel="the image moves by, pixels", xticks=DISTANCES)
        axis.yaxis.set_major_formatter(PERCENT)
    axes[0, 0].set_ylabel("images that keep their class")
    axes[0, 0].legend(frameon=False)
    footnote(figure, "Mean of four directions, validation images. Band: lowest to highest seed.")
    return figure


def plot_answers(picture: np.ndarray, probabilities: pd.DataFrame, title: str) -> Figure:
    """A picture, [H, W, 3], and what each model (rows) gives each class (columns)."""
    size = (8.5, 0.4 * len(probabilities) + 1.6)
    figure, (left, right) = canvas(title, 2, size=size, width_ratios=[1, 3])
    left.imshow(picture)
    left.axis("off")
    heat_map(right, probabilities)
    for row, column in enumerate(probabilities.to_numpy().argmax(1)):
        frame = plt.Rectangle((column, row), 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=2.5)
        right.add_patch(frame)
    return figure


def explore(models: Mapping[str, torch.nn.Module], data: ImageData, first: int) -> widgets.Widget:
    """Pick a validation image, move it by pixels, see what each model makes of it."""
    image = widgets.BoundedIntText(value=first, max=len(data.val) - 1, description="image")
    sliders = {
        name: widgets.IntSlider(min=-4, max=4, description=name, continuous_update=False)
        for name in ("right", "down")
    }

    def draw(image: int, right: int, down: int):
        moved = shifted(data.val.select([image]), right, down)
        batch = data.batches(moved, 1)
        says = {name: predict(model, batch)[0].softmax(1)[0] for name, model in models.items()}
        truth = data.classes[int(moved.labels[0])]
        picture = moved.images[0].permute(1, 2, 0).numpy()
        table = pd.DataFrame(says, index=data.classes).T
        title = f"True class {truth}, moved {right} to the right, {down} down"
        return plot_answers(picture, table, title)

    return interactive(draw, {"image": image, **sliders})


def logits_in_fresh_process(path: Path, images: Tensor) -> Tensor:
    """Logits [N, classes] of normalised `images` [N, 3, H, W], float32, by a process of its own.

    Raises:
        RuntimeError: the process failed; the message holds what it said.
    """
    with TemporaryDirectory() as folder:
        given, answer = Path(folder) / "images.pt", Path(folder) / "logits.pt"
        torch.save(images.cpu(), given)
        command = [sys.executable, "-c", FRESH, *map(str, (path, given, answer))]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"The fresh process failed: {done.stderr.strip()[-800:]}")
        return torch.load(answer, weights_only=True)
