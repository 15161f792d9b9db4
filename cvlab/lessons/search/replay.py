"""Searches over a table: a look-up stands for a training, so a hundred searches take seconds.

A search sees the scores of one training seed and is charged that seed's CPU seconds; what it has
found by then is judged by the other seed. Two searches with the same seed begin with the same
random trials: Optuna's samplers leave the first ones to a `RandomSampler` of their seed.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.pruners import HyperbandPruner
from optuna.samplers import NSGAIISampler, TPESampler
from optuna.trial import BaseTrial

from cvlab.lessons.search import studies, tune
from cvlab.lessons.search.table import BUDGET, GRID, SEEDS, SHAPE, Table
from cvlab.metrics import Z
from cvlab.show import each

CHANCE = 1 / 10  # accuracy of who guesses
ORDERED = ("width", "depth", "lr")  # numbers: a sampler may use their order
SAMPLERS = studies.SAMPLERS | {
    "TPE as in version 4": partial(TPESampler, multivariate=False, constant_liar=False),
    "NSGA-II": partial(NSGAIISampler, population_size=10),  # its 50 would all be random here
}
PRUNERS = studies.PRUNERS | {"Hyperband": partial(HyperbandPruner, 1, BUDGET["epochs"], 2)}


@dataclass(frozen=True)
class Method:
    """A way to search: keys of `SAMPLERS` and `PRUNERS`, and what it is told of the cost.

    With `limit`, at most so many MACs are allowed, Optuna's constraint, or, if the method is to
    `refuse`, nothing larger is trained or charged; with `front`, MACs are a second objective. A
    front cannot be pruned.
    """

    sampler: str = "TPE"
    pruner: str = "none"
    limit: float | None = None
    refuse: bool = False
    front: bool = False


METHODS = {
    "random": Method("random"),
    "random, halving": Method("random", "halving"),
    "NSGA-II": Method("NSGA-II"),
    "TPE as in version 4": Method("TPE as in version 4"),
    "TPE": Method(),
    "TPE, median": Method(pruner="median"),
    "TPE, halving": Method(pruner="halving"),
    "TPE, Hyperband": Method(pruner="Hyperband"),
}


def ways(limit: float) -> dict[str, Method]:
    """Searches for which MACs count: TPE is told, at most `limit` or the fewer the better; or
    whatever is above the limit is refused before its training, and the rest is drawn at random.
    """
    return {
        "a constraint": Method(limit=limit),
        "two objectives": Method(front=True),
        "random, refused": Method("random", limit=limit, refuse=True),
    }


def suggest(trial: BaseTrial) -> int:
    """The number of a point of the grid; what has an order is suggested as a step of its values."""
    steps = []
    for name, values in GRID.items():
        if name in ORDERED:
            steps.append(trial.suggest_int(name, 0, len(values) - 1))
        else:
            steps.append(values.index(trial.suggest_categorical(name, values)))
    return int(np.ravel_multi_index(steps, SHAPE))


@dataclass
class LookUp:
    """An objective that trains nothing: it reports what the table has and charges its seconds.

    A pruned trial is charged the epochs that it has had. `finished` are the complete trials:
    (seconds charged by their end, point).
    """

    table: Table
    method: Method
    seen: int  # the training seed that the search sees
    spent: float = 0.0
    finished: list[tuple[float, int]] = field(default_factory=list)

    def __call__(self, trial: optuna.Trial) -> float | tuple[float, float]:
        """The accuracy after the last epoch; of a front, the MACs too.

        Raises:
            optuna.TrialPruned: the pruner gave the trial up, or the point is refused.
        """
        point = suggest(trial)
        macs = float(self.table.macs[point])
        if self.method.refuse and macs > self.method.limit:
            raise optuna.TrialPruned
        if self.method.limit is not None:
            trial.set_constraint("MACs", macs / self.method.limit - 1)
        scores = self.table.accuracy[point, self.seen].tolist()
        for epoch, seconds in enumerate(self.table.seconds[point, self.seen].tolist(), 1):
            self.spent += seconds
            if self.method.pruner == "none" or epoch == len(scores):
                continue
            trial.report(scores[epoch - 1], epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        self.finished.append((self.spent, point))
        return (scores[-1], macs) if self.method.front else scores[-1]


def search(table: Table, method: Method, seed: int, budget: float) -> LookUp:
    """Search until `budget` seconds are charged; `seed` is the sampler's.

    Even seeds see the table's first training seed, odd ones its second.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    look = LookUp(table, method, seed % len(SEEDS))
    study = optuna.create_study(
        study_name=f"replay {seed}",  # Hyperband draws a trial's bracket by the study's name
        sampler=SAMPLERS[method.sampler](seed=seed),
        pruner=PRUNERS[method.pruner](),
        directions=["maximize", "minimize"] if method.front else ["maximize"],
    )

    def stop(study: optuna.Study, trial) -> None:
        if look.spent >= budget:
            study.stop()

    study.optimize(look, callbacks=[stop])
    return look


