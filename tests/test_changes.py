"""What changed between two runs: whoever finds the weekly run red is told where to look."""

import json

import pytest
from test_report import claim, page, plan, record, store, table

from cvlab.tools import changes, cli, run_folder, runner

NAME = "01_optimizers"


def run(folder, *outputs, seconds=100.0, ending="", **packages):
    store(
        plan(folder, NAME, packages=packages) / f"{NAME}{ending}.ipynb", *outputs, seconds=seconds
    )
    return folder


@pytest.fixture
def old(tmp_path):
    numbers = record("test_accuracy", 0.5, n=100, optimizer="SGD"), record("seconds", 3, "s")
    return run(tmp_path / "old", claim("A wins"), claim("B loses"), *numbers, torch="2.13", nh3="1")


def between(*folders):
    return changes.between(*map(run_folder.read, folders))


def test_two_runs_of_the_same_differ_in_nothing(old, tmp_path):
    assert between(old, old) == []
    assert "Nothing changed" in changes.table(run_folder.read(old), run_folder.read(old))


def test_each_kind_of_change_is_one_row(old, tmp_path):
    """Within its band a number may move, and a time by half: that is no news."""
    numbers = record("test_accuracy", 0.05, n=100, optimizer="SGD"), record("seconds", 4, "s")
    made = claim("A wins", False), claim("C is new"), *numbers
    new = run(
        tmp_path / "new", *made, seconds=151, ending=".failed", torch="2.14", scipy="1", nh3="1"
    )
    rows = between(old, new)
    assert [row[:2] for row in rows] == [
        ("package", "scipy"),
        ("package", "torch"),
        ("notebook", NAME),
        ("claim", f"{NAME}: A wins"),
        ("claim", f"{NAME}: B loses"),
        ("claim", f"{NAME}: C is new"),
        ("time", NAME),
        ("number", f"{NAME}: test_accuracy optimizer SGD, expected 0.1 to 0.6"),
    ]
    assert rows[1][2:] == ("2.13", "2.14")
    assert rows[3][2:] == ("holds", "does not hold")
    assert rows[4][2:] == ("holds", "not checked")
    assert rows[6][2:] == ("1 min 40 s", "2 min 31 s")
    assert rows[7][2].startswith("50.0 %")
    assert rows[7][3].startswith("5.0 %")
    calm = run(
        tmp_path / "calm", claim("A wins"), claim("B loses"), seconds=149, torch="2.13", nh3="1"
    )
    assert between(old, calm) == []


def test_a_run_without_a_list_of_packages_tells_nothing_of_them(old, tmp_path):
    assert {row[0] for row in between(run(tmp_path / "older"), old)} <= {"claim"}


def test_the_command_prints_a_table_shows_it_and_keeps_a_history(old, tmp_path, capsys):
    new = run(tmp_path / "new", claim("A | <b>wins"), claim("B loses"), torch="3", nh3="1")
    history = tmp_path / "kept" / "history.jsonl"
    for _ in range(2):
        assert cli.main(["report", str(old), str(new), "--history", str(history)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| package | torch | 2.13 | 3 |" in lines
    assert f"| claim | {NAME}: A / &lt;b>wins | not checked | holds |" in lines
    rows = table(page(tmp_path / "comparison" / "index.html"), "changes")
    assert ["claim", f"{NAME}: A | <b>wins", "not checked", "holds"] in rows
    first, second = map(json.loads, history.read_text(encoding="utf-8").splitlines())
    assert first == second
    assert first["packages"]["torch"] == "3"
    assert first["notebooks"][NAME]["claims"] == {"A | <b>wins": True, "B loses": True}


def test_half_a_character_is_remembered_too(tmp_path):
    """JSON may hold one, and no file in UTF-8 can."""
    odd = run(tmp_path / "odd", claim("half a \ud800"))
    changes.remember(run_folder.read(odd), tmp_path / "history.jsonl")
    kept = json.loads((tmp_path / "history.jsonl").read_text(encoding="utf-8"))
    assert kept["notebooks"][NAME]["claims"] == {"half a \ud800": True}


def test_a_run_stores_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "execute_one", lambda task, slot: runner.Executed(task.path.stem))
    plan_ = runner.Plan([NAME])
    runner.execute(plan_, tmp_path)
    packages = run_folder.read(tmp_path).plan["packages"]
    assert {"python", "torch", "numpy"} <= set(packages)
    assert runner.read_plan(tmp_path) == plan_
