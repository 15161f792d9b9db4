"""Optimizers by name, and the facts that 01 shows with them."""

import numpy as np
import pandas as pd
import pytest
import torch

from cvlab.lessons import optimizers
from cvlab.models import LeNet
from cvlab.train import OPTIMIZERS, Training, TrainingDiverged


def stepped(name, lr=0.01):
    torch.manual_seed(0)
    model = LeNet()
    optimizer = Training(optimizer=name, lr=lr).make_optimizer(model.parameters())
    model(torch.randn(4, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_moves_every_weight(name):
    """Muon shares the weights with AdamW: none may be forgotten."""
    torch.manual_seed(0)
    before = [p.clone() for p in LeNet().parameters()]
    model, _ = stepped(name)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "size"), [("SGD", 0), ("momentum", 4), ("Adagrad", 4), ("Adam", 8)]
)
def test_state_bytes_per_weight(name, size):
    model, optimizer = stepped(name)
    assert optimizers.state_bytes(optimizer) == size * sum(p.numel() for p in model.parameters())


def test_adagrads_factor_is_rate_over_root_of_summed_squares():
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = Training(optimizer="Adagrad", lr=0.5).make_optimizer([weight])
    for _ in range(4):
        weight.grad = torch.full((3,), 2.0)
        optimizer.step()
    assert optimizers.adagrad_step_factor(optimizer) == pytest.approx(0.5 / np.sqrt(4 * 2.0**2))


@pytest.mark.parametrize("name", ["SGD", "momentum", "Nesterov"])
def test_sgd_walks_the_turned_ravine_the_same_way(name):
    ends = [np.hypot(*optimizers.path(name, 0.01, angle=angle)[-1]) for angle in (0, 30)]
    assert ends[0] == pytest.approx(ends[1])


def test_a_walk_that_leaves_for_infinity_ends_in_nan():
    walk = optimizers.path("SGD", 1.0)
    assert np.isnan(walk[-1]).all()
    assert np.isfinite(walk[0]).all()


def test_momentum_of_the_walk_is_the_one_asked_for():
    assert np.allclose(
        optimizers.path("momentum", 0.01, momentum=0.0), optimizers.path("SGD", 0.01)
    )


def test_cost_has_a_row_for_every_optimizer_and_for_its_fused_form():
    table = optimizers.cost(LeNet(), ["SGD", "Adam", "RMSprop"], rounds=3)
    assert table.index.tolist() == ["SGD", "Adam", "RMSprop", "SGD, fused", "Adam, fused"]
    assert table["bytes_per_weight"].tolist() == [0, 8, 4, 0, 8]
    assert (table["ms"] > 0).all()


def test_leads_are_signed_paired_and_take_each_length_s_own_best_rate():
    """Momentum at 0.1 begins badly and ends best; Adagrad at 0.1 loses 1 all the time."""
    steps = np.arange(1000)
    losses = pd.DataFrame(
        {
            ("momentum", 0.01): np.full(1000, 2.0),
            ("momentum", 0.1): np.where(steps < 500, 3.0, 0.5),
            ("Adagrad", 0.01): np.full(1000, 1.5),
            ("Adagrad", 0.1): np.full(1000, 1.0),
        }
    )
    table = optimizers.leads(losses)
    assert table.loc[100, [0.01, 0.1, "own"]].tolist() == [0.5, 2, 1]
    assert table.loc[1000, [0.01, 0.1, "own"]].tolist() == [0.5, -0.5, -0.5]
    assert (table["low"] == table["own"]).all()  # losses that do not vary
    assert len(optimizers.plot_leads(table, "t").axes[0].lines) == 4


def test_a_duel_makes_no_known_training_again_and_lets_the_diverged_guess(drawn, monkeypatch):
    training = Training(optimizer="momentum", lr=0.01, batch_size=50)
    _, known = optimizers.train_lenet(drawn, training, torch.device("cpu"))

    def diverges(*args):
        raise TrainingDiverged("too far", known)

    monkeypatch.setattr(optimizers, "train_lenet", diverges)
    known.batch_rows[-1]["loss"] = float("inf")
    losses = optimizers.duel(
        drawn, training, None, [0.01, 9], {"momentum": known, "Adagrad": known}
    )
    assert losses.shape == (len(known.batch_rows), 4)
    assert losses.iloc[-1].tolist() == [pytest.approx(np.log(len(drawn.classes)))] * 4


def test_walks_tell_where_each_optimizer_ends_and_the_panels_hold_them_all():
    walks = optimizers.walks({"SGD": 0.01, "Adagrad": 4.6416}, angles=(0, 30))
    assert [(walk["optimizer"], walk["angle"]) for walk in walks] == [
        ("SGD", 0),
        ("Adagrad", 0),
        ("SGD", 30),
        ("Adagrad", 30),
    ]
    assert walks[1]["name"] == "Adagrad: arrives"
    assert walks[0]["name"] == f"SGD: ends {walks[0]['end']:.2g} away"
    edge = optimizers.plot_ravine(walks, "t").axes[0].get_xlim()[1]
    assert max(np.abs(walk["points"]).max() for walk in walks) < edge < 9


@pytest.mark.parametrize(
    ("own", "low", "said"),
    [(0.12, 0.1, "Adagrad leads by 0.12"), (-0.5, -0.6, "momentum leads by 0.50"), (0.1, -0.1, "")],
)
def test_who_leads_is_said_by_the_sign_and_only_where_the_interval_leaves_out_0(own, low, said):
    row = pd.Series({"own": own, "low": low, "high": 2 * own - low})
    assert optimizers.leader(row) == (said or "neither leads")
