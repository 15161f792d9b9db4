"""How good an INT8 model is beside its float model: the same images, the same clock."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cvlab import runtime
from cvlab.bench import Contestant, race
from cvlab.lessons.int8.quantize import Recipe, Source, batch_size
from cvlab.metrics import paired_drop, score
from cvlab.show import progress

FLOAT = "fp32"


@dataclass(frozen=True)
class Examples:
    """Images as a network takes them, in memory: resizing them takes longer than INT8 does.

    Used as `cvlab.data.Batches` are.
    """

    images: Tensor  # normalised float32 [N, 3, H, W]
    labels: Tensor  # int64 [N]
    batch_size: int = 25

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.labels) // self.batch_size)

    def epoch(self):
        """Yield (images, labels) of each batch."""
        return zip(
            self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True
        )

    @property
    def key(self) -> str:
        """Names these images: others have another key."""
        return sha256(self.images.numpy().tobytes()).hexdigest()[:12]

    def take(self, n: int) -> "Examples":
        """The first `n` images."""
        return Examples(self.images[:n], self.labels[:n], self.batch_size)


def examples(batches) -> Examples:
    """All batches of a `cvlab.data.Batches`, kept."""
    images, labels = zip(*((x.contiguous(), y) for x, y in batches.epoch()), strict=True)
    return Examples(torch.cat(images).cpu(), torch.cat(labels).cpu(), batches.batch_size)


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


def unoptimised(model: Path, some: Examples, logits: Tensor) -> float:
    """Share of images whose answer stays when ONNX Runtime rewrites nothing of the graph.

    Rewriting should only save time. Where this is less than about 0.98, it changes numbers.
    """
    plain, labels = runtime.predict(model, some, level="none")
    return (plain.argmax(1) == logits[: len(labels)].argmax(1)).double().mean().item()


def ladder(
    source: Source,
    recipes: Mapping[str, Recipe],
    some: Examples,
    *,
    check: int = 250,
    what: str | None = None,
) -> tuple[pd.DataFrame, dict[str, Tensor], dict[str, Path]]:
    """Quantise by each recipe and compare with the float model.

    Args:
        source: the float model.
        recipes: by name.
        some: validation images.
        check: so many of them also go through the graph that is not optimised.
        what: label of a progress bar; None shows none.

    Returns:
        a table, one row for `FLOAT` and each recipe: see `compared`, with `size_mb`, `seconds` to
        make the model (calibration is paid by the first that needs it) and `unoptimised`; then
        logits and files by name.
    """
    rows, logits, files = {}, {}, {FLOAT: source.float_model}
    with progress(1 + len(recipes), what, "model") as bar:
        for name in (FLOAT, *recipes):
            began = time.perf_counter()
            if name in recipes:
                files[name] = source.make(recipes[name])
            seconds = time.perf_counter() - began
            logits[name], labels = runtime.predict(files[name], some)
            row = {"size_mb": files[name].stat().st_size / 1e6, "seconds": seconds}
            row["unoptimised"] = unoptimised(files[name], some.take(check), logits[name])
            rows[name] = compared(logits[FLOAT], logits[name], labels) | row
            bar.update()
    return pd.DataFrame(rows).T.rename_axis("model"), logits, files


def speed(
    files: Mapping[str, Path],
    images: np.ndarray,
    threads: int,
    *,
    rounds: int = 12,
    what: str | None = None,
) -> pd.DataFrame:
    """Race ONNX models on one image and on the batch; the first is the reference.

    Args:
        files: by name.
        images: normalised float32 [N, 3, H, W].
        threads: of each model.
        rounds: of `cvlab.bench.race`.
        what: label of progress bars; None shows none.

    Returns:
        a row a model: `latency_ms` of one image (or of the batch that a model insists on) with
        `p10` and `p90`, `throughput` in images a
        second, `speedup` of the batch over the first model's with its 95 % interval `speedup_low`
        to `speedup_high`.
    """
    one = batch_size(runtime.session(next(iter(files.values()))), 1)
    single, batch = (
        race(
            {
                name: Contestant(partial(runtime.call, file), given, threads)
                for name, file in files.items()
            },
            rounds=rounds,
            what=what and f"{what}, batch {len(given)}",
        )
        for given in (images[:one], images)
    )
    table = single[["ms", "p10", "p90"]].rename(columns={"ms": "latency_ms"})
    table["throughput"] = batch["images/s"]
    names = {"ratio": "speedup", "low": "speedup_low", "high": "speedup_high"}
    return table.join(batch[[*names]].rename(columns=names)).rename_axis("model")


def by_calibration(
    model: Path,
    pool: Tensor,
    counts: Sequence[int],
    some: Examples,
    folder: Path,
    *,
    recipe: Recipe,
    draws: int = 3,
    seed: int = 0,
    what: str | None = None,
) -> pd.DataFrame:
    """How much calibration is enough: the same recipe with other images, drawn from `pool`.

    Returns:
        a row for each count and draw: `images`, `draw` and see `compared`.
    """
    reference, labels = runtime.predict(model, some)
    rows, random = [], np.random.default_rng(seed)
    with progress(len(counts) * draws, what, "model") as bar:
        for count in counts:
            for draw in range(draws):
                chosen = random.choice(len(pool), min(count, len(pool)), replace=False)
                source = Source(model, pool[chosen], folder)
                logits, _ = runtime.predict(source.make(recipe), some)
                rows.append({"images": count, "draw": draw} | compared(reference, logits, labels))
                bar.update()
    return pd.DataFrame(rows)
