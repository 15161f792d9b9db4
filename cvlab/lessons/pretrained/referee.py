"""The student report, read by a referee: what its own numbers prove, beside what was measured."""

import math
from collections.abc import Callable
from itertools import combinations

import pandas as pd
from scipy.stats import binomtest

from cvlab.lessons.pretrained.zeroshot import told
from cvlab.metrics import Score, images_needed

IMAGES = 50
RIGHT = pd.DataFrame(  # of these images; the report gives the shares
    {"top-1": [3, 15, 18], "top-5": [7, 26, 34]}, index=["AlexNet", "VGG16", "ResNet50"]
)


def interval(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of `right` answers in `n`."""
    return Score(math.nan, right, n).interval


def shares(interval: Callable[[int, int], tuple[float, float]]) -> dict[str, pd.DataFrame]:
    """The report's accuracies: `top-1` and `top-5` to `accuracy`, `low`, `high`, `n` by network."""
    tables = {}
    for asked, column in RIGHT.items():
        ends = [interval(right, IMAGES) for right in column]
        tables[asked] = pd.DataFrame(ends, index=RIGHT.index, columns=["low", "high"])
        tables[asked] = tables[asked].assign(accuracy=column / IMAGES, n=IMAGES)
    return tables


def p_values(worse: int, better: int, n: int) -> tuple[float, float]:
    """The lowest and the highest p of two networks that were asked about the same `n` images.

    McNemar's exact test takes only images that one gets right and the other wrong. Where these
    were not kept, they are at least the difference, and at most what the two totals leave room for.
    """
    most = min(worse, n - better)  # images that only the worse network gets right
    ahead = better - worse
    low, high = (binomtest(only, 2 * only + ahead).pvalue for only in (0, most))
    return float(low), float(high)


def pairs() -> pd.DataFrame:
    """Each two networks of the report: how many images lie between them, and is that shown?"""
    rows = []
    for asked, column in RIGHT.items():
        for worse, better in combinations(RIGHT.index, 2):
            low, high = p_values(column[worse], column[better], IMAGES)
            verdict = "shown" if high < 0.05 else "not shown" if low >= 0.05 else "answers not kept"
            ahead = column[better] - column[worse]
            rows.append([asked, f"{better} over {worse}", ahead, low, high, verdict])
    columns = ["asked", "pair", "images ahead", "p at least", "p at most", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def verdicts(costs: pd.DataFrame, recall: pd.DataFrame, normalised: pd.Series) -> pd.DataFrame:
    """What the report states, looked at again, a row each.

    Args:
        costs: `ms` and `memory` by network.
        recall: of classes (columns) by the rules `sum` and `mean` (rows).
        normalised: the row of `zeroshot.gains` for a network's own normalisation.
    """
    top1 = pairs().query("asked == 'top-1'").set_index("pair")
    alexnet = top1["p at most"].filter(like="AlexNet").max()
    vgg, resnet = RIGHT.loc[["VGG16", "ResNet50"], "top-1"] / IMAGES
    half = images_needed((vgg + resnet) / 2, resnet - vgg)  # two standard errors: power one half
    ours = costs.loc[[name for name in RIGHT.index if name in costs.index]]
    slow, greedy, frugal = ours["ms"].idxmax(), ours["memory"].idxmax(), ours["memory"].idxmin()
    asked = recall[["dog", "cat", "horse"]].map("{:.0%}".format)
    known = "; ".join(f"by {rule}: {', '.join(asked.loc[rule])}" for rule in ("sum", "mean"))
    rows = {
        "VGG16 and ResNet50 know more than AlexNet": (
            f"p at most {alexnet:.2g}, whichever images they were",
            *("stands, for inputs normalised wrongly", "each network's own statistics"),
        ),
        "ResNet50 knows more than VGG16": (
            *(f"p at least {top1['p at least']['ResNet50 over VGG16']:.2g}", "not shown"),
            f"{half} images each would have, every second time; about {2 * half}, four times in "
            "five; fewer, if paired",
        ),
        "VGG16 takes the least memory (its table), the most (its conclusion)": (
            *(f"here least: {frugal}, most: {greedy}", "contradicts itself"),
            "the peak of a fresh process, for each",
        ),
        "12.6 seconds for one image": (
            *(f"here the slowest of them, {slow}: {ours['ms'].max():.0f} ms", "not shown"),
            "warmed up: many calls, their median and spread",
        ),
        "dogs are known, cats are not, horses not at all": (
            *(f"ours, dog, cat, horse {known}", "not shown: the rule moves it"),
            "the rule told, and a second one",
        ),
        "mean and deviation 0.5 for all networks": (
            *(f"our reverse of it: own statistics {told(normalised)}", "a mistake of unknown size"),
            "each network's own statistics",
        ),
    }
    columns = ["looked at again", "verdict", "what would have shown it"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.rename_axis("the report").reset_index()