def searches(
    table: Table, methods: Mapping[str, Method], seeds: Sequence[int], budget: float, workers: int
) -> pd.DataFrame:
    """Search with each method from each seed, in so many processes; one means in this one.

    Returns:
        one row a complete trial: `method`, `seed`, `second` at which it ended, `point`, `score`
        as the search saw it, `kept`, the accuracy of the same point with the other training
        seed; in the order of `second` within a search.
    """
    plan = [(name, seed) for seed in seeds for name in methods]
    jobs = each([(methods[name], seed) for name, seed in plan], "replay", "search")
    one = partial(_finished, table, budget)
    if workers == 1:
        return _together(plan, map(one, jobs), table)
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        found = pool.map(one, [(methods[name], seed) for name, seed in plan], chunksize=4)
        return _together(plan, (next(found) for _ in jobs), table)


def _finished(table: Table, budget: float, job: tuple[Method, int]) -> list[tuple[float, int]]:
    return search(table, *job, budget).finished


def _together(plan: list, found: Iterable, table: Table) -> pd.DataFrame:
    rows = [
        (name, seed, second, point)
        for (name, seed), finished in zip(plan, found, strict=True)
        for second, point in finished
    ]
    trials = pd.DataFrame(rows, columns=["method", "seed", "second", "point"])
    seen, last = trials["seed"] % len(SEEDS), table.accuracy[:, :, -1]
    trials["score"] = last[trials["point"], seen]
    return trials.assign(kept=last[trials["point"], 1 - seen])


def regret(
    trials: pd.DataFrame, times: Sequence[float], table: Table, limit: float = np.inf
) -> pd.DataFrame:
    """How far what each search has found lies behind the best point, at each of `times`.

    Found is the trial with the best `score` among those that ended by then and have at most
    `limit` MACs; it is judged by what it has `kept`. The best such point is the judging seed's:
    it has luck of its own, the same for all. A search that has found nothing guesses.

    Returns:
        points, float [methods x seeds, times]; the index holds method and seed.
    """
    allowed = table.macs <= limit
    best = 100 * table.accuracy[allowed, :, -1].max(0)
    rows = {}
    for (method, seed), one in trials.groupby(["method", "seed"], sort=False):
        one = one[allowed[one["point"]]]
        leads = one[one["score"] > one["score"].cummax().shift(fill_value=-1)]
        kept = np.concatenate([[CHANCE], leads["kept"]])
        at = np.searchsorted(leads["second"], times, side="right")
        rows[method, seed] = best[1 - seed % len(SEEDS)] - 100 * kept[at]
    return _by_search(rows, times)


def _by_search(
    rows: Mapping[tuple[str, int], Sequence[float]], times: Sequence[float]
) -> pd.DataFrame:
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(times)).set_axis(
        pd.MultiIndex.from_tuples(rows, names=["method", "seed"])
    )


def least_regret(table: Table) -> float:
    """Regret of who has looked up every point: two seeds do not name the same best. Points."""
    last = 100 * table.accuracy[:, :, -1]
    named = last.argmax(0)  # by each seed, for the other to judge
    return float(np.mean([last[:, 1 - s].max() - last[named[s], 1 - s] for s in (0, 1)]))


def hypervolume(trials: pd.DataFrame, times: Sequence[float], table: Table) -> pd.DataFrame:
    """How much of the trade between accuracy and MACs each search has found, at each of `times`.

    The hypervolume of two objectives is an area: that between the Pareto front and the point that
    anything beats, chance at the MACs of the table's largest network. A search names its front by
    the `score` it saw; the area is that of what these points have `kept`.

    Returns:
        percent of the area of the whole table, as the judging seed has it; else as `regret`.
    """
    most, wholes, rows = table.macs.max(), _whole_areas(table), {}
    for (method, seed), one in trials.groupby(["method", "seed"], sort=False):
        one = one.assign(macs=table.macs[one["point"]]).sort_values(["macs", "score"])
        by_then = (one[one["second"] <= time] for time in times)
        named = (o[o["score"] > o["score"].cummax().shift(fill_value=-1)] for o in by_then)
        areas = [_area(o["macs"].to_numpy(), o["kept"].to_numpy(), most) for o in named]
        rows[method, seed] = 100 * np.array(areas) / wholes[1 - seed % len(SEEDS)]
    return _by_search(rows, times)


def largest_alone(table: Table) -> float:
    """Percent of the whole table's hypervolume that one point has by itself; mean of both seeds."""
    above, beside = table.accuracy[:, :, -1].T - CHANCE, table.macs.max() - table.macs
    return float(np.mean(100 * (above * beside).max(1) / _whole_areas(table)))


