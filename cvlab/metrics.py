"""How good the answers are: accuracy with its interval, and per class."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

Z = 1.959964  # standard errors from the middle of a 95 % interval to either end


@dataclass(frozen=True)
class Score:
    """Accuracy of `n` images with its 95 % Wilson interval, and the mean loss."""

    loss: float
    correct: int
    n: int

    @property
    def accuracy(self) -> float:
        """Fraction of the images that were classified rightly."""
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy by Wilson's formula (1927), good near 0 and 1 too."""
        from scipy.stats import binomtest  # slow to import

        low, high = binomtest(self.correct, self.n).proportion_ci(method="wilson")
        return float(low), float(high)

    @property
    def row(self) -> dict[str, float]:
        """`accuracy`, `low` and `high` of its interval, `n`: a row of a table or figure."""
        low, high = self.interval
        return {"accuracy": self.accuracy, "low": low, "high": high, "n": self.n}

    def __str__(self) -> str:
        """As in `88.1 % (87.4-88.7 %, n = 10,000)`."""
        low, high = self.interval
        return f"{self.accuracy:.1%} (95 % interval {low:.1%} to {high:.1%}, n = {self.n:,})"


def score(logits: Tensor, labels: Tensor) -> Score:
    """Accuracy and mean cross-entropy of logits, float [N, classes], for labels, int64 [N]."""
    correct = (logits.argmax(1) == labels).sum().item()
    return Score(F.cross_entropy(logits, labels).item(), correct, len(labels))


def over_seeds(correct: Sequence[int], n: int) -> dict[str, str]:
    """A table's cells for several trainings of one kind, from their right answers on `n` images.

    The interval treats the test images as the sample, for one typical model (all runs' right
    answers divided by the number of runs); the spread is that of the seeds.
    """
    low, high = Score(math.nan, round(np.mean(correct)), n).interval
    return {
        "test accuracy": f"{np.mean(correct) / n:.1%}",
        "95 % interval": f"{low:.1%} to {high:.1%}",
        "seeds": f"{min(correct) / n:.1%} to {max(correct) / n:.1%}",
    }


def per_class(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> pd.DataFrame:
    """Precision, recall, F1 and number of images of each class, by scikit-learn.

    A class that is never predicted has precision and F1 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    table = precision_recall_fscore_support(
        labels, logits.argmax(1), labels=range(len(classes)), zero_division=0
    )
    columns = dict(zip(("precision", "recall", "F1", "images"), table, strict=True))
    return pd.DataFrame(columns, index=pd.Index(classes, name="class"))


def by_class(answers: Mapping[str, Tensor], labels: Tensor, classes: Sequence[str]) -> pd.DataFrame:
    """Accuracy of each class, which is its recall, and of all.

    Args:
        answers: name of each engine or model to its logits, float [N, classes].
        labels: int64 [N].

    Returns:
        a row a class, the last is `all`; a column for each of `answers`.
    """
    columns = {}
    for name, logits in answers.items():
        columns[name] = per_class(logits, labels, classes)["recall"]
        columns[name]["all"] = score(logits, labels).accuracy
    return pd.DataFrame(columns)


def confusion(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> pd.DataFrame:
    """Number of images by true class (rows) and predicted class (columns)."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(labels, logits.argmax(1), labels=np.arange(len(classes)))
    return pd.DataFrame(counts, index=list(classes), columns=list(classes))


def choose(candidates: pd.DataFrame, n_val: int, cost: str = "MACs") -> tuple:
    """The cheapest of those that validation cannot tell from the best: the one-standard-error rule.

    Args:
        candidates: `val_accuracy` (mean over seeds) and the column `cost`; the index names them.
        n_val: validation images. One standard error of a share p of n images is sqrt(p(1-p)/n).

    Returns:
        the index entry of the candidate with the lowest cost among those within one standard
        error of the best accuracy; of equally cheap ones, the most accurate. Source: Breiman et
        al., "Classification and regression trees", 1984.
    """
    best = candidates["val_accuracy"].max()
    error = np.sqrt(best * (1 - best) / n_val)
    good = candidates[candidates["val_accuracy"] >= best - error]
    return good.sort_values([cost, "val_accuracy"], ascending=[True, False]).index[0]


def images_needed(p: float, gap: float) -> int:
    """Images for each of two networks, of its own, so that `gap` is two standard errors.

    `p` is their accuracy, `gap` the difference, both fractions.
    """
    return math.ceil(8 * p * (1 - p) / gap**2)


def paired_drop(reference: Tensor, other: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """By how much `reference` is more accurate than `other` on the same images, with 95 % interval.

    Only images that one gets right and the other wrong count, so the interval is much narrower
    than that of two separate accuracies. Source: Agresti and Min, "Simple improved confidence
    intervals for comparing matched proportions", 2005: half an image is added to each of the four
    cells of the table.

    Args:
        reference: logits, float [N, classes]; likewise `other`.
        labels: int64 [N].

    Returns:
        (difference, low, high), fractions; negative where `other` is better.
    """
    right, other_right = (logits.argmax(1) == labels for logits in (reference, other))
    lost = (right & ~other_right).sum().item()
    won = (other_right & ~right).sum().item()
    n, smooth_n = len(labels), len(labels) + 2
    centre = (lost - won) / smooth_n
    half = Z * math.sqrt((lost + won + 1) / smooth_n - centre**2) / math.sqrt(smooth_n)
    return (lost - won) / n, centre - half, centre + half


def paired_means(
    reference: Sequence[Tensor], others: Sequence[Tensor], labels: Tensor
) -> tuple[float, float, float]:
    """`paired_drop` for several trainings of each kind: the difference of their mean accuracies.

    An image counts by the share of trainings that get it right. The images are the sample; the
    seeds are those that were trained.

    Args:
        reference: logits, float [N, classes], of each training; likewise `others`.
        labels: int64 [N].
    """
    shares = [
        torch.stack([logits.argmax(1) == labels for logits in kind]).double().mean(0)
        for kind in (reference, others)
    ]
    apart = shares[0] - shares[1]
    half = Z * float(apart.std()) / math.sqrt(len(labels))
    return float(apart.mean()), float(apart.mean()) - half, float(apart.mean()) + half
