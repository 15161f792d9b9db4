"""Mark a class: `python -m cvlab grade handed-in/ --out marks/`.

Of what students hand in only the source of exercises is taken, as text: the cells that define the
stubs' functions. `grade_judge` checks them anew, with inputs that no notebook has shown, in
processes that can hurt nobody (`grade_pupil`, `grade_limits`); `grade_marks` makes marks and pages.
"""

import hashlib
import json
import re
import secrets
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cvlab.records import distinct
from cvlab.show import progress
from cvlab.tools import runner

MOST_BYTES = 20 * 2**20  # of a notebook that is handed in
MOST_SOURCE = 20_000  # characters of an exercise
STUB_LEFT = {"outcome": "not attempted", "said": "the stub is as it was", "form": ""}
STUB = re.compile(r"^def (\w+)\s*\(", re.M)


class GradeError(ValueError):
    """Grading cannot begin; the message says what to do."""


@dataclass(frozen=True)
class Exercise:
    """An exercise of our notebooks: where it stands, how hard it is, the untouched cell."""

    name: str
    notebook: str
    level: str  # as in its text: ●○○, ●●○ or ●●●
    stub: str
    text: str

    @property
    def solution(self) -> str:
        """The folded one."""
        found = re.search(r"```python\n(.+?)```", self.text, re.DOTALL)
        return found[1] if found else ""


@dataclass
class HandedIn:
    """What a student handed in: `answers` by exercise, `notes` on whatever is odd about it."""

    student: str
    answers: dict[str, str] = field(default_factory=dict)
    notebooks: dict[str, Path] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)  # names of notebooks
    notes: list[str] = field(default_factory=list)


@cache
def exercises() -> dict[str, Exercise]:
    """All exercises, by the name of their function, in order; from our own notebooks."""
    found = {}
    for notebook, path in runner.notebook_paths().items():
        text = ""
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            asked = re.search(r"run\.(?:check|use)\((\w+)", source)
            if cell["cell_type"] == "markdown":
                text = source if "●" in source else text
            elif asked and f"def {asked[1]}(" in source:
                level = re.search("●+○*", text)
                told = Exercise(asked[1], notebook, level[0] if level else "", source, text)
                found[asked[1]] = told
    return found


