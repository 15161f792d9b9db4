"""A teacher's answers as labels: Hinton, Vinyals and Dean, "Distilling the knowledge", 2015."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvlab.data import ImageData, Split
from cvlab.metrics import score
from cvlab.models import ChannelMax, Classifier, conv_block
from cvlab.paths import replace_atomically
from cvlab.run import Run
from cvlab.runtime import Model
from cvlab.train import Training, fit, predict

Loss = Callable[[Tensor, Tensor], Tensor]


def distillation_loss(
    logits: Tensor, teacher: Tensor, labels: Tensor, temperature: float, weight: float
) -> Tensor:
    """`weight` of what the teacher says, the rest of what the labels say.

    The teacher's part is the Kullback-Leibler divergence of both softmaxes at `temperature`, times
    its square: the gradients of a soft target shrink with that.

    Args:
        logits: of the student, float [N, classes]; `teacher` likewise.
        labels: int64 [N].
        temperature: divides both logits.
        weight: from 0, labels alone, to 1, the teacher alone.
    """
    soft, target = (F.log_softmax(one / temperature, 1) for one in (logits, teacher))
    told = F.kl_div(soft, target, reduction="batchmean", log_target=True)
    return weight * temperature**2 * told + (1 - weight) * F.cross_entropy(logits, labels)


def answers(teacher: Model, seen: ImageData, split: Split, folder: Path) -> Tensor:
    """The teacher's logits for each image, float [N, classes], kept in `folder`.

    The mean of those for the image and for its mirror image: the student will meet either.

    Args:
        teacher: takes the images as `seen` feeds them.
        split: of the training images.
    """
    digest = sha256(teacher.path.read_bytes() + split.labels.numpy().tobytes())
    digest.update(split.images[:: max(1, len(split) // 50)].numpy().tobytes())
    file = folder / f"teacher-{digest.hexdigest()[:12]}.pt"
    if not file.is_file():
        sides = {"teacher": split, "teacher, mirrored": Split(split.images.flip(3), split.labels)}
        told = [teacher.predict(seen.batches(one, 25), what=w)[0] for w, one in sides.items()]
        replace_atomically(lambda path: torch.save(sum(told) / 2, path), file)
    return torch.load(file, weights_only=True)


def taught(data: ImageData, logits: Tensor) -> ImageData:
    """`data` whose training labels are rows: the class, then the teacher's logits; see `lesson`."""
    labels = torch.cat([data.train.labels[:, None].float(), logits], 1)
    return replace(data, train=Split(data.train.images, labels))


def lesson(temperature: float, weight: float, loss: Callable = distillation_loss) -> Loss:
    """A loss for `cvlab.train.fit` on what `taught` made; `loss` as `distillation_loss`."""

    def of(logits: Tensor, labels: Tensor) -> Tensor:
        return loss(logits, labels[:, 1:], labels[:, 0].long(), temperature, weight)

    return of


def student(
    data: ImageData, training: Training, run: Run, *, loss: Loss | None = None, what: str | None
) -> nn.Module:
    """A new `Student`, trained for `training`, whose seed decides its weights too."""
    torch.manual_seed(training.seed)
    net = Student(len(data.classes))
    fit(net, data, training, device=run.device, loss=loss, what=what)
    return net


def lessons(temperatures: Sequence[float], shares: Sequence[float]) -> list[tuple[float, float]]:
    """Pairs to try: each temperature with the first share, a middle one with the other shares."""
    middle = sorted(temperatures)[len(temperatures) // 2]
    return [(one, shares[0]) for one in temperatures] + [(middle, one) for one in shares[1:]]


def try_lessons(
    pairs: Sequence[tuple[float, float]],
    data: ImageData,
    training: Training,
    run: Run,
    loss: Callable = distillation_loss,
) -> pd.DataFrame:
    """A student for each pair of temperature and teacher's share, judged on `data.val`.

    Args:
        pairs: see `lessons`.
        data: made by `taught`.
        training: the same for all.
        run: its device.
        loss: as `distillation_loss`.

    Returns:
        a row each: `temperature`, `weight`, `accuracy`, its interval `low` to `high`, `n`.
    """
    rows = []
    for temperature, weight in pairs:
        how, what = lesson(temperature, weight, loss), f"temperature {temperature:g}, {weight:g}"
        net = student(data, training, run, loss=how, what=what)
        judged = score(*predict(net, data.batches("val", 250))).row
        rows.append({"temperature": temperature, "weight": weight} | judged)
    return pd.DataFrame(rows)


def every(data: ImageData, n: int) -> ImageData:
    """`data` with `n` training images, evenly spaced among all; all of them if there are fewer."""
    rows = np.linspace(0, len(data.train) - 1, min(n, len(data.train))).round().astype(int)
    return replace(data, train=data.train.select(rows))


class Student(Classifier):
    """Six convolutions with as many weights as MLPerf Tiny's bytes hold in INT8, and room to spare.

    Plain ones of 3 x 3. Tried for six passes over 12,000 images (one seed, 5,000 validation
    images), networks of 73,000 to 80,000 weights: plain 73.0 % right, with two residual blocks
    70.6 %, mostly depthwise 62.7 %.
    """

    def __init__(self, classes: int = 10):
        super().__init__()
        self.arguments = {"classes": classes}
        self.features = nn.Sequential(
            conv_block(3, 24),
            conv_block(24, 40, pooling="max"),
            conv_block(40, 40),
            conv_block(40, 48, pooling="max"),
            conv_block(48, 48),
            conv_block(48, 56),
        )
        self.classifier = nn.Sequential(ChannelMax(), nn.Flatten(), nn.Linear(56, classes))
