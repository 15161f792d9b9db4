"""Searching hyperparameters with Optuna: search spaces, one objective, what a study has found.

A search space takes a trial and a number of classes, gives a network and how to train it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
import pandas as pd
import torch
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial, TrialState
from torch import nn

from cvlab.data import ImageData
from cvlab.lessons.pretrained import finetune, zoo
from cvlab.lessons.search.networks import FlatCNN, TunableCNN
from cvlab.lessons.search.studies import StudyError, claim, me, new_study, requeue_dead
from cvlab.machine import hardware
from cvlab.models import NORMS, SmallCNN, summary
from cvlab.show import each, progress
from cvlab.train import History, Training, TrainingDiverged, evaluate, fit

ONE_BATCH = 32  # images that the reports' scores came from


def reports_space(trial: BaseTrial, classes: int) -> tuple[nn.Module, Training]:
    """What two reports searched, after Optuna's PyTorch example: as wide as the two together."""
    layers = range(trial.suggest_int("n_layers", 1, 5))
    units = [trial.suggest_int(f"n_units_l{i}", 4, 512, log=True) for i in layers]
    dropouts = [trial.suggest_float(f"dropout_l{i}", 0.2, 0.5) for i in layers]
    kernel_size = trial.suggest_int("kernel_size", 3, 7)
    return FlatCNN(classes, kernel_size, units, dropouts), Training(
        optimizer=trial.suggest_categorical("optimizer", ["Adam", "RMSprop", "SGD"]),
        lr=trial.suggest_float("lr", 1e-5, 1e-1, log=True),
        batch_size=64,
        augment=False,
    )


def better_space(trial: BaseTrial, classes: int) -> tuple[nn.Module, Training]:
    """Convolutions, as many and as wide as pays, and how to train them."""
    width = trial.suggest_int("width", 8, 24, step=8)
    depth = trial.suggest_int("depth", 1, 3)
    pooling = trial.suggest_categorical("pooling", ["stride", "max", "avg"])
    norm = trial.suggest_categorical("norm", list(NORMS))
    return TunableCNN(classes, width, depth, pooling, norm), Training(
        optimizer=trial.suggest_categorical("optimizer", ["Nesterov", "AdamW"]),
        lr=trial.suggest_float("lr", 1e-3, 0.3, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-5, 1e-2, log=True),
        schedule=trial.suggest_categorical("schedule", ["constant", "one-cycle"]),
        batch_size=trial.suggest_categorical("batch_size", [64, 128, 256]),
        augment=trial.suggest_categorical("augment", [False, True]),
    )


def two_knobs(trial: BaseTrial, classes: int) -> tuple[nn.Module, Training]:
    """`SmallCNN` and how it learns: the peak of the rate, and the pull on its weights."""
    return SmallCNN(classes), Training(
        optimizer="Nesterov",
        lr=trial.suggest_float("lr", 0.01, 1.0, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-5, 1e-2, log=True),
        label_smoothing=0.1,
        schedule="one-cycle",
    )


def two_knobs_pretrained(trial: BaseTrial, classes: int) -> tuple[nn.Module, Training]:
    """EfficientNet-Lite0 with a new head, its first layers as ImageNet left them; both knobs."""
    net = zoo.pretrained("tf_efficientnet_lite0")
    finetune.replace_head(net, nn.Linear(finetune.head_of(net)[1].in_features, classes))
    finetune.freeze(net, 15)
    return net, replace(
        finetune.TRAINING,
        lr=trial.suggest_float("lr", 1e-4, 1e-2, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-3, 0.3, log=True),
    )


KNOWN = {  # a point of the better space: what 01_optimizers and 02_pooling have taught
    "width": 16,
    "depth": 2,
    "pooling": "max",
    "norm": "batch",
    "optimizer": "Nesterov",
    "lr": 0.1,
    "weight_decay": 5e-4,
    "schedule": "one-cycle",
    "batch_size": 128,
    "augment": False,
}
SPACES = {
    "reports": reports_space,
    "better": better_space,
    "SmallCNN": two_knobs,
    "tf_efficientnet_lite0": two_knobs_pretrained,
}
KNOWN_KNOBS = {  # what earlier notebooks ended with, to be beaten
    "SmallCNN": {"lr": 0.15, "weight_decay": 5e-4},
    "tf_efficientnet_lite0": {"lr": 1e-3, "weight_decay": 0.05},
}


