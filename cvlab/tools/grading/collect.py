"""What a class has handed in: of each notebook the source of exercises as text, nothing else."""

import ast
import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path

from cvlab.exercises.judge import CHECKS
from cvlab.tools.grading.words import plain
from cvlab.tools.runner import notebook_paths

MOST_BYTES = 20 * 2**20  # of a notebook that is handed in
MOST_SOURCE = 20_000  # characters of an exercise


class GradeError(ValueError):
    """Grading cannot begin; the message says what to do."""


@dataclass(frozen=True)
class Exercise:
    """An exercise of our notebooks: where it stands, how hard it is, the untouched cell."""

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


def defined(source: str) -> list[str]:
    """The exercises whose function a cell defines."""
    return [name for name in re.findall(r"^def\s+(\w+)\s*\(", source, re.M) if name in CHECKS]


@cache
def exercises() -> dict[str, Exercise]:
    """All exercises, by the name of their function, in order; from our own notebooks."""
    found = {}
    for notebook, cells in _ours().items():
        text = ""
        for cell in cells:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                text = source if "●" in source else text
                continue
            level = re.search("●+○*", text)
            for name in defined(source):
                found[name] = Exercise(notebook, level[0] if level else "", source, text)
    return found


@cache
def imports() -> dict[str, list[str]]:
    """What our notebooks import, by name: an answer may use it."""
    found = {}
    for name, cells in _ours().items():
        nodes = []
        for cell in cells:
            with suppress(SyntaxError):  # prose, %pip
                nodes += ast.parse("".join(cell["source"])).body
        found[name] = [ast.unparse(n) for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
    return found


@cache
def _ours() -> dict[str, list[dict]]:
    """The cells of our own notebooks, by name."""
    paths = notebook_paths()
    return {n: json.loads(p.read_text(encoding="utf-8"))["cells"] for n, p in paths.items()}


def collect(folder: Path, due: datetime | None = None) -> list[HandedIn]:
    """What lies in `folder`: a folder for each student, or files named STUDENT_01_….ipynb.

    Raises:
        GradeError: there is no such folder.
    """
    if not folder.is_dir():
        raise GradeError(f"There is no folder {folder}; name the one with what was handed in.")
    found: dict[str, HandedIn] = {}
    ending = rf"[ _-]*(?:{'|'.join(notebook_paths())}).*"
    for entry in sorted(folder.iterdir()):
        alone = entry.suffix == ".ipynb" and not entry.is_dir()
        if entry.name[0] == "." or entry.is_symlink() or not (alone or entry.is_dir()):
            continue
        student = (re.sub(ending, "", entry.stem) or entry.stem) if alone else entry.name
        student = student.encode("utf-8", "backslashreplace").decode()  # of any system's zip file
        handed = found.setdefault(student, HandedIn(student))
        for file in [entry] if alone else sorted(entry.rglob("*.ipynb")):
            if ".ipynb_checkpoints" not in file.parts:
                _take(handed, file, due)
    return list(found.values())


def _take(handed: HandedIn, file: Path, due: datetime | None) -> None:
    """Add a notebook's answers, and what is odd about it."""
    try:
        sources = _sources(file)
    except (OSError, ValueError, RecursionError) as error:
        handed.notes.append(f"{file.name} was not read: {error}"[:200])
        return
    which = {name for name in notebook_paths() if name in file.stem}
    which |= _take_answers(handed, sources)
    if not which:
        handed.notes.append(f"{file.name} is none of our notebooks")
    for notebook in which:
        if handed.notebooks.setdefault(notebook, file) != file:
            handed.notes.append(f"{notebook} was handed in twice; {file.name} counts")
        handed.notebooks[notebook] = file
        if due and datetime.fromtimestamp(file.stat().st_mtime, due.tzinfo) > due:
            handed.late.add(notebook)


def _take_answers(handed: HandedIn, sources: list[str]) -> set[str]:
    """Add the answers in these cells, the last of each but for the stub; returns whose they are."""
    which = set()
    for source in sources:
        for name in defined(source):
            which.add(exercises()[name].notebook)
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
        OSError, ValueError: it is no notebook, no plain file, or too large.
    """
    content = json.loads(plain(file, MOST_BYTES).decode("utf-8-sig"))
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list):
        raise ValueError("it has no cells")
    found = []
    for cell in cells:
        if isinstance(cell, dict) and cell.get("cell_type") == "code":
            source = cell.get("source")
            lines = source if isinstance(source, list) else [source]
            text = "".join(line for line in lines if isinstance(line, str))
            text = text.replace("\r\n", "\n").replace("\r", "\n")
            found.append(re.sub(r"^[%!].*$", "", text, flags=re.M))
    return found
