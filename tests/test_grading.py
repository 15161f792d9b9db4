"""Grading: a made-up class gets what it must be told, and nobody can hurt anybody."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from datetime import datetime, timedelta
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from handed_in import (
    HOSTILE,
    RIGHT,
    SOLUTIONS,
    differences,
    hostile,
    make,
    notebook,
    whole,
    with_body,
)
from test_cluster import Cluster, wait_for
from test_exercises import WRONG

from cvlab.exercises import judge
from cvlab.tools import cli
from cvlab.tools.grading import collect, execute, export, grade, limits, marks
from cvlab.tools.grading import judge as judging
from cvlab.tools.grading.words import decode, encode

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no limits without POSIX")
SECONDS = 3  # of computing: what never ends shall end soon


@pytest.fixture(autouse=True)
def here(request, monkeypatch):
    """Judged in this process, which imports everything once, but where a test wants workers."""
    if "workers" not in request.keywords:
        monkeypatch.setattr(grade, "_judge", judge_here)


def judge_here(tasks, *_):
    imports = collect.imports()  # all of them, so that one home does for all tests
    return ((task, judging.judged(task | {"imports": imports})) for task in tasks)


def busy():
    """Does this machine have more to do than it can?"""
    return os.getloadavg()[0] > 2 * os.cpu_count()


def noted(monkeypatch):
    """A list that gets, of each call, who and what is judged."""
    judged = []

    def counted(tasks, *_):
        judged.append({(task["student"], *task["answers"]) for task in tasks})
        return judge_here(tasks)

    monkeypatch.setattr(grade, "_judge", counted)
    return judged


def run(folder, *more):
    """The command, on `in` of this folder; its marks, (student, exercise) -> row."""
    if sys.platform != "linux" or limits.rules([], []) is None:
        pytest.skip("this system has no Landlock: grading refuses, which has a test of its own")
    given = [folder / "in", "--out", folder / "marks", "--secret", "s", "--seconds", SECONDS]
    assert cli.main(["grade", *map(str, given), *map(str, more)]) == 0
    told = json.loads((folder / "marks" / "marks.json").read_text(encoding="utf-8"))
    return {(row["student"], row["exercise"]): row for row in told["marks"]}, told


def alone(folder, student, **answers):
    """A student's notebooks, as few as hold these answers."""
    for name in {collect.exercises()[exercise].notebook for exercise in answers}:
        path = folder / "in" / student / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(notebook(name, answers, kept=False)), encoding="utf-8")
    return path


@pytest.mark.workers
def test_a_class_of_the_good_the_wrong_and_the_hostile_gets_what_it_is_told(tmp_path):
    expected = make(tmp_path / "in", 8)
    for i, (body, said) in enumerate(HOSTILE.items()):
        alone(tmp_path, f"evil{i:02}", output_size=hostile(body, tmp_path / "in"))
        expected[f"evil{i:02}"] = {"output_size": said}
    before = (tmp_path / "in" / "student000" / "02_pooling.ipynb").read_bytes()
    _, told = run(tmp_path, "--jobs", 2)
    wrong = differences(expected, told)  # a busy machine may spoil what takes times
    assert [line for line in wrong if not (busy() and "milliseconds" in line)] == []
    assert (tmp_path / "in" / "student000" / "02_pooling.ipynb").read_bytes() == before
    page = (tmp_path / "marks" / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "signals to others" in page
    assert "NOT forbidden" not in page  # this machine is a Linux with Landlock and seccomp


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("fair_rates", "return {'SGD': 0.1, 'Adam': 0.001}"),
        ("survivors", "return {'A', 'B'}"),
        ("milliseconds", "for _ in range(22): call()\nreturn 2.0"),
        ("images_needed", "return {0.5: 2223, 0.8: 8889, 0.9: 147}.get(p, 1)"),
        ("to_uint8", "return np.array([100, 100, 100, 101, 102, 102, 99, 200, 255, 0], np.uint8)"),
    ],
)
def test_a_look_up_table_of_what_notebooks_show_is_wrong(tmp_path, name, body):
    alone(tmp_path, "ann", **{name: with_body(name, body)})
    assert run(tmp_path)[0]["ann", name]["outcome"] == "wrong"