@dataclass(frozen=True)
class Objective:
    """Train what a trial asks for and judge it: called with a trial, it returns the score.

    The score is the accuracy on `val_images` of the validation images, always the same. It is
    reported to Optuna after every epoch, and Optuna may prune the trial then. A training that
    diverges scores what guessing does. The trial keeps as `user_attrs`: `MACs` of one image,
    `seconds` of training and the `machine`, `val_accuracy`, and `one_batch`, the accuracy on one
    batch of 32.

    `space` is a key of `SPACES`. A trial's budget is `epochs`, each of which is one of the `parts`
    of a pass over `images`; `seed` is that of every training. With `by_one_batch` Optuna sees that
    accuracy instead, as in the reports; with `prune=False` it hears nothing before the end.
    """

    data: ImageData
    space: str
    images: int
    epochs: int
    val_images: int
    parts: int = 1
    seed: int = 0
    device: str | torch.device = "cpu"
    by_one_batch: bool = False
    prune: bool = True

    @property
    def settings(self) -> dict[str, Any]:
        """All that scores depend on: trials measured with other settings cannot be compared."""
        kept = ("space", "images", "epochs", "val_images", "parts", "seed", "by_one_batch")
        data = self.data.name if self.data.real else f"stand-in for {self.data.name}"
        data += f" {self.data.fingerprint}"
        return {name: getattr(self, name) for name in kept} | {"data": data}

    def __call__(self, trial: BaseTrial) -> float:
        """Train, report, perhaps prune, judge.

        Raises:
            optuna.TrialPruned: the pruner gave the trial up.
        """
        trial.set_user_attr("process", me())
        trial.set_user_attr("machine", hardware().name)
        torch.manual_seed(self.seed)
        model, training = SPACES[self.space](trial, len(self.data.classes))
        training = replace(training, epochs=self.epochs, parts=self.parts, seed=self.seed)
        data = self.data.take(n_train=self.images, n_val=self.val_images)
        side = data.size or data.val.images.shape[-1]
        trial.set_user_attr("MACs", int(summary(model, (3, side, side))["MACs"].sum()))
        began = time.perf_counter()

        def watch(history: History, optimizer) -> None:
            if not self.prune or self.by_one_batch:
                return
            epoch = len(history.epoch_rows)
            trial.report(history.epoch_rows[-1]["val_accuracy"], epoch)
            if epoch < self.epochs and trial.should_prune():
                raise optuna.TrialPruned

        try:
            history = fit(model, data, training, device=self.device, watch=watch, what=None)
            accuracy = history.epoch_rows[-1]["val_accuracy"]
        except TrainingDiverged:
            accuracy = 1 / len(data.classes)
        finally:
            trial.set_user_attr("seconds", time.perf_counter() - began)
        few = data.batches(data.val.select(range(ONE_BATCH)), ONE_BATCH, device=self.device)
        trial.set_user_attr("val_accuracy", accuracy)
        trial.set_user_attr("one_batch", evaluate(model, few).accuracy)
        return trial.user_attrs["one_batch"] if self.by_one_batch else accuracy


