"""How good an INT8 model is beside its float model: the same images, the same clock."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cvlab.lessons.engines import calls
from cvlab.lessons.int8.quantize import Recipe, Source
from cvlab.metrics import paired_drop, score
from cvlab.runtime import Model
from cvlab.show import progress

FLOAT = "fp32"

Kept = list[tuple[Tensor, Tensor]]  # batches: normalised float32 [N, 3, H, W], labels int64 [N]


def in_memory(batches: Iterable[tuple[Tensor, Tensor]]) -> Kept:
    """Batches as a network takes them, kept: resizing them takes longer than INT8 does."""
    return [(images.contiguous(), labels) for images, labels in batches]


def first(batches: Kept, n: int) -> Kept:
    """Whole batches, as few as hold `n` images."""
    return batches[: -(-n // len(batches[0][1]))]


def stacked(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The images of all batches, float32 [N, 3, H, W]."""
    return torch.cat([images for images, _ in batches]).contiguous()


def digest(batches: Kept) -> str:
    """Names these images: others have another name."""
    found = sha256()
    for images, _ in batches:
        found.update(images.numpy())
    return found.hexdigest()[:12]


def compared(reference: Tensor, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """A table's row: accuracy with its interval, and what changed against `reference`.

    Returns:
        `accuracy`, `low`, `high`, `n`; `agreement`, the share of images with the reference's
        answer; `kl`, see `divergence`; `drop_pp` with `drop_low` and `drop_high`, percentage
        points that the reference is better, see `cvlab.metrics.paired_drop`.
    """
    drop, low, high = (100 * value for value in paired_drop(reference, logits, labels))
    same = (reference.argmax(1) == logits.argmax(1)).double().mean().item()
    row = score(logits, labels).row | {"agreement": same, "kl": divergence(reference, logits)}
    return row | {"drop_pp": drop, "drop_low": low, "drop_high": high}


def divergence(reference: Tensor, logits: Tensor) -> float:
    """Mean Kullback-Leibler divergence of the class probabilities from the reference's, in nats.

    It sees changes long before an answer flips, so it ranks models on few images.
    """
    p, q = reference.double().log_softmax(1), logits.double().log_softmax(1)
    return (p.exp() * (p - q)).sum(1).mean().item()


def against(reference: Model, batches: Kept) -> Callable[[Model], dict[str, float]]:
    """A function that gives the row of a model, see `compared`; `reference` is run once, now."""
    expected, labels = reference.predict(batches)
    return lambda model: compared(expected, model.predict(batches)[0], labels)


def comparison(
    answers: Mapping[str, Tensor], labels: Tensor, files: Mapping[str, Path]
) -> pd.DataFrame:
    """Accuracy and size of models beside the first of them.

    Args:
        answers: logits, float32 [N, classes], by name.
        labels: int64 [N].
        files: by the same names.

    Returns:
        a row a model: see `compared`, with `size_mb`.
    """
    reference = next(iter(answers.values()))
    rows = {name: compared(reference, logits, labels) for name, logits in answers.items()}
    return pd.DataFrame(rows).T.assign(size_mb=[megabytes(files[name]) for name in answers])


def megabytes(file: Path) -> float:
    """What a model takes on the disk; an .xml of OpenVINO has its weights beside it."""
    parts = [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]
    return sum(part.stat().st_size for part in parts) / 1e6


def speed(
    models: Mapping[str, Model],
    images: np.ndarray,
    threads: int,
    *,
    rounds: int = 12,
    what: str | None = None,
) -> pd.DataFrame:
    """Race ONNX models on one image and on the batch; the first is the reference.

    Returns:
        columns of `cvlab.lessons.engines.calls.timed`: latency of one image (or of the batch that a
        model insists on), throughput and speedup of the batch, normalised float32 [N, 3, H, W].
    """
    ways = {name: partial(calls.onnx, model.path) for name, model in models.items()}
    one = next(iter(models.values())).batch_size(1)
    single, batch = (
        calls.timed(
            ways, given, threads, rounds=rounds, what=what and f"{what}, batch {len(given)}"
        )
        for given in (images[:one], images)
    )
    latency = ["latency_ms", "p10", "p90"]
    return single[latency].join(batch.drop(columns=latency))


def side_by_side(
    models: Mapping[str, Model], batches, images: np.ndarray, threads: int, *, rounds: int = 12
) -> pd.DataFrame:
    """Accuracy on `batches` and size, see `comparison`; time for `images`, see `speed`."""
    answers = {}
    for name, model in models.items():
        answers[name], labels = model.predict(batches, what=name)
    table = comparison(answers, labels, {name: model.path for name, model in models.items()})
    return table.join(speed(models, images, threads, rounds=rounds, what="race"))


def unoptimised(model: Model, batches: Kept, logits: Tensor) -> float:
    """Share of images whose answer stays when ONNX Runtime rewrites nothing of the graph.

    Rewriting should only save time. Where this is less than about 0.98, it changes numbers.
    """
    plain, labels = Model(model.path, level="none").predict(batches)
    return (plain.argmax(1) == logits[: len(labels)].argmax(1)).double().mean().item()


def ladder(
    source: Source,
    recipes: Mapping[str, Recipe],
    batches: Kept,
    *,
    check: int = 250,
    what: str | None = None,
) -> tuple[pd.DataFrame, dict[str, Tensor], dict[str, Model]]:
    """Quantise by each recipe and compare with the float model on validation images.

    The first `check` images also go through the graph that is not optimised.

    Returns:
        a table, one row for `FLOAT` and each recipe: see `comparison`, with `seconds` to make the
        model (calibration is paid by the first that needs it) and `unoptimised`; then logits and
        models by name.
    """
    models, logits, seconds, same = {FLOAT: source.float_model}, {}, {}, {}
    with progress(1 + len(recipes), what, "model") as bar:
        for name in (FLOAT, *recipes):
            began = time.perf_counter()
            if name in recipes:
                models[name] = source.make(recipes[name])
            seconds[name] = time.perf_counter() - began
            logits[name], labels = models[name].predict(batches)
            same[name] = unoptimised(models[name], first(batches, check), logits[name])
            bar.update()
    table = comparison(logits, labels, {name: model.path for name, model in models.items()})
    table = table.assign(seconds=pd.Series(seconds), unoptimised=pd.Series(same))
    return table.rename_axis("model"), logits, models


def by_calibration(
    model: Model,
    pool: Tensor,
    counts: Sequence[int],
    batches: Kept,
    folder: Path,
    *,
    draws: int = 3,
    seed: int = 0,
    what: str | None = None,
) -> pd.DataFrame:
    """How much calibration is enough: the default recipe with images drawn from `pool`.

    Returns:
        a row for each count and draw: `images`, `draw` and see `compared`.
    """
    rows, random, judged = [], np.random.default_rng(seed), against(model, batches)
    with progress(len(counts) * draws, what, "model") as bar:
        for count in counts:
            for draw in range(draws):
                chosen = random.choice(len(pool), min(count, len(pool)), replace=False)
                made = Source(model, pool[chosen], folder).make(Recipe())
                rows.append({"images": count, "draw": draw} | judged(made))
                bar.update()
    return pd.DataFrame(rows)
