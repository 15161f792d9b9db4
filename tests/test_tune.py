"""The search: honest scores, pruning, what a study has found."""

from dataclasses import replace
from statistics import NormalDist

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pytest
import torch
from optuna.trial import FixedTrial, TrialState

from cvlab.lessons.search import figures, luck, studies, tune
from cvlab.lessons.search.studies import StudyError, new_study
from cvlab.train import History, TrainingDiverged

REPORTS = {"n_layers": 1, "n_units_l0": 16, "dropout_l0": 0.2, "kernel_size": 3}
REPORTS |= {"optimizer": "Adam", "lr": 1e-3}

FIGURES = ["optimization_history", "intermediate_values", "slice", "param_importances"]
FIGURES += ["parallel_coordinate"]


@pytest.fixture
def objective(drawn):
    return tune.Objective(drawn, "reports", images=200, epochs=2, val_images=100)


class Impatient(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return True


@pytest.mark.parametrize("space", tune.SPACES)
def test_every_draw_from_a_space_is_a_network_and_how_to_train_it(space):
    study = new_study(space, sampler="random")
    for _ in range(8):
        trial = study.ask()
        model, training = tune.SPACES[space](trial, 10)
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        told = {name: value for name, value in trial.params.items() if hasattr(training, name)}
        assert {"lr"} <= told.keys()
        assert told.items() <= vars(training).items()


def test_a_score_repeats_with_its_seed_and_changes_with_another(objective):
    trial = FixedTrial(REPORTS)
    first = objective(trial)
    assert first * 100 == pytest.approx(round(first * 100))  # of 100 validation images
    assert objective(FixedTrial(REPORTS)) == first
    others = {replace(objective, seed=seed)(FixedTrial(REPORTS)) for seed in (1, 2, 3)}
    assert others != {first}
    assert trial.user_attrs["val_accuracy"] == first
    assert trial.user_attrs["MACs"] > 0


def test_one_batch_is_what_optuna_sees_and_the_honest_score_is_kept(objective):
    trial = FixedTrial(REPORTS)
    score = replace(objective, by_one_batch=True)(trial)
    assert score * 32 == round(score * 32)
    assert trial.user_attrs["val_accuracy"] == objective(FixedTrial(REPORTS))


def test_a_hopeless_trial_is_pruned_after_an_epoch_and_keeps_its_score(objective):
    study = new_study("pruned")
    study.pruner = Impatient()
    tune.search(study, objective, trials=2, what=None)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED] * 2
    assert tune.statistics(study)["saved"] == 0.0  # none ran longer: nothing to compare with
    table = tune.table(study, "PRUNED")
    assert list(table["epochs"]) == [1, 1]
    assert (table["score"] > 0).all()


def test_the_last_epoch_is_never_pruned(objective):
    """It is paid for already."""
    study = new_study("short")
    study.pruner = Impatient()
    tune.search(study, replace(objective, epochs=1), trials=1, what=None)
    assert study.trials[0].state == TrialState.COMPLETE


def test_a_diverged_training_scores_what_guessing_does(objective, monkeypatch):
    """Else the sampler would not learn to keep away from there."""

    def explode(*args, **kwargs):
        raise TrainingDiverged("The loss is nan.", History())

    monkeypatch.setattr(tune, "fit", explode)
    assert objective(FixedTrial(REPORTS)) == 0.1


def by_width(trial):
    """A search without training: the wider, the better, in two epochs."""
    score = trial.suggest_int("width", 1, 100) / 100
    trial.set_user_attr("MACs", trial.params["width"] ** 2)
    for epoch in (1, 2):
        trial.report(score * epoch / 2, epoch)
        if epoch < 2 and trial.should_prune():
            raise optuna.TrialPruned
    return score


def test_a_search_goes_on_where_it_was_and_ends_at_its_limit():
    study = new_study("resumed", sampler="random")
    tune.search(study, by_width, trials=3, what=None)
    tune.search(study, by_width, trials=5, what=None)
    tune.search(study, by_width, trials=5, what=None)
    assert len(study.trials) == 5
    with pytest.raises(ValueError, match="at least one limit"):
        tune.search(study, by_width)


def test_statistics_add_up():
    study = new_study("counted", sampler="random")
    tune.search(study, by_width, trials=20, what=None)
    counts = tune.statistics(study)
    assert counts["finished"] == 20 == counts["complete"] + counts["pruned"]
    assert counts["pruned"] >= 3
    assert counts["saved"] == pytest.approx(counts["pruned"] / 40)  # of two epochs, one
    assert len(tune.table(study, "COMPLETE")) == counts["complete"]
    assert tune.table(study, "COMPLETE")["score"].is_monotonic_decreasing
    assert len(tune.table(study, "FAIL")) == 0


def test_the_first_epoch_is_known_of_every_trial():
    study = new_study("first", sampler="random")
    tune.search(study, by_width, trials=12, what=None)
    first = tune.first_epoch(study)
    widths = [t.params["width"] for t in study.trials]
    assert [t.value * 200 for t in first.trials] == pytest.approx(widths)


def test_the_best_so_far_never_falls():
    study = new_study("rising", sampler="random")
    tune.search(study, by_width, trials=12, what=None)
    best = tune.best_so_far(study)
    assert best["best"].is_monotonic_increasing
    assert best["seconds"].is_monotonic_increasing
    assert best["best"].iloc[-1] == study.best_value