def search(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], float],
    *,
    trials: int | None = None,
    seconds: float | None = None,
    what: str | None = "search",
) -> None:
    """Add trials to a study under a progress bar until it has `trials`, or has had `seconds`.

    What the study has already counts, trials and their seconds; a trial that runs when the time
    is up is finished. Every finished trial is in the study's storage at once: after an
    interrupt, the same call goes on.

    Raises:
        StudyError: the study's trials were measured with another objective, or its
            storage fails.
    """
    if trials is None and seconds is None:
        raise ValueError("trials=None, seconds=None: give at least one limit.")
    if isinstance(objective, Objective):
        claim(study, objective.settings)
    requeue_dead(study)
    left = None if trials is None else trials - len(finished(study))
    spent = sum(trial.duration.total_seconds() for trial in finished(study))
    time_left = None if seconds is None else seconds - spent
    if (left is not None and left <= 0) or (time_left is not None and time_left <= 0):
        return
    total, unit = (int(time_left), "s") if seconds else (left, "trial")
    began = time.perf_counter()
    with progress(total, what, unit) as bar:

        def tell(study: optuna.Study, trial: FrozenTrial) -> None:
            bar.set_postfix_str(so_far(study), refresh=False)
            gone = int(time.perf_counter() - began) if seconds else bar.n + 1
            bar.update(min(gone, total) - bar.n)

        try:
            study.optimize(objective, left, time_left, callbacks=[tell])
        except (OSError, optuna.exceptions.StorageInternalError) as error:  # disk full, server gone
            raise StudyError(
                f"The search has stopped: {error}. Its {len(finished(study))} finished trials are "
                "kept; mend the cause, then run the same again."
            ) from error
        bar.update(total - bar.n)


