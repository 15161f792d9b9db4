"""The capstone's pieces: the budget is counted, the rule is kept, the report tells all of it."""

import re

import pandas as pd
import pytest
import torch

from cvlab import export, runtime, store
from cvlab.lessons import capstone
from cvlab.lessons.int8 import quantize
from cvlab.lessons.int8.ladder import stacked
from cvlab.lessons.search import studies, tune
from cvlab.models import SmallCNN
from cvlab.records import STAND_IN_LABEL
from cvlab.run import start

KNOWN = tune.KNOWN_KNOBS["SmallCNN"]


def test_the_budget_counts_every_epoch_of_the_search_also_of_pruned_trials(drawn):
    objective = tune.Objective(drawn, "SmallCNN", images=100, epochs=2, val_images=50)
    study = studies.new_study("budget", sampler="random", pruner="none")
    study.enqueue_trial(KNOWN)
    tune.search(study, objective, trials=2, what=None)
    assert capstone.passes(study, objective) == pytest.approx(2 * 2 * 100 / len(drawn.train))
    pruned = study.ask()
    pruned.report(0.1, 1)
    study.tell(pruned, state=tune.TrialState.PRUNED)
    assert capstone.passes(study, objective) == pytest.approx(5 * 100 / len(drawn.train))


@pytest.mark.parametrize(("best", "more"), [(0.505, {}), (0.515, {"searched": 7})])
def test_a_trial_reaches_the_final_if_it_beats_what_is_known_by_a_standard_error(best, more):
    """The standard error of 50 % on 2,500 images is one point."""
    trials = pd.DataFrame({"score": [best, 0.5, 0.4]}, index=[7, 3, 5])
    trials[["lr", "weight_decay"]] = [[0.3, 0.001], [*KNOWN.values()], [0.01, 0.01]]
    finalists, error = capstone.finalists(trials, KNOWN, 2500)
    assert finalists == {"known": 3} | more
    assert error == pytest.approx(0.01)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("name", tune.KNOWN_KNOBS)
def test_what_is_known_is_a_point_of_its_space(name):
    """Optuna warns of a value outside, and takes it all the same."""
    _, training = tune.SPACES[name](tune.FixedTrial(tune.KNOWN_KNOBS[name]), 10)
    assert tune.KNOWN_KNOBS[name].items() <= vars(training).items()


def test_the_ledger_has_a_sign_and_adds_what_was_paid(drawn, tmp_path, monkeypatch):
    """A search whose winner is behind the known setting alone is a negative row."""
    monkeypatch.setenv("CVLAB_OUT", str(tmp_path))
    run = start("07_capstone", "smoke", "synthetic")
    net, history = capstone.train("SmallCNN", KNOWN, 0.7, drawn.take(n_train=300), run, "known")
    assert len(history.epoch_rows) == 2  # two thirds of a pass are in 0.7
    assert capstone.costs({"known": history}).loc["known", "passes"] == pytest.approx(2 / 3)
    torch.manual_seed(1)
    networks = {"known": net, "new": SmallCNN(10)}
    points, low, high = capstone.ahead(networks, "known", drawn)[0].loc["new"]
    assert low < points < high
    back, _ = capstone.ahead(networks, "new", drawn)
    assert back.loc["known"].tolist() == pytest.approx([-points, -high, -low])
    stages = pd.DataFrame(
        {"drop_pp": [0.0, 0.3], "drop_low": [-0.1, 0.1], "drop_high": [0.1, 0.5]},
        index=["ONNX Runtime", "INT8"],
    ).assign(latency_ms=0.2, size_mb=1.0)
    paid = {"training": (9, 3), "search": (11, 5), "export": (1, 0), "INT8": (2, 0)}
    table = capstone.ledger(paid, {"training": [70], "search": (-2, -3, -1)}, stages)
    assert table.loc["search", ["passes", "points", "low"]].tolist() == [5, -2, -3]
    assert table.loc["INT8", ["points", "low", "high"]].tolist() == [-0.3, -0.5, -0.1]


