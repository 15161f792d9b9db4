"""What the scores of 04's searches owe to luck, and what its networks reach with equal budgets."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.trial import FixedTrial, TrialState
from torch import nn

from cvlab.data import ImageData
from cvlab.lessons.search import tune
from cvlab.metrics import paired_drop, score
from cvlab.show import each
from cvlab.train import History, fit, predict

REPLAYED = {  # the winners that two reports list: points of the reports' space
    "units 56 and 31, kernel 7": {
        "n_layers": 2,
        "n_units_l0": 56,
        "n_units_l1": 31,
        "kernel_size": 7,
        "optimizer": "RMSprop",
        "lr": 2.94e-5,
    },
    "302 units, kernel 3": {  # its kernel is not known here
        "n_layers": 1,
        "n_units_l0": 302,
        "kernel_size": 3,
        "optimizer": "RMSprop",
        "lr": 6.1e-4,
    },
}


def equals(
    params: Mapping[str, Any], data: ImageData, seeds: Sequence[int], epochs: int, device
) -> np.ndarray:
    """Train one point of the reports' space with each seed: right answers, bool [seeds, images].

    All are asked about the same images, those of `data.val`.
    """
    right = []
    for seed in each(seeds, "equals", "training"):
        torch.manual_seed(seed)
        model, training = tune.reports_space(FixedTrial(params), len(data.classes))
        fit(model, data, replace(training, epochs=epochs, seed=seed), device=device, what=None)
        logits, labels = predict(model, data.batches("val", 250, device=device))
        right.append((logits.argmax(1) == labels).numpy())
    return np.array(right)


def lottery(right: np.ndarray, n: int, seed: int, draws: int = 3000) -> dict[str, np.ndarray]:
    """Play searches among equals, whose right answers are bool [networks, images], on `n` images.

    Returns:
        `each` score, [draws, networks], if all see the same images in a draw; the `best` of a draw,
        and what that winner has `kept`, its accuracy on all images; `best_of_own`, if each
        sees images of its own. Shares, float [draws].
    """
    random = np.random.default_rng(seed)
    images = right.shape[1]
    scores = right[:, random.integers(images, size=(draws, n))].mean(2).T
    own = [one[random.integers(images, size=(draws, n))].mean(1) for one in right]
    kept = right.mean(1)[scores.argmax(1)]
    return {"each": scores, "best": scores.max(1), "kept": kept, "best_of_own": np.max(own, 0)}


def with_dropout(name: str, share: float) -> dict[str, Any]:
    """All parameters of one of `REPLAYED`, with this dropout after each layer."""
    told = REPLAYED[name]
    return told | {f"dropout_l{i}": share for i in range(told["n_layers"])}


def replay(objective: tune.Objective, seeds: Sequence[int]) -> pd.DataFrame:
    """Train what two reports list as their winners, `REPLAYED`, with each seed.

    Their dropouts are not known here: both ends of the range that they searched are tried.

    Returns:
        one row a training: `winner`, `seed`, `accuracy`.
    """
    plan = [(name, share, seed) for name in REPLAYED for share in (0.2, 0.5) for seed in seeds]
    rows = []
    for name, share, seed in each(plan, "replay", "training"):
        score = replace(objective, seed=seed)(FixedTrial(with_dropout(name, share)))
        rows.append((f"{name}, dropout {share}", seed, score))
    return pd.DataFrame(rows, columns=["winner", "seed", "accuracy"])


def longer(
    space: str, params: Mapping[str, Any], data: ImageData, passes: int, seed: int, device
) -> tuple[nn.Module, History]:
    """Train a point of a space on all training images; crops and mirror images in `better`."""
    torch.manual_seed(seed)
    augment = {"augment": True} if space == "better" else {}
    net, training = tune.SPACES[space](FixedTrial({**params, **augment}), len(data.classes))
    training = replace(training, epochs=passes, seed=seed)
    return net, fit(net, data, training, device=device, what=f"{space}, {passes} passes")


def against(winner: str, answers: Mapping[str, torch.Tensor], labels: torch.Tensor) -> pd.DataFrame:
    """By how many points `winner` beats each, on the same images, with 95 % interval.

    Args:
        answers: name -> logits, float [N, classes].
        labels: int64 [N].

    Returns:
        a row for each of `answers`: `accuracy`, `ahead`, `low`, `high`; in percent and points. The
        winner's own has an accuracy only.
    """
    rows = {
        name: (score(logits, labels).accuracy, *paired_drop(answers[winner], logits, labels))
        for name, logits in answers.items()
    }
    columns = ["accuracy", "ahead", "low", "high"]
    table = 100 * pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    table.loc[winner, columns[1:]] = np.nan
    return table


def until_given_up(
    right: Mapping[str, np.ndarray], part: int = 50, once: bool = False
) -> pd.DataFrame:
    """Score networks one after the other, each until a paired test is against it.

    Optuna's `WilcoxonPruner`: after every `part` images it tests the differences from the best so
    far, part by part (signed ranks, p < 0.1). With `once` it tests at the end only.

    Args:
        right: name -> which answers are right, bool [images]; the same images for all, in order.

    Returns:
        a row a network: `images` that it was scored on, its `accuracy` on them, `given_up`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            direction="maximize", pruner=optuna.pruners.WilcoxonPruner(p_threshold=0.1)
        )
    rows = {}
    for name, answers in right.items():
        trial, seen, given_up = study.ask(), 0, False
        while seen < len(answers) and not given_up:
            trial.report(answers[seen : seen + part].mean(), seen)
            seen = min(seen + part, len(answers))
            given_up = (seen == len(answers) or not once) and trial.should_prune()
        rows[name] = {"images": seen, "accuracy": answers[:seen].mean(), "given_up": given_up}
        state = TrialState.PRUNED if given_up else TrialState.COMPLETE
        study.tell(trial, None if given_up else rows[name]["accuracy"], state)
    return pd.DataFrame.from_dict(rows, orient="index")


def wrong_wins(accuracy: float, behind: float, n: int, disagree: float | None = None) -> float:
    """How often the worse of two networks has the higher score on `n` images.

    The worse one's accuracy is lower by `behind`. Both see the same images, and exactly one of them
    is right on a share `disagree`; None gives each images of its own. 20,000 pairs are drawn,
    ties count half.
    """
    rng = np.random.default_rng(0)
    if disagree is None:
        good, worse = (rng.binomial(n, p, 20_000) for p in (accuracy, max(0.0, accuracy - behind)))
    else:
        half, gap = max(disagree, behind) / 2, behind / 2
        good, worse, _ = rng.multinomial(n, [half + gap, half - gap, 1 - 2 * half], 20_000).T
    return float((worse > good).mean() + (worse == good).mean() / 2)