def test_who_does_not_listen_is_stopped_too(tmp_path):
    """The question is longer than a socket holds, and nobody reads it."""
    source = "import time\ntime.sleep(1000)\n" + SOLUTIONS["same_answer"]
    alone(tmp_path, "ann", same_answer=source)
    row = run(tmp_path, "--seconds", 1)[0]["ann", "same_answer"]
    assert row["outcome"] == "wrong"
    assert "stopped after" in row["said"]


def test_where_something_is_not_forbidden_nothing_runs(tmp_path, monkeypatch):
    alone(tmp_path, "ann", output_size=SOLUTIONS["output_size"])
    living = judging._home({"imports": collect.imports()})
    for name, found in {"tries": ["a", "b"], "free": ["b"]}.items():  # of a probe
        monkeypatch.setattr(living, name, found)
    given = [tmp_path / "in", "--out", tmp_path / "marks"]
    assert cli.main(["grade", *map(str, given)]) == 2
    assert not (tmp_path / "marks" / "marks.json").exists()
    rows, told = run(tmp_path, "--unprotected")
    assert rows["ann", "output_size"]["outcome"] == "solved"
    assert "NOT forbidden: b" in told["enforced"]


def test_only_what_changed_is_judged_again_and_half_a_line_is_no_harm(tmp_path, monkeypatch):
    judged = noted(monkeypatch)
    alone(tmp_path, "ann", output_size=SOLUTIONS["output_size"])
    alone(tmp_path, "ben", output_size=with_body("output_size", WRONG["output_size"][0][0]))
    first, _ = run(tmp_path)
    with (tmp_path / "marks" / "graded.jsonl").open("a") as file:
        file.write('{"key": "cut sho')
    again, _ = run(tmp_path)
    alone(tmp_path, "ben", output_size=SOLUTIONS["output_size"])
    third, _ = run(tmp_path)
    assert first == again
    ann, ben = ("ann", "output_size"), ("ben", "output_size")
    run(tmp_path)
    assert judged == [{ann, ben}, set(), {ben}, set()]
    assert third[ann] == first[ann]
    assert (first[ben]["points"], third[ben]["points"]) == (0, first[ben]["of"])


def test_what_is_late_missing_odd_or_twice_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "MOST_BYTES", 2**21)
    late = alone(tmp_path, "ann", output_size=SOLUTIONS["output_size"])
    long_ago = (datetime.now() - timedelta(days=2)).timestamp()
    folder = late.parent
    (folder / "01_optimizers.ipynb").write_text(json.dumps(notebook("01_optimizers", {})))
    os.utime(folder / "01_optimizers.ipynb", (long_ago, long_ago))
    (folder / "03_pretrained_zoo.ipynb").write_text("{" * 3)
    (folder / "04_optuna.ipynb").write_text(" " * 2**22)
    (folder / "05_onnx.ipynb").symlink_to(late)
    (folder / "deep.ipynb").write_text("[" * 100_000)
    (folder / "mine.ipynb").write_text('{"cells": [{"cell_type": "code", "source": ["1"]}]}')
    (folder / "06_int8.ipynb").write_text('{"cells": 3}')
    (tmp_path / "in" / "ben_02_pooling.ipynb").write_text(json.dumps(notebook("02_pooling", {})))
    (tmp_path / "in" / "._ben_02_pooling.ipynb").write_bytes(b"\0")  # a Mac's
    (tmp_path / "in" / ".ipynb_checkpoints").mkdir()
    alone(tmp_path, os.fsdecode(b"zo\xeb"), output_size=SOLUTIONS["output_size"])  # in Latin-1
    (tmp_path / "names.txt").write_text("ann\nzoe\n")
    due = (datetime.now() - timedelta(days=1)).isoformat(timespec="minutes")
    rows, told = run(tmp_path, "--due", due, "--students", tmp_path / "names.txt")
    assert {student for student, _ in rows} == {"ann", "ben", "zoe", r"zo\udceb"}
    assert rows["ann", "output_size"]["late"]
    assert not rows["ann", "adam_step"]["late"]
    assert rows["ann", "adam_step"]["outcome"] == "not attempted"
    assert rows["zoe", "adam_step"]["outcome"] == rows["ben", "adam_step"]["outcome"] == "missing"
    notes = " | ".join(told["notes"]["ann"])
    for said in (
        "Clear its outputs",
        "05_onnx.ipynb was not read: [Errno",
        "mine.ipynb is none",
        "it has no cells",
    ):
        assert said in notes, notes
    page = (tmp_path / "marks" / "index.html").read_text(encoding="utf-8")
    assert "06_int8 is missing" in page
    assert "02_pooling is late" in page


