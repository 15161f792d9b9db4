"""Mark a class: `python -m cvlab grade handed-in/ --out marks/`.

Of what students hand in only the source of exercises is taken, as text: the cells that define the
stubs' functions. `judge` checks them anew, with inputs that no notebook has shown, in processes
that can hurt nobody (`home`, `pupil`, `limits`); `marks` makes marks and pages.
"""

import hashlib
import json
import secrets
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from cvlab.paths import PACKAGE
from cvlab.show import progress
from cvlab.tools import cluster
from cvlab.tools.executed import distinct
from cvlab.tools.grading.collect import GradeError, HandedIn, collect, exercises, imports, is_stub
from cvlab.tools.runner import choose

STUB_LEFT = {"outcome": "not attempted", "said": "the stub is as it was", "form": ""}
LOST = "the process that judged this student's answers died again and again: look at them"
LOST = {"outcome": "wrong", "said": LOST, "form": ""}
JUDGES = ("judge", "home", "pupil", "limits", "words")  # modules that an outcome depends on


def grade(
    handed: list[HandedIn], out: Path, how: dict[str, Any], jobs: int, scheduler: str | None
) -> tuple[dict[tuple[str, str], dict[str, str]], str]:
    """Judge what has not been judged; (student, exercise) -> `outcome`, `said`, `form`.

    `how` is a part of each task, see `judge.judged`. The second is what was forbidden.
    Each student's outcomes are kept in `graded.jsonl` of `out` as soon as they are known, under a
    key of all that they depend on: stopped or repeated, only what is new or changed is judged.
    """
    keys, tasks, forbidden = {}, [], []
    known = {"stub": STUB_LEFT} | _read(out / "graded.jsonl")
    for one in handed:
        own = {n: "stub" if is_stub(n, s) else _key(how, one, n) for n, s in one.answers.items()}
        keys |= {(one.student, name): key for name, key in own.items()}
        new = [name for name, key in own.items() if key not in known]
        answers = {name: (exercises()[name].notebook, one.answers[name]) for name in new}
        tasks += [{"student": one.student, "answers": answers} | how] if new else []
    used = {notebook for task in tasks for notebook, _ in task["answers"].values()}
    for task in tasks:
        task["imports"] = {name: told for name, told in imports().items() if name in used}
    with _appended(out / "graded.jsonl") as kept, progress(len(tasks), "grade", "student") as bar:
        for task, results in _judge(tasks, jobs, scheduler):
            forbidden.append(results.pop("", {}).get("said", ""))
            for name, told in results.items():
                known[key := keys[task["student"], name]] = told
                kept.write(json.dumps({"key": key} | told) + "\n" if told != LOST else "")
            kept.flush()
            bar.update()
    enforced = " ".join(distinct(forbidden)) or "Nothing had to be judged again."
    return {which: known[key] for which, key in keys.items()}, enforced


@cache
def _version() -> bytes:
    """Of the checks and of what runs them: other checks may say something else."""
    files = sorted((PACKAGE / "exercises").glob("*.py"))
    files += [Path(__file__).with_name(f"{name}.py") for name in JUDGES]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).digest()


def _key(how: dict, one: HandedIn, name: str) -> str:
    told = "\0".join([json.dumps(how), one.student, name, one.answers[name]])
    return hashlib.sha256(_version() + told.encode("utf-8", "replace")).hexdigest()


def _read(journal: Path) -> dict[str, dict]:
    found = {}
    for line in journal.read_bytes().splitlines() if journal.is_file() else ():
        with suppress(ValueError, KeyError):  # cut short
            told = json.loads(line)
            found[told.pop("key")] = told
    return found


def _appended(journal: Path) -> TextIO:
    """Open to add lines, after one that may be cut short."""
    file = journal.open("a", encoding="utf-8")
    file.write("\n" if file.tell() else "")
    return file


def _judge(tasks: list[dict], jobs: int, scheduler: str | None) -> Iterator[tuple[dict, dict]]:
    """Judge by Dask's workers, those of a cluster or some of this machine, as results arrive.

    The students of a lost worker go to another; one who loses four is given up.
    """
    from distributed import Client, KilledWorker, as_completed

    if not tasks:
        return
    own = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None}
    opened = cluster.connected(scheduler) if scheduler else Client(n_workers=jobs, **own)
    with opened as client:
        judged = lambda task: import_module("cvlab.tools.grading.judge").judged(task)  # noqa: E731
        sent = {client.submit(judged, task, pure=False, retries=2): task for task in tasks}
        for done in as_completed(sent, loop=client.loop):
            try:
                yield sent[done], done.result()
            except (KilledWorker, OSError, EOFError):  # the worker, or three homes
                yield sent[done], dict.fromkeys(sent[done]["answers"], LOST)


def _secret(out: Path, given: str | None) -> str:
    """What seeds the fresh inputs: as given, else kept in `out`, else drawn now."""
    path = out / "secret"
    path.touch(mode=0o600)
    if not (known := given or path.read_text(encoding="utf-8").strip()):
        path.write_text(known := secrets.token_hex(16), encoding="utf-8")
    return known


def main(asked: Namespace) -> str:
    """Collect, judge, mark, write; `asked` are the command's options. Returns what to tell.

    Raises:
        GradeError: it cannot begin; nothing of the students has run.
    """
    try:
        from cvlab.tools.grading import execute, marks
    except ImportError as error:  # Windows has no `resource`
        raise GradeError(
            f"Here students' code cannot be limited ({error}): grade on Linux, as in WSL."
        ) from error
    worth, out = marks.weights(asked.weights), asked.out
    handed = collect(asked.handed_in, asked.due)
    choose(asked.execute)  # what is no notebook is said before anything runs
    named = asked.students.read_text(encoding="utf-8-sig").split("\n") if asked.students else []
    there = {one.student for one in handed}
    handed += [HandedIn(n) for n in distinct(map(str.strip, named)) if n not in there]
    out.mkdir(parents=True, exist_ok=True)
    how = {"secret": _secret(out, asked.secret), "seconds": asked.seconds}
    how["unprotected"] = asked.unprotected
    judged, forbidden = grade(handed, out, how, asked.jobs, asked.scheduler)
    page = marks.write(marks.marks(handed, judged, worth), handed, out, forbidden)
    if asked.execute:
        for line in execute.execute(handed, asked.execute, out, asked.jobs, asked.unprotected):
            print(line, flush=True)
    return f"{len(handed)} students; marks.csv, totals.csv, marks.json in {out}. Page: {page}"
