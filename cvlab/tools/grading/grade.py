"""Mark a class: `python -m cvlab grade handed-in/ --out marks/`.

Of what students hand in only the source of exercises is taken, as text: the cells that define the
stubs' functions. `judge` checks them anew, with inputs that no notebook has shown, in
processes that can hurt nobody (`pupil`, `limits`); `marks` makes marks and pages.
"""

import hashlib
import json
import secrets
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from datetime import datetime
from functools import cache, partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cvlab.records import distinct
from cvlab.show import progress
from cvlab.tools.grading.collect import GradeError, HandedIn, collect, exercises, imports, is_stub

STUB_LEFT = {"outcome": "not attempted", "said": "the stub is as it was", "form": ""}


def grade(
    handed: list[HandedIn],
    out: Path,
    how: dict[str, Any],
    *,
    jobs: int = 1,
    scheduler: str | None = None,
) -> tuple[dict[tuple[str, str], dict[str, str]], str]:
    """Judge what has not been judged; (student, exercise) -> `outcome`, `said`, `form`.

    `how` is a part of each task, see `judge.judged`. The second is what was forbidden.
    Each student's outcomes are kept in `graded.jsonl` of `out` as soon as they are known, under a
    key of all that they depend on: stopped or repeated, only what is new or changed is judged.
    """
    journal, found, tasks = out / "graded.jsonl", {}, []
    known = _journal(journal) if journal.is_file() else {}
    given, forbidden = how | {"imports": imports()}, ["Nothing had to be judged again."]
    for one in handed:
        keys = {}
        for name, source in one.answers.items():
            key = _key(how["secret"], one.student, name, source)
            if is_stub(name, source):
                found[one.student, name] = STUB_LEFT
            elif key in known:
                found[one.student, name] = known[key]
            else:
                keys[name] = key
        answers = {n: (exercises()[n].notebook, one.answers[n]) for n in keys}
        task = given | {"student": one.student, "answers": answers, "keys": keys}
        tasks += [task] if keys else []
    with journal.open("a", encoding="utf-8") as kept:
        run = partial(_on_cluster, scheduler) if scheduler else partial(_here, jobs)
        for task, results in _counted(run(tasks), len(tasks)):
            forbidden = [results.pop("", {}).get("said", ""), *forbidden]
            for name, told in results.items():
                found[task["student"], name] = told
                kept.write(json.dumps({"key": task["keys"][name]} | told) + "\n")
            kept.flush()
    return found, " ".join(distinct(forbidden[:-1]) or forbidden)


def _counted(results: Iterator, total: int) -> Iterator:
    with progress(total, "grade", "student") as bar:
        for result in results:
            bar.update()
            yield result


@cache
def _version() -> str:
    """Of the checks and of what runs them: other checks may say something else."""
    ours = Path(__file__).parent
    files = [
        *sorted((ours.parents[1] / "exercises").glob("*.py")),
        *sorted(ours.glob("[hjlpw]*.py")),
    ]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join([_version(), *parts]).encode("utf-8", "replace")).hexdigest()


def _journal(path: Path) -> dict[str, dict]:
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            told = json.loads(line)
            found[told.pop("key")] = told
        except (ValueError, KeyError):  # cut short
            continue
    return found


def _here(jobs: int, tasks: list[dict]) -> Iterator[tuple[dict, dict]]:
    """Judge in so many processes of this machine."""
    pools = threading.local()
    with ThreadPoolExecutor(jobs) as threads:
        sent = {threads.submit(_in_pool, pools, task): task for task in tasks}
        try:
            for done in as_completed(sent):
                yield sent[done], done.result()
        finally:
            threads.shutdown(cancel_futures=True)


def _in_pool(pools, task: dict) -> dict:
    """One student, in this thread's process; one that dies takes nobody with it."""
    for _ in range(2):
        if not hasattr(pools, "pool"):
            pools.pool = ProcessPoolExecutor(1, get_context("spawn"))
        try:
            return pools.pool.submit(_judged, task).result()
        except (BrokenProcessPool, OSError, struct.error):  # it, or its home, died
            del pools.pool
    return _lost(task)


def _lost(task: dict) -> dict:
    told = "the process that judged this student's answers died twice: look at them"
    return {n: {"outcome": "wrong", "said": told, "form": ""} for n in task["answers"]}


def _judged(task: dict) -> dict:
    return import_module("cvlab.tools.grading.judge").judged(task)


def _on_cluster(scheduler: str, tasks: list[dict]) -> Iterator[tuple[dict, dict]]:
    """Judge on a Dask cluster; the student of a lost worker goes to another, a few times."""
    from distributed import as_completed

    from cvlab.tools import cluster

    with cluster.connected(scheduler) as client:
        sent = {
            client.submit(
                lambda task: import_module("cvlab.tools.grading.judge").judged(task),
                task,
                pure=False,
            ): task
            for task in tasks
        }
        for done in as_completed(sent, loop=client.loop):
            yield sent[done], done.result() if done.status == "finished" else _lost(sent[done])


def _secret(out: Path, given: str | None) -> str:
    """What seeds the fresh inputs: as given, else kept in `out`, else drawn now."""
    path = out / "secret"
    if given or path.is_file():
        return given or path.read_text(encoding="utf-8").strip()
    path.touch(mode=0o600)
    path.write_text(drawn := secrets.token_hex(16), encoding="utf-8")
    return drawn


def main(
    handed_in: Path,
    out: Path,
    secret: str | None = None,
    weights: Path | None = None,
    students: Path | None = None,
    due: datetime | None = None,
    seconds: int = 10,
    jobs: int = 1,
    scheduler: str | None = None,
    execute: list[str] = (),
    unprotected: bool = False,
) -> str:
    """Collect, judge, mark, write: see `python -m cvlab grade --help`; returns what to tell.

    Raises:
        GradeError: it cannot begin; nothing of the students has run.
    """
    try:
        from cvlab.tools.grading import limits, marks  # noqa: F401
    except ImportError as error:  # Windows has no `resource`
        raise GradeError(
            f"Here students' code cannot be limited ({error}): grade on Linux, as in WSL."
        ) from error
    worth, handed = marks.weights(weights), collect(handed_in, due)
    named = students.read_text(encoding="utf-8").split("\n") if students else []
    there = {one.student for one in handed}
    handed += [HandedIn(n.strip()) for n in named if n.strip() and n.strip() not in there]
    out.mkdir(parents=True, exist_ok=True)
    secret = _secret(out, secret)
    how = {"secret": secret, "seconds": seconds, "unprotected": unprotected}
    judged, forbidden = grade(handed, out, how, jobs=jobs, scheduler=scheduler)
    page = marks.write(marks.marks(handed, judged, worth), handed, out, forbidden)
    if execute:
        from cvlab.tools.grading import execute as whole

        for line in whole.execute(handed, execute, out, jobs):
            print(line, flush=True)
    return f"{len(handed)} students; marks.csv, totals.csv, marks.json in {out}. Page: {page}"
