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
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from cvlab.paths import PACKAGE
from cvlab.records import distinct
from cvlab.show import progress
from cvlab.tools import cluster
from cvlab.tools.grading.collect import GradeError, HandedIn, collect, exercises, imports, is_stub

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
    journal, found, tasks, forbidden = out / "graded.jsonl", {}, [], []
    known = _read(journal) if journal.is_file() else {}
    for one in handed:
        keys = {}
        for name, source in one.answers.items():
            key = _key(json.dumps(how), one.student, name, source)
            if is_stub(name, source):
                found[one.student, name] = STUB_LEFT
            elif key in known:
                found[one.student, name] = known[key]
            else:
                keys[name] = key
        if keys:
            answers = {n: (exercises()[n].notebook, one.answers[n]) for n in keys}
            task = {"student": one.student, "answers": answers, "imports": imports()} | how
            tasks.append((task, keys))
    with (
        journal.open("a", encoding="utf-8") as kept,
        progress(len(tasks), "grade", "student") as bar,
    ):
        for (task, keys), results in _judge(tasks, jobs, scheduler):
            forbidden.append(results.pop("", {}).get("said", ""))
            for name, told in results.items():
                found[task["student"], name] = told
                kept.write(json.dumps({"key": keys[name]} | told) + "\n")
            kept.flush()
            bar.update()
    return found, " ".join(distinct(forbidden)) or "Nothing had to be judged again."


@cache
def _version() -> bytes:
    """Of the checks and of what runs them: other checks may say something else."""
    files = sorted((PACKAGE / "exercises").glob("*.py"))
    files += [Path(__file__).with_name(f"{name}.py") for name in JUDGES]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).digest()


def _key(*parts: str) -> str:
    told = "\0".join(parts).encode("utf-8", "replace")
    return hashlib.sha256(_version() + told).hexdigest()


def _read(journal: Path) -> dict[str, dict]:
    found = {}
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            told = json.loads(line)
            found[told.pop("key")] = told
        except (ValueError, KeyError):  # cut short
            continue
    return found


def _judge(tasks: list[tuple], jobs: int, scheduler: str | None) -> Iterator[tuple[tuple, dict]]:
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
        sent = {client.submit(judged, t[0], pure=False, retries=2): t for t in tasks}
        for done in as_completed(sent, loop=client.loop):
            try:
                yield sent[done], done.result()
            except (KilledWorker, OSError, EOFError):  # the worker, or three homes
                yield sent[done], dict.fromkeys(sent[done][1], LOST)


def _secret(out: Path, given: str | None) -> str:
    """What seeds the fresh inputs: as given, else kept in `out`, else drawn now."""
    path = out / "secret"
    if given or path.is_file():
        return given or path.read_text(encoding="utf-8").strip()
    path.touch(mode=0o600)
    path.write_text(drawn := secrets.token_hex(16), encoding="utf-8")
    return drawn


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
    worth, handed, out = (
        marks.weights(asked.weights),
        collect(asked.handed_in, asked.due),
        asked.out,
    )
    named = asked.students.read_text(encoding="utf-8-sig").split("\n") if asked.students else []
    there = {one.student for one in handed}
    handed += [HandedIn(n) for n in distinct(map(str.strip, named)) if n not in there]
    out.mkdir(parents=True, exist_ok=True)
    how = {"secret": _secret(out, asked.secret), "seconds": asked.seconds}
    how["unprotected"] = asked.unprotected
    judged, forbidden = grade(handed, out, how, asked.jobs, asked.scheduler)
    page = marks.write(marks.marks(handed, judged, worth), handed, out, forbidden)
    if asked.execute:
        given = asked.execute, out, asked.jobs, asked.unprotected
        for line in execute.execute(handed, *given):
            print(line, flush=True)
    return f"{len(handed)} students; marks.csv, totals.csv, marks.json in {out}. Page: {page}"