def test_the_last_definition_counts_unless_it_is_the_stub():
    stub, right = collect.exercises()["output_size"].stub, SOLUTIONS["output_size"]
    wrong = with_body("output_size", "return 1")
    for sources, taken in (
        ([wrong, right], right),
        ([right, stub], right),
        ([stub, right, "x = 1"], right),
        (["def other(): pass", stub], stub),
    ):
        handed = collect.HandedIn("ann")
        collect._take_answers(handed, sources)
        assert handed.answers["output_size"] == taken


def saved(content, minor=5, text=False, ending="\n", magic="", lines="\n"):
    """A notebook as one of several programs saves it, in bytes."""
    content = json.loads(json.dumps(content)) | {"nbformat_minor": minor}
    for cell in content["cells"]:
        cell["metadata"]["vscode"] = {"languageId": "python"}
        if minor < 5:
            del cell["id"]
        source = (magic + "".join(cell["source"])).replace("\n", ending)
        cell["source"] = source if text else source.splitlines(keepends=True)
    return json.dumps(content, ensure_ascii=False, indent=1).replace("\n", lines).encode()


@pytest.mark.parametrize("exercise", ["output_size", "to_uint8"])  # `run.check` and `run.use`
def test_every_program_and_version_saves_the_same_answer(tmp_path, exercise):
    where = collect.exercises()[exercise].notebook
    mine = notebook(where, {exercise: SOLUTIONS[exercise]})
    forms = {f"4.{minor}": saved(mine, minor) for minor in (2, 3, 4, 5)}
    forms |= {"text": saved(mine, text=True), "bom": b"\xef\xbb\xbf" + saved(mine)}
    forms |= {"crlf": saved(mine, ending="\r\n"), "cr": saved(mine, text=True, ending="\r")}
    forms |= {"lines": saved(mine, lines="\r\n"), "magic": saved(mine, magic="%%time\n")}
    for student, content in forms.items():
        (tmp_path / f"{student}_{where} (1).ipynb").write_bytes(content)
    found = {one.student: one for one in collect.collect(tmp_path)}
    assert found.keys() == forms.keys()
    told = {student: one.answers[exercise].split() for student, one in found.items()}
    assert told == dict.fromkeys(forms, whole(exercise, SOLUTIONS[exercise]).split())
    assert not [one.notes for one in found.values() if one.notes]


def test_what_follows_an_answer_in_its_cell_is_no_harm(tmp_path):
    """`to_uint8 = run.use(to_uint8, ...)` needs the notebook; and a cell may define two."""
    both = whole("to_uint8", SOLUTIONS["to_uint8"]) + "\nthere_is_no_such_name()\n"
    alone(tmp_path, "ann", to_uint8=both)
    rows, _ = run(tmp_path)
    assert rows["ann", "to_uint8"]["outcome"] == "solved"


def test_a_notebook_of_200_mb_is_not_read_and_a_renamed_function_is_missing(tmp_path):
    path = alone(tmp_path, "ann", output_size=SOLUTIONS["output_size"].replace("def o", "def my_o"))
    with (path.parent / "05_onnx.ipynb").open("wb") as file:
        file.truncate(200 * 2**20)
    rows, told = run(tmp_path)
    assert rows["ann", "output_size"]["outcome"] == "missing"
    assert rows["ann", "blur_pool"]["outcome"] == "not attempted"
    assert "200 MB; 20 are allowed. Clear its outputs" in told["notes"]["ann"][0]