def test_like_goes_with_like():
    columns = {"latency_ms": [0.2, 0.1], "size_mb": [1.0, 0.25]}
    ours = pd.DataFrame(columns, index=["fp32", "dynamic INT8"])
    columns = {"latency_ms": [10.0, 20.0], "built_mb": [40.0, 10.0]}
    reports = pd.DataFrame(columns, index=["EfficientNet-B3", "EfficientNet-B3, INT8"])
    times = capstone.like_for_like(dict(ours.iterrows()), reports)
    assert times.to_numpy().tolist() == [[50, 40], [200, 40]]


def test_a_network_of_the_zoo_sees_larger_images_than_ours(drawn):
    assert capstone.view("SmallCNN", drawn) is drawn
    seen = capstone.view("tf_efficientnet_lite0", drawn)
    assert next(iter(seen.batches("val", 2).epoch()))[0].shape == (2, 3, 64, 64)
    assert seen.mean == (0.5, 0.5, 0.5)


def test_the_three_stages_answer_for_the_same_images(drawn, tmp_path):
    torch.manual_seed(0)
    net = store.save(SmallCNN(10).eval(), tmp_path / "net.pt", drawn)
    model = runtime.Model(export.to_onnx(store.load(net).model, tmp_path / "fp32.onnx"))
    some = stacked(drawn.batches(drawn.train.take(32), 25))
    int8 = quantize.Source(model, some, tmp_path).make(quantize.Recipe())
    table = capstone.stages(net, model, int8, drawn, 1, rounds=6)
    assert list(table.index) == ["PyTorch", "ONNX Runtime", "INT8"]
    assert (table["n"] == len(drawn.test)).all()
    assert table.loc["ONNX Runtime", "agreement"] == 1
    assert table.loc["ONNX Runtime", "accuracy"] == table.loc["PyTorch", "accuracy"]
    assert table.loc["INT8", "size_mb"] < table.loc["ONNX Runtime", "size_mb"] / 3
    assert (table["latency_ms"] > 0).all()


def test_the_reports_have_an_interval_where_they_say_how_many_images():
    reports = capstone.reports()
    best = reports.loc["Optuna, best trial"]
    assert best["low"] == pytest.approx(0.282, abs=0.001)  # Wilson, 14 of 32
    assert best["high"] == pytest.approx(0.607, abs=0.001)
    assert reports.loc["EfficientNet-B3", ["low", "high"]].isna().all()
    assert reports["conditions"].str.len().min() > 0


@pytest.fixture
def run(tmp_path):
    run = start("07_capstone", "smoke", "synthetic")
    run.load("cifar10")
    run.record("accuracy", 0.75, stage="INT8", n=100)
    run.record("latency_ms", 0.5, "ms", stage="INT8", p10=0.4, p90=0.7)
    run.record("seconds", 12, "s", step="search")
    run.claim("it holds", True)
    run.claim("it does not", False)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "07_stages.png").write_bytes(b"\x89PNG")
    return run


def test_your_report_tells_records_claims_and_that_images_were_drawn(run, tmp_path):
    text = capstone.write_report(run, "My own words.\nTwo lines.", "07_stages.png", tmp_path)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == text
    assert "| INT8 | 75.0 % (65.7 to 82.5 %, n = 100) | 0.5 ms (0.4 to 0.7) |" in text
    assert "- seconds (step search): 12 s" in text
    assert "- ✓ it holds\n- ✗ it does not" in text
    assert "> My own words.\n> Two lines." in text
    assert "the synthetic stand-in" in text
    (link,) = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert (tmp_path / link).read_bytes().startswith(b"\x89PNG")
    assert STAND_IN_LABEL in {record["source"] for record in run.records}


def test_the_widget_names_the_best_that_fits():
    models = pd.DataFrame(
        {"latency_ms": [1.0, 0.1, 10.0], "accuracy": [0.8, 0.7, 0.97], "size_mb": [1, 0.3, 45]},
        index=["middle", "small", "big"],
    ).assign(kind="ours")
    box = capstone.explore(models)
    before = box.children[-1].value
    box.children[0].value = 0.5
    assert box.children[-1].value != before
    box.children[1].value = 0.01  # nothing fits: no error
