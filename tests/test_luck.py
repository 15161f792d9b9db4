"""What a score owes to luck, and duels with equal budgets."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from optuna.trial import FixedTrial

from cvlab import metrics
from cvlab.lessons.search import luck, tune

PARAMS = {"n_layers": 1, "n_units_l0": 16, "dropout_l0": 0.2, "kernel_size": 3}
PARAMS |= {"optimizer": "Adam", "lr": 1e-3}


def equals(agree: float, networks: int = 20, images: int = 2000) -> np.ndarray:
    """Answers of networks that are right on half of the images; on a share all agree."""
    random = np.random.default_rng(0)
    shared = random.random(images) < agree
    right = random.random((networks, images)) < 0.5
    return np.where(shared, right[0], right)


def test_the_lottery_draws_the_same_images_for_all():
    """Networks with the same answers cannot differ on the same images, as in a real search."""
    drawn = luck.lottery(equals(agree=1), 32, seed=0, draws=200)
    assert (drawn["each"] == drawn["best"][:, None]).all()
    assert drawn["best_of_own"].mean() > drawn["best"].mean() + 0.1


def test_on_the_same_images_agreement_leaves_less_to_luck():
    """Where equals agree, the best of them looks less good; images of one's own do not care."""
    apart, alike = (luck.lottery(equals(share), 32, seed=0, draws=500) for share in (0, 0.7))
    assert apart["best"].mean() == pytest.approx(apart["best_of_own"].mean(), abs=0.02)
    assert alike["best"].mean() < apart["best"].mean() - 0.03


def test_the_lottery_keeps_what_its_winner_is_worth_on_all_images():
    right = np.zeros((2, 1000), bool)
    right[1, :600] = True  # the second wins whenever an image tells them apart
    drawn = luck.lottery(right, 32, seed=0, draws=100)
    assert drawn["kept"] == pytest.approx(0.6)
    assert drawn["best"].shape == (100,)
    assert drawn["each"].shape == (100, 2)


def test_equals_differ_by_their_seed_alone_and_see_the_same_images(drawn):
    right = luck.equals(PARAMS, drawn, (3, 4, 3), epochs=1, device="cpu")
    assert right.shape == (3, len(drawn.val))
    assert right.dtype == bool
    assert (right[0] == right[2]).all()
    assert (right[0] != right[1]).any()


def test_images_needed_is_where_the_gap_is_two_standard_errors():
    n = metrics.images_needed(0.5, 0.03)
    error = np.sqrt(2 * 0.25 / n)
    assert 0.03 / 2 * 0.999 < error <= 0.03 / 2


def test_the_replay_trains_what_the_reports_list(drawn, monkeypatch):
    """A changed rate, kernel or width would be another network than theirs."""
    listed = [(7, [56, 31], 2.94e-5), (3, [302], 6.1e-4)]
    for told, (kernel, units, rate) in zip(luck.REPLAYED, listed, strict=True):
        params = luck.with_dropout(told, 0.5)
        model, training = tune.reports_space(FixedTrial(params), 10)
        assert model.arguments["kernel_size"] == kernel
        assert model.arguments["units"] == units
        assert model.arguments["dropouts"] == [0.5] * len(units)
        assert (training.optimizer, training.lr) == ("RMSprop", rate)
    seen = []
    monkeypatch.setattr(tune.Objective, "__call__", lambda self, trial: seen.append(self.seed) or 0)
    objective = tune.Objective(drawn, "reports", images=200, epochs=1, val_images=100)
    rows = luck.replay(objective, (5, 6))
    assert len(rows) == len(luck.REPLAYED) * 2 * 2
    assert rows.groupby("winner")["seed"].agg(list).map(lambda seeds: seeds == [5, 6]).all()
    assert seen == [5, 6] * 4


@pytest.mark.parametrize(("space", "crops"), [("better", True), ("reports", False)])
def test_the_final_training_has_its_passes_and_crops_in_the_better_space_only(
    space, crops, drawn, monkeypatch
):
    """The reports' networks are trained as listed, without crops."""
    seen = {}
    monkeypatch.setattr(luck, "fit", lambda *args, **named: seen.update(training=args[2]))
    params = {"better": tune.KNOWN, "reports": PARAMS}[space]
    luck.longer(space, params, drawn, passes=7, seed=3, device="cpu")
    training = seen["training"]
    assert (training.epochs, training.seed, training.augment) == (7, 3, crops)


def test_the_duel_is_paired_and_signed():
    """`ahead` is positive where the winner is better; it is not compared with itself."""
    labels = torch.arange(400) % 4
    right = torch.nn.functional.one_hot(labels, 4).float()
    worse = right.clone()
    worse[:40] = right[1:41]  # 10 % wrong
    table = luck.against("best", {"best": right, "worse": worse}, labels)
    assert table.loc["worse", "accuracy"] == pytest.approx(90)
    assert table.loc["worse", "ahead"] == pytest.approx(10)
    assert 0 < table.loc["worse", "low"] < 10 < table.loc["worse", "high"]
    assert table.loc["best", ["ahead", "low", "high"]].isna().all()


def test_on_the_same_images_the_wrong_one_wins_as_the_paired_formula_says():
    """Only images on which the two differ count: the fewer, the surer is the comparison."""
    error = np.sqrt((0.2 - 0.03**2) / 320)
    expected = NormalDist().cdf(-0.03 / error)
    assert luck.wrong_wins(0.5, 0.03, 320, disagree=0.2) == pytest.approx(expected, abs=0.01)
    chances = [luck.wrong_wins(0.5, 0.03, 320, disagree=d) for d in (0.05, 0.2, None)]
    assert chances == sorted(chances)
    assert luck.wrong_wins(0.5, 0.03, 320, disagree=0.0) == 0  # it differs where it is behind


def test_who_is_far_behind_is_given_up_early_and_who_leads_is_scored_on_all():
    random = np.random.default_rng(0)
    right = {str(p): random.random(2000) < p for p in (0.7, 0.4, 0.8)}
    table = luck.until_given_up(right, part=100)
    assert table["given_up"].tolist() == [False, True, False]
    assert table["images"].tolist()[::2] == [2000, 2000]
    seen = table.loc["0.4", "images"]
    assert seen < 1000
    assert table.loc["0.4", "accuracy"] == right["0.4"][:seen].mean()
    late = luck.until_given_up(right, part=100, once=True)
    assert late["images"].tolist() == [2000] * 3
    assert late["given_up"].tolist() == [False, True, False]