def test_marks_have_weights_and_disarm_formulas(tmp_path):
    alone(tmp_path, "=cmd()", output_size=SOLUTIONS["output_size"])
    (tmp_path / "w.toml").write_text('late = 0.5\n[points]\n"●○○" = 7\n[exercise]\nfold = 9\n')
    rows, _ = run(tmp_path, "--weights", tmp_path / "w.toml", "--due", "2001-01-01")
    assert rows["=cmd()", "output_size"]["points"] == 3.5
    assert rows["=cmd()", "fold"]["of"] == 9
    with (tmp_path / "marks" / "totals.csv").open(encoding="utf-8") as file:
        (total,) = csv.DictReader(file)
    assert (total["student"], total["points"], total["02_pooling"]) == ("'=cmd()", "3.5", "3.5")
    (tmp_path / "w.toml").write_text("[exercise]\nfoldd = 9\n")
    with pytest.raises(collect.GradeError, match="names foldd"):
        marks.weights(tmp_path / "w.toml")
    (tmp_path / "w.toml").write_text("exercise = 3\n")
    with pytest.raises(collect.GradeError, match="cannot be used"):
        marks.weights(tmp_path / "w.toml")


def test_a_secret_that_was_not_written_is_drawn(tmp_path):
    """Killed before the text was there: an empty one would be known to all."""
    (tmp_path / "secret").touch()
    drawn = grade._secret(tmp_path, None)
    assert len(drawn) == 32
    assert grade._secret(tmp_path, None) == drawn
    assert grade._secret(tmp_path, "given") == "given"


def test_answers_alike_but_for_names_and_layout_are_listed():
    one = with_body("adam_step", WRONG["adam_step"][0][0])
    other = one.replace("square", "zz").replace("mean", "yy").replace("; ", "\n    # mine\n    ")
    assert judging.form(one, "adam_step") == judging.form(other, "adam_step") != ""
    assert judging.form(one, "adam_step") != judging.form(SOLUTIONS["adam_step"], "adam_step")
    assert judging.form("def output_size(a): return 1", "output_size") == ""  # too short
    form = judging.form(one, "adam_step")
    table = pd.DataFrame({"student": ["ann", "ben"], "outcome": "wrong", "form": form})
    told = marks.similar(table.assign(exercise="adam_step"))
    assert told == [("adam_step", "ann, ben", "")]


@pytest.mark.parametrize(
    "told",
    [
        {"kind": "array", "dtype": "O", "shape": [1], "data": "AAAAAAAAAAA="},
        {"kind": "array", "dtype": "float32", "shape": [10**12], "data": ""},
        {"kind": "conv", "weight": 1},
        {"kind": "tensor", "dtype": "float32", "shape": [-1], "data": "A"},
        {"items": []},
        [1],
    ],
)
def test_what_is_no_word_is_an_error_and_nothing_else(told):
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        decode(told)


def test_numbers_travel_unchanged():
    value = {"a": [1, 2.5, None], ("b", 3): (np.float32(0.1), torch.arange(4).view(2, 2))}
    there = decode(json.loads(json.dumps(encode(value))))
    assert there["a"] == value["a"]
    assert there["b", 3][0] == np.float32(0.1)
    assert torch.equal(there["b", 3][1], value["b", 3][1])
    assert type(decode(encode(object()))).__name__ == "object"


NETWORK = """import os, socket
told = []
for name, attempt in {
    "network": lambda: socket.create_connection(("127.0.0.1", PORT), 2),
    "writing": lambda: open(OUTSIDE, "w"),
    "reading": lambda: open(HANDED).read(),
    "killing": lambda: os.kill(PARENT, 0),
}.items():
    try:
        attempt()
        told.append(name)
    except OSError:
        pass
from IPython.display import display
display({"application/vnd.cvlab.record+json": {"claim": f"free: {told}", "holds": True}}, raw=True)
"""


@pytest.mark.skipif(not execute.apart(), reason="no unshare on this system")
def test_a_whole_notebook_runs_in_smoke_and_reaches_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("CVLAB_DATA", "synthetic")  # no folder
    secret, server = tmp_path / "secret.txt", socket.create_server(("127.0.0.1", 0))
    secret.write_text("x")
    places = {"PORT": server.getsockname()[1], "OUTSIDE": repr(str(tmp_path / "new"))}
    places |= {"HANDED": repr(str(secret)), "PARENT": os.getpid()}
    source = NETWORK
    for name, place in places.items():
        source = source.replace(name, str(place))
    content = notebook("07_capstone", {}, kept=False)
    content["cells"] = content["cells"][2:3]
    content["cells"] += [{**content["cells"][0], "source": source, "id": "x", "metadata": {}}]
    path = tmp_path / "in" / "ann" / "07_capstone.ipynb"
    path.parent.mkdir(parents=True)
    for cell in content["cells"]:
        cell["outputs"] = []
    path.write_text(json.dumps(content))
    handed = collect.collect(tmp_path / "in")
    with server:
        (line,) = execute.execute(handed, ["07"], tmp_path / "marks", 1, False)
    assert "passed, 1 of 1 claims hold" in line, line
    kept = (tmp_path / "marks" / "executed" / "ann" / "07_capstone.ipynb").read_text()
    assert "free: []" in kept
    assert "smoke" in kept