@cache
def imports() -> dict[str, list[str]]:
    """What our notebooks import, by name: an answer may use it."""
    from cvlab.tools.grade_judge import imports

    paths = runner.notebook_paths()
    read = {n: json.loads(p.read_text(encoding="utf-8"))["cells"] for n, p in paths.items()}
    return {
        name: imports("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        for name, cells in read.items()
    }


def collect(folder: Path, due: datetime | None = None) -> list[HandedIn]:
    """What lies in `folder`: a folder for each student, or files named STUDENT_01_….ipynb.

    Raises:
        GradeError: there is no such folder.
    """
    if not folder.is_dir():
        raise GradeError(f"There is no folder {folder}; name the one with what was handed in.")
    found: dict[str, HandedIn] = {}
    for entry in sorted(folder.iterdir()):
        names = "|".join(runner.notebook_paths())
        student, *_ = re.split(rf"[ _-]*(?:{names})", entry.stem if entry.is_file() else entry.name)
        if entry.is_symlink() or not (entry.is_dir() or entry.suffix == ".ipynb"):
            continue
        student = entry.name if entry.is_dir() else student or entry.stem
        handed = found.setdefault(student, HandedIn(student))
        files = sorted(entry.rglob("*.ipynb")) if entry.is_dir() else [entry]
        for file in files:
            if ".ipynb_checkpoints" not in file.parts:
                _take(handed, file, due)
    return list(found.values())


def _take(handed: HandedIn, file: Path, due: datetime | None) -> None:
    """Add a notebook's answers; of several definitions the last counts, but for the stub."""
    try:
        sources = _sources(file)
    except (OSError, ValueError, RecursionError) as error:
        handed.notes.append(f"{file.name} was not read: {error}"[:200])
        return
    which = [name for name in runner.notebook_paths() if name in file.stem]
    which += _take_answers(handed, sources)
    if not which:
        handed.notes.append(f"{file.name} is none of our notebooks")
    for notebook in set(which):
        if notebook in handed.notebooks and handed.notebooks[notebook] != file:
            handed.notes.append(f"{notebook} was handed in twice; {file.name} counts")
        handed.notebooks[notebook] = file
        if due and datetime.fromtimestamp(file.stat().st_mtime) > due.replace(tzinfo=None):
            handed.late.add(notebook)


def _take_answers(handed: HandedIn, sources: list[str]) -> list[str]:
    """Add the answers in these cells; returns the notebooks that they belong to."""
    known, which = exercises(), []
    for source in sources:
        for name in [name for name in STUB.findall(source) if name in known]:
            which.append(known[name].notebook)
            if len(source) > MOST_SOURCE:
                handed.notes.append(f"{name}: {len(source):,} characters are no answer")
            elif name not in handed.answers or not _is_stub(name, source):
                handed.answers[name] = source
    return which


def _is_stub(name: str, source: str) -> bool:
    return source.split() == exercises()[name].stub.split()


def _sources(file: Path) -> list[str]:
    """The code cells of a notebook of any origin, without magics; nothing in it is trusted.

    Raises:
        ValueError: it is no notebook, or too large.
    """
    about = file.lstat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is a link or no file")
    if about.st_size > MOST_BYTES:
        told = f"{about.st_size / 2**20:,.0f} MB; {MOST_BYTES // 2**20} are allowed"
        raise ValueError(f"{told}. Clear its outputs, save and hand it in again")
    content = json.loads(file.read_bytes().decode("utf-8-sig"))
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list):
        raise ValueError("it has no cells")
    found = []
    for cell in cells:
        if isinstance(cell, dict) and cell.get("cell_type") == "code":
            source = cell.get("source")
            lines = source if isinstance(source, list) else [source]
            text = "".join(line for line in lines if isinstance(line, str))
            text = "\n".join(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
            found.append(re.sub(r"^(%|!).*$", "", text, flags=re.M))
    return found


# --- judging, kept and resumed -------------------------------------------------------------------


def grade(
    handed: list[HandedIn],
    out: Path,
    how: dict[str, Any],
    *,
    jobs: int = 1,
    scheduler: str | None = None,
) -> tuple[dict[tuple[str, str], dict[str, str]], str]:
    """Judge what has not been judged; (student, exercise) -> `outcome`, `said`, `form`.

    `how` is a part of each task, see `grade_judge.judged`. The second is what was forbidden.
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
            if _is_stub(name, source):
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
        *sorted((ours.parent / "exercises").glob("*.py")),
        *sorted(ours.glob("grade_[jp]*.py")),
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
        except BrokenProcessPool:
            del pools.pool
    return _lost(task)


def _lost(task: dict) -> dict:
    told = "the process that judged this student's answers died twice: look at them"
    return {n: {"outcome": "wrong", "said": told, "form": ""} for n in task["answers"]}


def _judged(task: dict) -> dict:
    return import_module("cvlab.tools.grade_judge").judged(task)


def _on_cluster(scheduler: str, tasks: list[dict]) -> Iterator[tuple[dict, dict]]:
    """Judge on a Dask cluster; the student of a lost worker goes to another, a few times."""
    from distributed import as_completed

    from cvlab.tools import cluster

    with cluster.connected(scheduler) as client:
        sent = {
            client.submit(
                lambda task: import_module("cvlab.tools.grade_judge").judged(task), task, pure=False
            ): task
            for task in tasks
        }
        for done in as_completed(sent):
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
        from cvlab.tools import grade_limits, grade_marks  # noqa: F401
    except ImportError as error:  # Windows has no `resource`
        raise GradeError(
            f"Here students' code cannot be limited ({error}): grade on Linux, as in WSL."
        ) from error
    worth, handed = grade_marks.weights(weights), collect(handed_in, due)
    named = students.read_text(encoding="utf-8").split("\n") if students else []
    there = {one.student for one in handed}
    handed += [HandedIn(n.strip()) for n in named if n.strip() and n.strip() not in there]
    out.mkdir(parents=True, exist_ok=True)
    secret = _secret(out, secret)
    how = {"secret": secret, "seconds": seconds, "unprotected": unprotected}
    judged, forbidden = grade(handed, out, how, jobs=jobs, scheduler=scheduler)
    page = grade_marks.write(grade_marks.marks(handed, judged, worth), handed, out, forbidden)
    if execute:
        from cvlab.tools import grade_execute

        for line in grade_execute.execute(handed, execute, out, jobs):
            print(line, flush=True)
    return f"{len(handed)} students; marks.csv, totals.csv, marks.json in {out}. Page: {page}"
