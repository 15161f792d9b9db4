"""04's table: trained once, stopped and gone on with, packed; and the searches over it."""

import json

import numpy as np
import optuna
import pandas as pd
import pytest

from cvlab.lessons.search import replay, table
from cvlab.lessons.search.replay import Method
from cvlab.lessons.search.table import BUDGET, POINTS, SEEDS, Table, TableError
from cvlab.train import TrainingDiverged

SHAPE = (len(POINTS), len(SEEDS), BUDGET["epochs"])


@pytest.fixture(scope="module")
def made():
    """A table without trainings: the wider the better, every epoch a second or two."""
    random = np.random.default_rng(0)
    good = np.array([point["width"] / 20 for point in POINTS])
    accuracy = good[:, None, None] + random.uniform(0, 0.1, SHAPE)
    macs = np.array([point["width"] * point["depth"] for point in POINTS])
    checked = np.array(table.checked_points())
    seconds = random.uniform(1, 2, SHAPE)
    return Table(accuracy, seconds, accuracy < 0, macs, macs, checked, accuracy[checked, 0], {})


def in_turns(pairs):
    """Trainings that take no time: (point, seed) -> a line of the journal."""
    for point, seed in pairs:
        right, cpu = [point, seed, 1, point + seed], [0.1, 0.2, 0.3, 0.25]
        yield {"point": point, "seed": seed, "right": right, "cpu": cpu, "diverged": point == 7}


@pytest.fixture
def journal(tmp_path, drawn):
    path = tmp_path / "table.jsonl"
    table.begin(path, table.settings(drawn))
    return path


def test_a_stopped_table_goes_on_and_repeats_no_training(journal, drawn):
    """An hour's work must survive a kill, and the half line that it may leave."""

    def until_killed(pairs):
        yield from in_turns(pairs[:3])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        table.fill(journal, until_killed)
    with journal.open("a") as file:
        file.write('{"point": 5, "se')
    table.begin(journal, table.settings(drawn))
    asked = []
    table.fill(journal, lambda pairs: in_turns(asked.append(pairs) or pairs))
    assert asked[0] == table.plan()[3:]
    rows = table.read_journal(journal)[1]
    assert sorted((row["point"], row["seed"]) for row in rows) == sorted(table.plan())


def test_trainings_of_another_budget_are_not_mixed(journal, drawn, monkeypatch):
    monkeypatch.setattr(table, "BUDGET", BUDGET | {"images": 1})
    with pytest.raises(TableError, match="another grid, budget or data"):
        table.begin(journal, table.settings(drawn))


def test_the_packed_table_holds_each_training_in_its_place(journal, tmp_path):
    table.fill(journal, in_turns)
    read = Table.read(table.pack(journal, tmp_path / "table.npz"))
    assert read.accuracy.shape == SHAPE == read.seconds.shape
    assert read.accuracy[13, 1] * BUDGET["val_images"] == pytest.approx([13, 1, 1, 14])
    assert read.seconds[13, 1] == pytest.approx([0.1, 0.2, 0.3, 0.25])
    assert np.flatnonzero(read.diverged.all(1)) == [7]
    third = table.CHECK_SEED + read.checked
    assert (read.again[:, -1] * BUDGET["val_images"]).round().tolist() == third.tolist()
    cheap, dear = (POINTS.index(max(POINTS, key=lambda p: s * p["width"])) for s in (-1, 1))
    assert read.macs[cheap] < read.macs[dear]
    assert (tmp_path / "table.npz").stat().st_size < 400_000


def test_an_unfinished_table_and_one_of_the_stand_in_are_not_published(journal, tmp_path):
    with pytest.raises(TableError, match=f"lacks {len(table.plan())} trainings"):
        table.pack(journal, tmp_path / "table.npz")
    table.fill(journal, in_turns)
    with pytest.raises(TableError, match="not of its stand-in"):
        table.pack(journal, table.default_file())


def test_the_projects_table_is_of_this_grid_and_whole():
    """Else the notebook would look up other points than it names."""
    read = Table.read()
    assert read.about["settings"]["budget"] == BUDGET
    assert read.about["settings"]["data"].startswith("cifar10 ")
    assert read.accuracy.shape == SHAPE
    assert (read.seconds[~read.diverged] > 0).all()
    assert read.checks().notna().all(axis=None)


