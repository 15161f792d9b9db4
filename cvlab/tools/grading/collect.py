"""What a class has handed in: of each notebook the source of exercises as text, nothing else."""

import ast
import json
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path

from cvlab.tools import runner

MOST_BYTES = 20 * 2**20  # of a notebook that is handed in
MOST_SOURCE = 20_000  # characters of an exercise
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
    for notebook, cells in _ours().items():
        text = ""
        for cell in cells:
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
    return {
        name: _imports("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        for name, cells in _ours().items()
    }


@cache
def _ours() -> dict[str, list[dict]]:
    """The cells of our own notebooks, by name."""
    paths = runner.notebook_paths()
    return {n: json.loads(p.read_text(encoding="utf-8"))["cells"] for n, p in paths.items()}


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
            elif name not in handed.answers or not is_stub(name, source):
                handed.answers[name] = source
    return which


def is_stub(name: str, source: str) -> bool:
    """Is it the cell as we gave it?"""
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


def _imports(sources: Iterable[str]) -> list[str]:
    """The import statements of a notebook's code cells."""
    found = []
    for source in sources:
        try:
            body = ast.parse(source).body
        except SyntaxError:  # %pip
            continue
        found += [ast.unparse(n) for n in body if isinstance(n, ast.Import | ast.ImportFrom)]
    return found