def _whole_areas(table: Table) -> list[float]:
    """What all points of the table beat together, as each training seed judges them."""
    scores = table.accuracy[:, :, -1].T
    return [_area(table.macs, one, table.macs.max()) for one in scores]


def _area(macs: np.ndarray, accuracy: np.ndarray, most: float) -> float:
    order = np.argsort(macs)
    height = np.maximum.accumulate(accuracy[order]).clip(CHANCE) - CHANCE
    return float(height @ np.diff(np.append(macs[order], most)))


def versus(regrets: pd.DataFrame, ours: str, other: str) -> pd.DataFrame:
    """How far, and how often, `ours` is ahead of `other` at equal cost, paired by seed.

    The seeds are the sample: the intervals say nothing of another table.

    Args:
        regrets: see `regret`.

    Returns:
        one row a time: `ahead`, mean points, with its 95 % interval `low`, `high`; `wins`, the
        share of seeds in which it is ahead, ties half, with `wins_low` and `wins_high`, for which
        a win and a loss are added (Agresti and Coull, 1998, with 2 for half a win and loss).
    """
    apart = regrets.xs(other) - regrets.xs(ours)
    n, half = len(apart), Z * apart.std() / np.sqrt(len(apart))
    wins = (apart > 0).sum() + (apart == 0).sum() / 2
    smooth = (wins + 2) / (n + 4)
    error = Z * np.sqrt(smooth * (1 - smooth) / (n + 4))
    columns = {"ahead": apart.mean(), "low": apart.mean() - half, "high": apart.mean() + half}
    columns |= {"wins": wins / n, "wins_low": smooth - error, "wins_high": smooth + error}
    return pd.DataFrame(columns)


def summary(regrets: pd.DataFrame, trials: pd.DataFrame, time: float, other: str) -> pd.DataFrame:
    """Each method at one time: mean regret, and how it stands against `other`.

    Returns:
        one row a method, least regret first: `regret`, complete `trials` a search, and the columns
        of `versus`, empty for `other` itself.
    """
    rows = {}
    for method in regrets.index.unique("method"):
        own = trials[(trials["method"] == method) & (trials["second"] <= time)]
        mean = regrets.xs(method)[time].mean()
        count = len(own) / own["seed"].nunique()
        rows[method] = {"regret": mean, "trials": count}
        if method != other:
            rows[method] |= versus(regrets, method, other).loc[time].to_dict()
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("regret")


def stopped(
    trials: pd.DataFrame, patience: Sequence[int], budget: float, table: Table
) -> pd.DataFrame:
    """What it costs to stop a search when so many complete trials have brought nothing better.

    Args:
        trials: of one method, see `searches`.
        patience: complete trials without a better score.

    Returns:
        one row a patience: mean `seconds` until it stops, and by how many points what it has
        then lies behind what it has after `budget` seconds, `lost`, with `low` and `high`.
    """
    whole, rows = regret(trials, [budget], table)[budget], {}
    for wait in patience:
        ends = {}
        for seed, one in trials[trials["second"] <= budget].groupby("seed"):
            better = one["score"] > one["score"].cummax().shift(fill_value=-1)
            idle = (~better).groupby(better.cumsum()).cumsum()
            ends[seed] = one["second"][idle >= wait].min() if (idle >= wait).any() else budget
        cut = trials[trials["second"] <= trials["seed"].map(ends)]
        lost = regret(cut, [budget], table)[budget] - whole
        half = Z * lost.std() / np.sqrt(len(lost))
        rows[wait] = (np.mean(list(ends.values())), lost.mean(), lost.mean() - half)
        rows[wait] += (lost.mean() + half,)
    columns = ["seconds", "lost", "low", "high"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def joint(group: bool) -> pd.Series:
    """How often TPE drew each parameter of the reports' space together with others, not alone.

    Of 25 trials. Multivariate TPE draws together what all so far have in common; with `group`, what
    always comes together. Nothing is trained: the score is drawn at random.

    Returns:
        parameter -> share of those trials after the first ten that have the parameter.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = TPESampler(seed=0, multivariate=True, group=group)
    study, random = optuna.create_study(sampler=sampler), np.random.default_rng(0)
    together, had = Counter(), Counter()
    for number in range(25):
        trial = study.ask()
        with torch.device("meta"):  # a network without memory: only what is suggested counts
            tune.reports_space(trial, 10)
        if number >= 10:
            had.update(trial.params.keys())
            together.update(trial.relative_params.keys() & trial.params.keys())
        study.tell(trial, random.random())
    return pd.Series({name: together[name] / had[name] for name in sorted(had)})