def test_a_training_repeats_and_counts_its_epochs(drawn):
    one, again = (table.train_point(40, 1, drawn) for _ in range(2))
    assert one["right"] == again["right"]
    assert len(one["cpu"]) == BUDGET["epochs"] == len(one["right"])
    assert min(one["cpu"]) > 0
    json.dumps(one)


def test_a_diverged_training_guesses_from_there_on_and_costs_no_more(drawn, monkeypatch):
    class OneEpoch:
        epoch_rows = ({"val_accuracy": 0.5},)

    def explode(*args, watch, **kwargs):
        watch(OneEpoch, None)
        raise TrainingDiverged("nan", OneEpoch)

    monkeypatch.setattr(table, "fit", explode)
    row = table.train_point(0, 0, drawn)
    assert row["diverged"]
    assert row["right"] == [100, 20, 20, 20]  # of 200 images, ten classes
    assert row["cpu"][2:] == [0, 0]


def test_a_look_up_charges_what_the_table_says(made):
    look = replay.search(made, Method("random"), seed=3, budget=60)
    charged = made.seconds[[point for _, point in look.finished], 1].sum(1)
    assert np.cumsum(charged) == pytest.approx([second for second, _ in look.finished])
    assert look.spent - charged[-1] < 60 <= look.spent