def test_the_pareto_front_holds_what_nothing_beats_in_both():
    study = new_study("known", sampler="random", pruner="none")
    tune.search(study, by_width, trials=8, what=None)
    both = tune.with_costs([study], seed=0)
    both.add_trial(
        optuna.trial.create_trial(
            values=[0.001, 10_001],  # dearer and worse than all
            params={"width": 100},
            distributions=study.trials[0].distributions,
        )
    )
    table = tune.candidates(both)
    assert len(table) == 9
    for number, row in table.iterrows():
        others = table.drop(number)
        beaten = (others["val_accuracy"] >= row["val_accuracy"]) & (others["MACs"] < row["MACs"])
        beaten |= (others["val_accuracy"] > row["val_accuracy"]) & (others["MACs"] <= row["MACs"])
        assert row["best"] == (not beaten.any())


def test_the_best_are_trained_again_with_other_seeds(objective):
    study = new_study("again", sampler="random", pruner="none")
    tune.search(study, objective, trials=3, what=None)
    fresh = tune.again(study, objective, best=2, seeds=(100, 101))
    top = sorted(study.trials, key=lambda t: -t.value)[:2]
    assert sorted(set(fresh["trial"])) == sorted(t.number for t in top)
    assert list(fresh["seed"]) == [100, 100, 101, 101]
    row = fresh.iloc[0]
    params = study.trials[int(row["trial"])].params
    assert replace(objective, seed=100)(FixedTrial(params)) == row["fresh"]


def test_samplers_are_compared_by_the_honest_score_of_what_they_declare_best(objective):
    contestants = {
        "one batch": tune.Contestant(pruner="none", by_one_batch=True),
        "random": tune.Contestant(sampler="random"),
    }
    runs = tune.compare(contestants, objective, seeds=(0, 1), trials=3)
    assert list(runs["contestant"]) == ["one batch", "random"] * 2
    assert list(runs["trials"]) == [3] * 4
    batch, honest = runs[runs["contestant"] == "one batch"], runs[runs["contestant"] == "random"]
    assert (batch["promised"] * 32 % 1 == 0).all()
    assert (honest["promised"] == honest["val_accuracy"]).all()
    last = runs.iloc[-1]
    others = replace(objective, seed=1, data=tune.unseen(objective.data, objective.val_images))
    assert others(FixedTrial(last["params"])) == last["kept"]


def test_trials_that_were_measured_otherwise_are_not_mixed(objective):
    study = new_study("mixed", pruner="none")
    tune.search(study, objective, trials=1, what=None)
    with pytest.raises(StudyError, match=r"images=200; asked for images=100"):
        tune.search(study, replace(objective, images=100), trials=2, what=None)
    assert len(study.trials) == 1


def test_how_often_the_wrong_one_wins():
    error = np.sqrt((0.5 * 0.5 + 0.4 * 0.6) / 100)
    expected = NormalDist().cdf(-0.1 / error)
    assert luck.wrong_wins(0.5, 0.1, 100) == pytest.approx(expected, abs=0.01)
    assert luck.wrong_wins(0.5, 0.0, 32) == pytest.approx(0.5, abs=0.01)


def test_unknown_samplers_are_refused_with_the_choices():
    with pytest.raises(ValueError, match="TPE"):
        new_study("x", sampler="tpe")
    assert set(studies.SAMPLERS) >= {"random", "TPE"}


@pytest.mark.parametrize("kind", FIGURES)
def test_optunas_figures_leave_our_style_alone(kind):
    """Optuna sets a style sheet for the whole session; the next figure of ours would wear it."""
    study = new_study("drawn", sampler="random", pruner="none")
    tune.search(study, with_two_parameters, trials=6, what=None)
    before = dict(plt.rcParams)
    figure = figures.by_optuna(kind, study, "A finding")
    assert dict(plt.rcParams) == before
    assert figure.get_suptitle() == "A finding"
    plt.close(figure)


def with_two_parameters(trial):
    name = trial.suggest_categorical("name", ["a", "b"])
    return by_width(trial) / (1 if name == "a" else 2)


def test_the_widget_draws_any_two_parameters():
    study = new_study("slices", sampler="random", pruner="none")
    tune.search(study, with_two_parameters, trials=6, what=None)
    trials = tune.table(study, "COMPLETE").drop(columns=["epochs", "seconds"])
    box = figures.explore(trials)
    x, y, picture = box.children
    assert (x.value, y.value) == ("name", "width")
    before = picture.value
    x.value = "width"
    assert picture.value != before


def test_the_widget_stands_where_a_slow_machine_had_time_for_one_trial():
    study = new_study("slices", sampler="random", pruner="none")
    tune.search(study, with_two_parameters, trials=1, what=None)
    box = figures.explore(tune.table(study, "COMPLETE").drop(columns=["epochs", "seconds"]))
    assert box.children[0].value != box.children[1].value


def test_unseen_images_are_none_of_those_that_trials_are_judged_on(drawn):
    """Else what a search has kept would be scored on images that it had seen."""
    judged = {image.numpy().tobytes() for image in drawn.take(n_val=120).val.images}
    others = {image.numpy().tobytes() for image in tune.unseen(drawn, 120).val.images}
    assert not judged & others
    assert len(judged | others) == len({i.numpy().tobytes() for i in drawn.val.images})
