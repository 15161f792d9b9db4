"""`python -m cvlab`: wrong input is refused before anything runs; failures cost little."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import nbformat
import pytest

import cvlab
from cvlab.profiles import ParameterError
from cvlab.tools import cli, doctor, executed, runner


def command(*arguments):
    return cli.main([str(argument) for argument in arguments])


def in_a_process(root, *arguments):
    """The command line that does `python -m cvlab` with the notebooks of `root`."""
    code = (
        "import pathlib, runpy, sys, cvlab.paths;"
        "cvlab.paths.PACKAGE = pathlib.Path(sys.argv.pop(1));"
        "runpy.run_module('cvlab', {}, '__main__')"
    )
    return [sys.executable, "-c", code, *map(str, (root / "cvlab", *arguments))]


def as_process(root, *arguments):
    """The same, begun, so that Ctrl-C can reach it."""
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # `make test &` has it ignored
    return subprocess.Popen(
        in_a_process(root, *arguments), stdout=subprocess.PIPE, text=True, preexec_fn=heed
    )


def test_a_failure_is_told_and_the_others_run(workbook, capsys):
    root, log = workbook
    assert command("run", "--out", root / "out") == 1
    assert log.read_text(encoding="utf-8") == "good bad last "
    table = capsys.readouterr().out
    assert "ZeroDivisionError" in table
    assert "10_good              passed" in table
    assert "1/1" in table


def test_resume_repeats_nothing_that_finished(workbook, capsys):
    root, log = workbook
    older = root / "runs" / "published" / "run.json"  # the last one by its name
    older.parent.mkdir(parents=True)
    older.write_text('{"notebooks": ["12_last"]}')
    os.utime(older, (0, 0))
    command("run", "--out", root / "runs" / "new", "-p", "N", "3")
    log.write_text("")
    assert command("run", "--resume") == 1
    assert log.read_text(encoding="utf-8") == "bad "
    assert "10_good: finished earlier" in capsys.readouterr().out


def test_a_command_that_is_stopped_says_what_is_kept(monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cvlab.lessons.search.table.generate", stopped)
    assert command("table") == 130
    assert "Stopped. What was trained is kept; the same command goes on." in capsys.readouterr().err
    monkeypatch.setattr("cvlab.data.load", stopped)
    with pytest.raises(KeyboardInterrupt):  # here nothing is
        command("inspect", "net.onnx")


@pytest.mark.parametrize(
    "console", [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "cp1251"}, {"LC_ALL": "C"}]
)
def test_no_letter_costs_a_result(workbook, console):
    """Windows' consoles know few letters, and in a C locale not even a path has any."""
    root, _ = workbook
    out = root / "Вася Пупкин's 结果" / ("Ж" * 80)
    told = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"} | console
    told["PYTHONPATH"] = str(Path(cvlab.__file__).parent.parent)
    command_line = in_a_process(root, "run", "10", "--out", out)
    done = subprocess.run(command_line, env=os.environ | told, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"1/1" in done.stdout
    assert b"Report: " in done.stdout
    assert executed.read(out / "10_good.ipynb").status == "passed"
    assert (out / "index.html").stat().st_size > 1000


def test_jobs_side_by_side_give_the_same_table(workbook):
    root, log = workbook
    plan = runner.Plan(["10_good", "11_bad", "12_last"])
    results = runner.execute(plan, root / "out", jobs=2)
    assert [(r.name, r.status) for r in results] == [
        ("10_good", "passed"),
        ("11_bad", "failed"),
        ("12_last", "passed"),
    ]
    assert sorted(log.read_text(encoding="utf-8").split()) == ["bad", "good", "last"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["-p", "M", "3"], "no chosen notebook has a parameter 'm'"),
        (["-p", "N", "99"], "n=99 was given"),
        (["-p", "N", "x"], "whole number"),
        (["-p", "SEED", "-1"], "seed"),
        (["-p", "PROFILE", "full"], "--profile"),
        (["--resume", "-p", "N", "3"], "keeps its own plan"),
        (["13"], "10_good"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(workbook, capsys, arguments, hint):
    """Papermill would warn, run the default, and the night would be lost."""
    root, log = workbook
    assert command("run", *arguments, "--out", root / "out") == 2
    assert hint in capsys.readouterr().err.lower().replace("13'; choose from ", "")
    assert log.read_text(encoding="utf-8") == ""
    assert not (root / "out").exists()


def test_a_parameter_reaches_the_notebooks_that_have_it(workbook):
    root, _ = workbook
    command("run", "10", "12", "-p", "N", "7", "--out", root / "out")
    notebook = nbformat.read(root / "out" / "10_good.ipynb", as_version=4)
    assert "7\n" in [o.get("text") for c in notebook.cells for o in c.get("outputs", [])]
    assert executed.read(root / "out" / "12_last.ipynb").status == "passed"


@pytest.mark.parametrize(("machines", "warned"), [("CC", False), ("CD", True)])
def test_a_run_on_several_machines_says_so(workbook, monkeypatch, capsys, machines, warned):
    """A cluster's workers, or one resumed elsewhere: the table puts their times side by side."""
    ran = [executed.Executed(str(i), records=[{"device": d}]) for i, d in enumerate(machines)]
    monkeypatch.setattr(runner, "execute", lambda *given, **how: ran)
    command("run", "10", "--out", workbook[0] / "out")
    assert ("on 2 machines, whose times do not compare: C; D." in capsys.readouterr().out) == warned


def test_half_a_notebook_has_not_finished(workbook):
    root, _ = workbook
    command("run", "10", "--out", root / "out")
    path = root / "out" / "10_good.ipynb"
    assert executed.read(path).status == "passed"
    path.write_text(path.read_text(encoding="utf-8")[:300])
    assert executed.read(path).status == "not run"
    assert executed.read(path).damage


def test_what_an_earlier_plan_left_does_not_count(workbook):
    """The run is stopped before it has begun: another one's notebook is not its result."""

    def stopped(_):
        raise KeyboardInterrupt

    root, _ = workbook
    runner.execute(runner.Plan(["10_good"]), root / "out")
    crew = nullcontext(stopped)
    (result,) = runner.execute(runner.Plan(["10_good"]), root / "out", crew=crew)
    assert result.status == "not run"


def test_a_dead_kernel_is_a_failure_of_that_notebook_only(workbook):
    root, _ = workbook
    path = root / "notebooks" / "11_bad.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace("1 / 0", "import os; os._exit(1)"))
    results = runner.execute(runner.Plan(["11_bad", "12_last"]), root / "out")
    assert [r.status for r in results] == ["failed", "passed"]
    assert "died" in results[0].error.lower()


@pytest.mark.skipif(os.name == "nt", reason="Windows' Ctrl-C goes to a whole console")
def test_ctrl_c_keeps_what_finished_and_resume_goes_on(workbook):
    root, log = workbook
    path = root / "notebooks" / "11_bad.ipynb"
    path.write_text(
        path.read_text(encoding="utf-8").replace("1 / 0", "import time; time.sleep(60)")
    )
    process = as_process(root, "run", "--out", root / "out")
    until = time.monotonic() + 300  # a busy machine's
    while "bad" not in log.read_text(encoding="utf-8") and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "--resume" in output
    assert "11_bad               not run" in output
    path.write_text(path.read_text(encoding="utf-8").replace("time.sleep(60)", "time.sleep(0)"))
    log.write_text("")
    assert command("run", "--resume", "--out", root / "out") == 0
    assert log.read_text(encoding="utf-8") == "bad last "


def test_only_a_passed_class_run_on_real_data_is_published(workbook, capsys):
    root, _ = workbook
    command("run", "10", "--out", root / "out")
    assert command("publish", root / "out") == 2
    assert "--profile class" in capsys.readouterr().err


def test_publishing_copies_the_executed_notebook_without_traces(workbook, monkeypatch):
    """From a folder that is named from here, though a notebook runs in its own."""
    root, _ = workbook
    (root / "figures").mkdir()
    monkeypatch.chdir(root)
    command("run", "10", "--profile", "class", "--out", "out")
    assert command("publish", root / "out") == 0
    notebook = nbformat.read(root / "notebooks" / "10_good.ipynb", as_version=4)
    assert all(c.execution_count for c in notebook.cells)
    assert "papermill" not in Path(root / "notebooks" / "10_good.ipynb").read_text(encoding="utf-8")


def test_of_a_full_run_the_records_are_kept(workbook):
    root, _ = workbook
    before = (root / "notebooks" / "10_good.ipynb").read_text(encoding="utf-8")
    command("run", "10", "--profile", "full", "--out", root / "out")
    assert command("publish", root / "out") == 0
    stored = json.loads(
        (root / "data" / "results" / "10_good_full.json").read_text(encoding="utf-8")
    )
    assert stored["records"] == [{"claim": "c", "holds": True}]
    assert (root / "notebooks" / "10_good.ipynb").read_text(encoding="utf-8") == before


def test_doctor_reports_what_is_missing_and_what_to_do(workbook, capsys):
    assert command("doctor") == 0
    out = capsys.readouterr().out
    assert "python -m cvlab data fetch cifar10" in out
    assert "torch 2" in out
    assert "torch.compile" in out
    assert "!!" not in out


def test_what_is_missing_is_named_with_its_extra(monkeypatch):
    """As pip knows it; what only the tests need is not missed."""
    listed = ["torch>=2.9", "distributed>=2025.1; extra == 'tools'", "ruff; extra == 'dev'"]
    monkeypatch.setattr(doctor, "requires", lambda package: listed)
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    lines = list(doctor.report())
    assert "  !!  torch missing: pip install torch" in lines
    assert "  --  distributed missing (optional): pip install 'cvlab[tools]'" in lines
    assert not any("ruff" in line for line in lines)


@pytest.mark.parametrize("error", [ValueError("x"), ZeroDivisionError("x")])
def test_a_bug_keeps_its_traceback(workbook, monkeypatch, error):
    """Only our own errors, whose messages say what to do, end as a line and exit code 2."""
    monkeypatch.setattr(runner, "choose", lambda asked: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        command("run")


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("0.1", 0.1), ("['a', 'b']", ["a", "b"]), ("None", None), ("cat", "cat")],
)
def test_values_are_read_as_python_or_text(text, value):
    assert cli.value_of(text) == value


def test_a_parameter_that_every_notebook_has_needs_no_limit_of_its_own():
    """As README shows it: `run 01 -p SEED 3 -p EPOCHS 20`."""
    parameters = {"SEED": 3, "EPOCHS": 20}
    given = runner.check(runner.Plan(["00_environment", "01_optimizers"], parameters=parameters))
    assert given == {"00_environment": {"SEED": 3}, "01_optimizers": parameters}


@pytest.mark.parametrize(
    ("name", "parameters", "hint"),
    [
        ("02_pooling", {"CLASSES": ["lion", "tigre"]}, "Did you mean 'tiger'"),
        ("02_pooling", {"CLASSES": ["lion", "lion"]}, "different"),
        ("02_pooling", {"CLASSES": ["lion", 3]}, "no class 3"),
        ("02_pooling", {"CLASSES": "lion"}, "list of names"),
        ("03_pretrained_zoo", {"MORE_NETWORKS": ["resnet5"]}, "Did you mean 'resnet50'"),
        ("03_pretrained_zoo", {"MORE_NETWORKS": "resnet18"}, "list of names"),
    ],
)
def test_what_only_a_part_of_the_package_knows_is_looked_up_before_a_run(name, parameters, hint):
    with pytest.raises(ParameterError, match=hint):
        runner.check(runner.Plan([name], parameters=parameters))