def exported(folder, form):
    """All cells of the exported notebooks, which are ours that have exercises."""
    paths = export.write(folder, form, 5)
    wanted = sorted({one.notebook for one in collect.exercises().values()})
    assert [path.stem for path in paths] == wanted
    return [c for path in paths for c in nbformat.read(path, as_version=4).cells]


LEFT = """from IPython.display import display
told = {"claim": f"seed {SEED}, profile {PROFILE}", "holds": True}
display({"application/vnd.cvlab.record+json": told}, raw=True)
"""


@pytest.mark.skipif(not execute.apart(), reason="no unshare on this system")
def test_whole_notebooks_of_a_class_end_whatever_is_in_them(tmp_path, monkeypatch):
    """Their parameters are theirs, but for the profile; what takes too much is stopped."""
    monkeypatch.setattr(execute, "FOLDER_BYTES", 2**26)
    bodies = {
        "good": LEFT,
        "loop": "import os\nopen(os.environ['CVLAB_OUT'] + '/begun', 'w').close()\n"
        "while True: pass",
        "bomb": "import os, time\nfor _ in range(99):\n    if not os.fork(): time.sleep(999)",
        "files": "import os\ni = 0\nwhile True:\n"
        "    open(f\"{os.environ['CVLAB_OUT']}/{i}\", 'wb').write(bytes(2**22)); i += 1",
        "deaf": "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n1 / 0",
    }
    for student, body in bodies.items():
        content = notebook("07_capstone", {}, kept=False)
        tagged = [c for c in content["cells"] if "parameters" in c["metadata"].get("tags", [])]
        tagged[0] |= {"source": "SEED, PROFILE = 3, 'full'", "outputs": []}
        content["cells"] = [*tagged, {**tagged[0], "source": body, "id": "x", "metadata": {}}]
        path = tmp_path / "in" / student / "07_capstone.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    handed = collect.collect(tmp_path / "in")
    endless = [one for one in handed if one.student == "loop"]
    others = [one for one in handed if one not in endless]  # they get time on a busy machine too
    lines = [*execute.execute(others, ["07"], tmp_path / "marks", 2, False)]

    def clock():  # its time is over as soon as it has begun
        begun = [*Path(tempfile.gettempdir()).glob("cvlab-grade-*/out/begun")]
        return time.monotonic() + execute.SECONDS * bool(begun)

    monkeypatch.setattr(execute, "time", types.SimpleNamespace(monotonic=clock, sleep=time.sleep))
    done = tmp_path / "marks" / "executed"
    shutil.copytree(done / "good", done / "loop")  # as if an earlier one had passed
    lines += execute.execute(endless, ["07"], tmp_path / "marks", 1, False)
    told = {line.split(",")[0]: line for line in lines}
    assert "passed, 1 of 1 claims hold" in told["good"], told
    kept = (tmp_path / "marks" / "executed" / "good" / "07_capstone.ipynb").read_text()
    assert "seed 3, profile smoke" in kept
    assert "more than 300 s" in told["loop"]
    assert "0 of 0 claims hold" in told["loop"]
    assert "processes" in told["bomb"]
    assert "64 MB or a thousand files" in told["files"]
    assert "failed, 0 of 0 claims hold ZeroDivisionError" in told["deaf"]


def test_nbgraders_source_has_each_exercise_with_its_solution_marked(tmp_path):
    cells = exported(tmp_path, "nbgrader")
    ids = [c.metadata.nbgrader.grade_id for c in cells if "nbgrader" in c.metadata]
    assert ids == [one for name in SOLUTIONS for one in (name, f"test-{name}")]
    solved = [c.source for c in cells if "### BEGIN SOLUTION" in c.source]
    for name, source in zip(ids[::2], solved, strict=True):
        names = {"run": types.SimpleNamespace(check=id), "np": np, "torch": torch}
        exec(source, names)
        tries = (judge.judge(names[name])[0] for _ in range(3))  # a busy machine spoils times
        assert "solved" in tries, source