def so_far(study: optuna.Study) -> str:
    """How many trials have finished, and the best score of a single objective."""
    trials = finished(study)
    complete = [t for t in trials if t.state == TrialState.COMPLETE and len(t.values) == 1]
    best = max((t.value for t in complete), default=None)
    return f"{len(trials)} trials" + ("" if best is None else f", best {best:.1%}")


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that have run to their end or were pruned."""
    return _trials(study, TrialState.COMPLETE, TrialState.PRUNED)


def _trials(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=states)


def statistics(study: optuna.Study) -> dict[str, Any]:
    """What became of the trials: numbers of `finished`, `complete`, `pruned`, `failed`, `seconds`.

    `seconds` are those of all trainings, `saved` the share of epochs that pruning saved.
    """
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    trials = finished(study)
    epochs = [len(trial.intermediate_values) for trial in trials]
    return {
        "finished": len(trials),
        "complete": states.count(TrialState.COMPLETE),
        "pruned": states.count(TrialState.PRUNED),
        "failed": states.count(TrialState.FAIL),
        "seconds": sum(trial.user_attrs.get("seconds", 0) for trial in trials),
        "saved": 1 - sum(epochs) / max(1, len(epochs) * max(epochs, default=0)),
    }


def table(study: optuna.Study, state: str) -> pd.DataFrame:
    """The trials of a state, "COMPLETE" or "PRUNED", best first: score, seconds, parameters.

    A pruned trial's `score` is the last that it reported, at the end of epoch `epochs`.
    """
    rows = [
        {
            "trial": trial.number,
            "score": trial.value,
            "epochs": len(trial.intermediate_values),
            "seconds": trial.user_attrs.get("seconds"),
            **trial.params,
        }
        for trial in _trials(study, TrialState[state])
    ]
    columns = ["trial", "score", "epochs", "seconds"]
    frame = pd.DataFrame(rows, columns=None if rows else columns)
    return frame.sort_values("score", ascending=False).set_index("trial")


def again(
    study: optuna.Study, objective: Objective, best: int, seeds: Sequence[int]
) -> pd.DataFrame:
    """Train the `best` trials of a study anew with fresh seeds: what did their scores owe to luck?

    Returns:
        one row a trial and seed: `trial`, `searched` (its score in the study), `seed`, `fresh`,
        and the `seconds` of this training.
    """
    complete = _trials(study, TrialState.COMPLETE)
    chosen = sorted(complete, key=lambda t: t.value, reverse=True)[:best]
    plan, rows = [(trial, seed) for seed in seeds for trial in chosen], []
    for trial, seed in each(plan, "fresh seeds", "training"):
        anew = FixedTrial(trial.params)
        fresh = replace(objective, seed=seed)(anew)
        rows.append((trial.number, trial.value, seed, fresh, anew.user_attrs["seconds"]))
    return pd.DataFrame(rows, columns=["trial", "searched", "seed", "fresh", "seconds"])


def unseen(data: ImageData, used: int) -> ImageData:
    """The data with those validation images only that a trial judged on `used` has not seen."""
    return replace(data, val=data.val.rest(used))


@dataclass(frozen=True)
class Contestant:
    """A way to search: keys of `studies.SAMPLERS` and `PRUNERS`, and what Optuna sees."""

    sampler: str = "TPE"
    pruner: str = "halving"
    by_one_batch: bool = False


def compare(
    contestants: Mapping[str, Contestant],
    objective: Objective,
    seeds: Sequence[int],
    *,
    trials: int | None = None,
    seconds: float | None = None,
) -> pd.DataFrame:
    """Search with each contestant from each seed, of sampler and trainings, to the same limits.

    Returns:
        one row a search: `contestant`, `seed`, `trials`, `pruned`; of the trial that the study
        calls its best: `promised`, the score that Optuna saw, `val_accuracy`, `params`, and
        `kept`, the accuracy of the same training on validation images that no trial has seen.
    """
    plan, rows = [(name, seed) for seed in seeds for name in contestants], []
    for name, seed in each(plan, "samplers", "search"):
        one = contestants[name]
        judge = replace(objective, seed=seed, by_one_batch=one.by_one_batch)
        study = new_study(f"{name} {seed}", sampler=one.sampler, pruner=one.pruner, seed=seed)
        search(study, judge, trials=trials, seconds=seconds, what=None)
        counts, best = statistics(study), study.best_trial
        others = unseen(objective.data, objective.val_images)
        kept = replace(objective, seed=seed, data=others)(FixedTrial(best.params))
        row = (name, seed, counts["finished"], counts["pruned"], best.value)
        rows.append((*row, best.user_attrs["val_accuracy"], kept, best.params))
    columns = ["contestant", "seed", "trials", "pruned", "promised", "val_accuracy", "kept"]
    columns.append("params")
    return pd.DataFrame(rows, columns=columns)


def first_epoch(study: optuna.Study) -> optuna.Study:
    """The trials of `study`, pruned ones too, scored by their accuracy after the first epoch.

    For pictures of where good trials lie: of the complete trials alone they show survivors only.
    """
    first = new_study(f"{study.study_name}, first epoch", pruner="none")
    known = [trial for trial in finished(study) if 1 in trial.intermediate_values]
    first.add_trials(_copy(trial, [trial.intermediate_values[1]]) for trial in known)
    return first


def best_so_far(study: optuna.Study) -> pd.DataFrame:
    """How the best score rose: columns `seconds` that trials had taken by then, and `best`."""
    trials = finished(study)
    scores = [t.value if t.state == TrialState.COMPLETE else float("-inf") for t in trials]
    seconds = pd.Series([trial.duration.total_seconds() for trial in trials])
    return pd.DataFrame({"seconds": seconds.cumsum(), "best": pd.Series(scores).cummax()})


def with_costs(known: Sequence[optuna.Study], seed: int) -> optuna.Study:
    """A study of two objectives, accuracy and MACs, that begins with all complete trials known."""
    both = new_study("accuracy and MACs", seed=seed, directions=("maximize", "minimize"))
    for study in known:
        complete = _trials(study, TrialState.COMPLETE)
        both.add_trials(_copy(t, [t.value, t.user_attrs["MACs"]]) for t in complete)
    return both


def _copy(trial: FrozenTrial, values: Sequence[float]) -> FrozenTrial:
    """A complete trial with the same parameters and other values of the objective."""
    return optuna.trial.create_trial(
        params=trial.params, distributions=trial.distributions, values=values
    )


def candidates(study: optuna.Study) -> pd.DataFrame:
    """Accuracy against cost: one row a trial of a study that `with_costs` began.

    Returns:
        `val_accuracy`, `MACs`, and `best`: it lies on the Pareto front: no trial is as good in both
        and better in one.
    """
    rows = {t.number: t.values for t in _trials(study, TrialState.COMPLETE)}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["val_accuracy", "MACs"])
    return frame.assign(best=frame.index.isin([t.number for t in study.best_trials]))
