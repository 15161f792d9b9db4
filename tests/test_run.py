"""A notebook's context: parameters are checked, claims decide, records are real numbers."""

import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
import torch

import cvlab
from cvlab import machine, plots
from cvlab.machine import hardware
from cvlab.profiles import PROFILES, ParameterError, check_parameters, profiles
from cvlab.run import ClaimsFailed


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("CVLAB_OUT", str(tmp_path))
    return cvlab.start("00_environment", "smoke", "synthetic")


@pytest.mark.parametrize(
    ("name", "parameters", "hint"),
    [
        ("01_optimisers", {}, "01_optimizers"),
        ("01_optimizers", {"profile": "quick"}, "smoke"),
        ("01_optimizers", {"epoch": 3}, "EPOCHS"),
        ("01_optimizers", {"epochs": 0}, "from 2 to 1000"),
        ("01_optimizers", {"epochs": "many"}, "whole number"),
        ("01_optimizers", {"epochs": 2.5}, "whole number"),
        ("01_optimizers", {"epochs": True}, "whole number"),
        ("01_optimizers", {"optimizers": ["SGD", "sgd"]}, "'momentum'"),
        ("01_optimizers", {"optimizers": []}, "at least one"),
        ("01_optimizers", {"rates": [0.1, -1]}, "from 1e-06"),
        ("01_optimizers", {"seed": -1}, "SEED"),
        ("01_optimizers", {"data": 3}, "folder"),
        ("03_pretrained_zoo", {"download": True}, "'yes'"),
    ],
)
def test_a_wrong_parameter_is_answered_with_the_choices(name, parameters, hint):
    with pytest.raises(ParameterError, match=hint):
        check_parameters(name, parameters)


def test_none_means_from_the_profile():
    knobs = cvlab.start("01_optimizers", "smoke", epochs=None, rates=[0.5]).knobs
    budget = profiles()["01_optimizers"]["smoke"]
    assert knobs.epochs == budget["epochs"]
    assert knobs.rates == [0.5]


def test_every_notebook_has_the_same_knobs_in_every_profile():
    """A knob missing in one profile fails an instructor's run hours later."""
    for name, budgets in profiles().items():
        knobs = [set(budgets[p]) - {"n_train", "n_val", "n_test"} for p in PROFILES]
        assert knobs[0] == knobs[1] == knobs[2], name
        for profile in PROFILES:
            limited = {k: v for k, v in budgets[profile].items() if k in budgets["limits"]}
            check_parameters(name, limited)


def test_the_banner_is_short_and_names_the_machine(capsys):
    cvlab.start("00_environment", "smoke")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[1] == f"cpu    {hardware().cpu}"
    expected = f"       {hardware().cores} logical cores, {torch.get_num_threads()} threads · "
    assert lines[2].startswith(expected)


def test_a_record_names_the_machine_it_was_made_on(run):
    """Its CPU with all that tells it from others; a GPU only where this run computes on it."""
    run.record("accuracy", 0.5)
    run.device = torch.device("cuda")
    run.record("accuracy", 0.5)
    name = hardware().name
    assert [record["device"] for record in run.records] == [name, f"{hardware().gpu}; {name}"]


def test_torch_takes_no_more_threads_than_the_quota(monkeypatch):
    """It sees an affinity itself; with a quota its threads would wait for each other."""
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    torch.set_num_threads(2)
    cvlab.start("00_environment", "smoke")
    assert torch.get_num_threads() == 1


def test_the_profile_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("CVLAB_PROFILE", "smoke")
    assert cvlab.start("00_environment").profile == "smoke"


def test_a_false_claim_fails_the_notebook_at_the_end_and_is_named(run, capsys):
    run.claim("water is wet", True)
    run.claim("the moon is cheese", False)
    with pytest.raises(ClaimsFailed, match="moon is cheese"):
        run.finish()
    assert "✓ water is wet\n✗ the moon is cheese\n" in capsys.readouterr().out


def test_true_claims_pass(run):
    run.claim("water is wet", 1 < 2)
    run.finish()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_only_finite_numbers_are_records(run, value):
    with pytest.raises(ValueError, match="finite"):
        run.record("accuracy", value)


def test_a_figure_of_the_stand_in_says_so(run, tmp_path):
    run.load("cifar10")
    open_before = plt.get_fignums()
    figure, _ = plots.canvas("A finding")
    run.show(figure, "finding")
    assert "STAND-IN" in figure.get_suptitle()
    assert (tmp_path / "figures" / "00_finding.png").read_bytes()[:4] == b"\x89PNG"
    assert plt.get_fignums() == open_before


def test_a_figure_that_cannot_be_saved_does_not_stop_the_notebook(run, tmp_path, capsys):
    (tmp_path / "figures").write_text("a file in the way")
    run.show(plots.canvas("A finding")[0], "finding")
    assert "not saved" in capsys.readouterr().out


def test_import_is_quick_because_heavy_libraries_wait():
    heavy = "onnxruntime, optuna, timm, torchvision, openvino, sklearn, papermill, pandas, nbformat"
    heavy += ", matplotlib, ipywidgets"
    code = f"import cvlab, sys; print([m for m in '{heavy}'.split(', ') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_torchvision_imports_beside_this_torch():
    """In a fresh process, because a repaired import stays repaired."""
    code = (
        "from cvlab.machine import import_torchvision as f; f(); f();"
        "import torchvision.models as m, timm; print(m.resnet18(num_classes=3).fc.out_features)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"


@pytest.mark.parametrize(
    ("value", "measured", "unit", "told"),
    [
        (None, 2.9, " times", "You made no guess"),
        (18, 3, " times", "off by a factor of 6"),
        (1, 3, " times", "off by a factor of 3"),
        (80, 77.5, " %", "+2.5 off"),
        (-1, 2.0, " ms", "-3 off"),
    ],
)
def test_a_guess_is_scored_against_the_measurement(run, capsys, value, measured, unit, told):
    run.guess("How many times faster?", value).score(measured, unit)
    assert told in capsys.readouterr().out


def test_the_cells_below_use_the_learners_function_only_where_it_is_right(run):
    def interval(right, n):
        return 0.0, 1.0

    assert run.use(interval, ours=len) is len

    def output_size(size, kernel, stride, padding):
        return (size + 2 * padding - kernel) // stride + 1

    assert run.use(output_size, ours=len) is output_size