def test_otters_master_has_each_exercise_as_a_question_with_a_hidden_test(tmp_path):
    """Tried with the real package (otter-grader 7.0.0), which reads these raw cells."""
    cells = exported(tmp_path, "otter")
    raw = [c.source.split("\n") for c in cells if c.cell_type == "raw"]
    asked = [lines[1] for lines in raw if lines[0] == "# BEGIN QUESTION"]
    assert asked == [f"name: {name}" for name in SOLUTIONS]
    hidden = [c.source for c in cells if c.source.startswith("# HIDDEN")]
    for name, source in zip(SOLUTIONS, hidden, strict=True):
        assert f"judge({name}, seed=5)" in source
    assert sum("    # END SOLUTION" in c.source for c in cells) == len(SOLUTIONS)


def sleepers(folder, count=6):
    """Students whose right answers take a while, so that something may die meanwhile."""
    body = "import time; time.sleep(0.05)\n" + RIGHT
    students = [f"s{i}" for i in range(count)]
    for student in students:
        alone(folder, student, output_size=with_body("output_size", body))
    return students


def journal(folder):
    """How many answers have been judged."""
    path = folder / "marks" / "graded.jsonl"
    return path.read_text(encoding="utf-8").count('"key"') if path.is_file() else 0


def test_a_killed_grader_goes_on_where_it_was(tmp_path, monkeypatch):
    students = sleepers(tmp_path)
    given = [tmp_path / "in", "--out", tmp_path / "marks", "--secret", "s", "--seconds", SECONDS]
    command = [sys.executable, "-m", "cvlab", "grade", *map(str, given)]
    (tmp_path / "temporary").mkdir()
    own = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    grader = subprocess.Popen(command, env=own, **quiet)
    wait_for(lambda: journal(tmp_path), 300)
    grader.kill()
    grader.wait()
    wait_for(lambda: not [*(tmp_path / "temporary").glob("cvlab-grade-*")])
    before = journal(tmp_path)
    assert 0 < before < len(students)
    judged = noted(monkeypatch)
    rows, _ = run(tmp_path)
    assert len(judged[0]) == len(students) - before
    assert {rows[student, "output_size"]["outcome"] for student in students} == {"solved"}


@pytest.mark.workers
def test_a_worker_and_a_home_that_die_cost_nothing(tmp_path):
    students, killed = sleepers(tmp_path), []

    def pupils():
        """Processes that fork students', and their workers."""
        every = psutil.Process().children(recursive=True)
        found = [one for one in every if "cvlab.tools.grading.pupil" in one.cmdline()]
        return [one for one in found if one.ppid() != os.getpid() and one.parent() not in found]

    def kill():
        wait_for(lambda: journal(tmp_path), 200)
        killed.append(pupils()[0])
        killed[0].kill()
        wait_for(lambda: journal(tmp_path) > 2, 200)
        killed.append(pupils()[0].parent())
        killed[1].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    rows, _ = run(tmp_path)
    killer.join()
    assert len(killed) == 2
    assert {rows[student, "output_size"]["outcome"] for student in students} == {"solved"}


def test_a_dask_cluster_judges_and_a_lost_worker_costs_nothing(tmp_path):
    """The first worker is killed when it has begun; another one comes."""
    pytest.importorskip("distributed")
    (tmp_path / "cluster").mkdir()
    cluster = Cluster(tmp_path / "cluster")
    students = sleepers(tmp_path)
    try:
        cluster.worker()

        def replace_first():
            wait_for(lambda: journal(tmp_path), 200)
            cluster.worker()
            cluster.workers()[0].kill()

        killer = threading.Thread(target=replace_first)
        killer.start()
        rows, told = run(tmp_path, "--scheduler", cluster.address)
        killer.join()
    finally:
        cluster.stop()
    assert [rows[student, "output_size"]["outcome"] for student in students] == ["solved"] * 6
    assert "starting processes" in told["enforced"]