def test_a_pruned_trial_is_charged_only_what_it_used(made, monkeypatch):
    class Impatient(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.last_step == 2

    monkeypatch.setitem(replay.PRUNERS, "halving", Impatient)
    study = optuna.create_study(pruner=Impatient(), sampler=optuna.samplers.RandomSampler(0))
    look = replay.LookUp(made, Method("random", "halving"), seen=0)
    study.optimize(look, 1)
    values = [
        step if name in replay.ORDERED else table.GRID[name].index(step)
        for name, step in study.trials[0].params.items()
    ]
    point = np.ravel_multi_index(values, table.SHAPE)
    assert look.spent == pytest.approx(made.seconds[point, 0, :2].sum())
    assert look.finished == []


def test_searches_repeat_with_their_seed_and_share_their_random_start(made):
    """What differs between two methods at one seed is then what they do, not where they began."""
    methods = {name: replay.METHODS[name] for name in ("random", "TPE", "NSGA-II")}
    methods["Hyperband"] = Method(pruner="Hyperband")
    one, again = (replay.searches(made, methods, (4, 5), 80, 1) for _ in range(2))
    pd.testing.assert_frame_equal(one, again)
    whole = one[one["method"] != "Hyperband"]  # of a pruned trial the point is not kept
    starts = whole.groupby(["seed", "method"])["point"].agg(lambda points: tuple(points[:10]))
    assert starts.groupby("seed").nunique().tolist() == [1, 1]
    assert starts[4, "TPE"] != starts[5, "TPE"]
    last = made.accuracy[:, :, -1]
    assert (one["score"] == last[one["point"], one["seed"] % 2]).all()
    assert (one["kept"] == last[one["point"], 1 - one["seed"] % 2]).all()


def test_every_method_searches_and_a_constraint_is_seen(made):
    methods = replay.METHODS | {"limit": Method(limit=4), "front": Method(front=True)}
    trials = replay.searches(made, methods, [0], 120, 1)
    assert list(trials["method"].unique()) == list(methods)
    allowed = pd.Series(made.macs[trials["point"]] <= 4, trials.index)
    share = allowed.groupby(trials["method"]).mean()
    assert share["limit"] > share["TPE"]


def test_what_is_refused_is_neither_trained_nor_charged(made):
    trials = replay.searches(made, {"refused": Method("random", limit=4, refuse=True)}, [0], 60, 1)
    assert len(trials) > 5
    assert (made.macs[trials["point"]] <= 4).all()
    charged = made.seconds[trials["point"], 0].sum(1)
    assert np.cumsum(charged) == pytest.approx(trials["second"].to_numpy())


def trials_of(rows):
    return pd.DataFrame(rows, columns=["method", "seed", "second", "point", "score", "kept"])


def test_regret_judges_the_best_seen_by_the_other_seed(made):
    best = 100 * made.accuracy[:, 1, -1].max()
    rows = [("a", 0, 2.0, 0, 0.3, 0.2), ("a", 0, 4.0, 1, 0.2, 0.9), ("a", 0, 6.0, 2, 0.4, 0.1)]
    found = replay.regret(trials_of(rows), [1, 3, 5, 7], made).loc["a", 0]
    assert found.tolist() == pytest.approx([best - 10, best - 20, best - 20, best - 10])


def test_a_search_that_finds_nothing_allowed_guesses_and_is_not_left_out(made):
    """Left out, a search that ignores the limit would look better than it is."""
    small, large = int(made.macs.argmin()), int(made.macs.argmax())
    rows = [("a", 0, 2.0, large, 0.9, 0.9), ("a", 1, 2.0, small, 0.3, 0.3)]
    found = replay.regret(trials_of(rows), [3], made, limit=made.macs.min())[3]
    allowed = made.macs == made.macs.min()
    assert found["a", 0] == pytest.approx(100 * made.accuracy[allowed, 1, -1].max() - 10)


def test_the_hypervolume_is_the_area_that_the_named_front_beats(made):
    """Of the points (MACs, kept) (4, 40 %) and (8, 50 %), up to the table's 16 and from 10 %."""
    cheap, dear = (int(np.flatnonzero(made.macs == macs)[0]) for macs in (4, 8))
    rows = [("a", 0, 2.0, dear, 0.6, 0.5), ("a", 0, 4.0, cheap, 0.5, 0.4)]
    rows += [("a", 0, 5.0, dear, 0.4, 0.99)]  # the search does not name it: its score is beaten
    found = replay.hypervolume(trials_of(rows), [1, 3, 6], made).loc["a", 0]
    assert found[1] == 0
    assert found[3] / found[6] == pytest.approx(8 * 0.4 / (4 * 0.3 + 8 * 0.4))
    every = np.arange(len(made.macs))
    kept = made.accuracy[:, 1, -1]
    rows = [("a", 0, 1.0, point, kept[point], kept[point]) for point in every]
    assert replay.hypervolume(trials_of(rows), [1], made).loc[("a", 0), 1] == pytest.approx(100)


def test_who_knows_every_point_still_has_regret():
    """Each seed names a point that is ten points behind the other seed's own best."""
    accuracy = np.array([[0.5, 0.9], [0.6, 0.8], [0.4, 0.4]])[:, :, None]
    few = Table(accuracy, accuracy, accuracy < 0, *[np.arange(3)] * 3, accuracy[:, 0], {})
    assert replay.least_regret(few) == pytest.approx(10)


def test_who_is_ahead_is_counted_by_pairs():
    index = pd.MultiIndex.from_product([["a", "b"], range(4)], names=["method", "seed"])
    behind = pd.DataFrame({10.0: [1, 2, 3, 5, 2, 4, 3, 4]}, index)
    row = replay.versus(behind, "a", "b").loc[10.0]
    assert row["ahead"] == pytest.approx(0.5)
    assert row["wins"] == pytest.approx(2.5 / 4)
    assert row["low"] < 0 < row["high"]
    assert row["wins_low"] < row["wins"] < row["wins_high"]


def test_a_search_that_waits_longer_loses_less(made):
    trials = replay.searches(made, {"TPE": Method()}, range(4), 200, 1)
    found = replay.stopped(trials, (3, 12), 200, made)
    assert found["seconds"].is_monotonic_increasing
    assert (found["seconds"] <= 200).all()
    assert replay.stopped(trials, (1000,), 200, made)["lost"].tolist() == [0]


def test_multivariate_tpe_draws_alone_what_not_every_trial_has():
    """The fallback that 04 shows; an Optuna that mends it must change the notebook's words."""
    alone, grouped = replay.joint(group=False), replay.joint(group=True)
    assert alone["n_units_l0"] == 1
    assert alone["n_units_l1"] == 0
    assert grouped["n_units_l1"] == 1


def test_pairs_that_change_order_are_counted():
    assert table.turned(np.array([1, 2, 3]), np.array([1, 3, 2])) == pytest.approx(1 / 3)
    assert table.turned(np.array([1, 1]), np.array([1, 2])) == pytest.approx(0.5)
