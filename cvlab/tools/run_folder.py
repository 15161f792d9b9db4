"""A run's folder read back: what passed, what holds, what was measured and on which machine.

An executed notebook is its own record; `run.json` beside it says what was asked for. Whatever is
damaged, missing or of another type than it should be becomes a problem that is told, not an error.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat

from cvlab.profiles import ParameterError
from cvlab.records import OUTCOMES, _is_record, is_number, stored_in
from cvlab.tools import pages

STATES = {"": "passed", ".failed": "failed", ".running": "unfinished"}  # by the file's name


NOT_RUN = "not run"


MARKS = {"passed": "✓", "failed": "✗", "unfinished": "◐", NOT_RUN: "–"}


HINT = "Give the folder of a run, made by `python -m cvlab run --out DIR`."


PASSWORD = re.compile(r"(://[^\s/:@\"'\\]*:)[^\s/@\"'\\]+@")  # of a database, in STORAGE


@dataclass
class Notebook:
    """What is known of one notebook of a run."""

    name: str
    status: str = NOT_RUN
    seconds: float | None = None
    began: str = ""  # ISO, UTC
    claims: dict[str, bool] = field(default_factory=dict)
    records: list[dict] = field(default_factory=list)
    exercises: dict[str, tuple[str, str]] = field(default_factory=dict)  # outcome, what was said
    error: str = ""
    traceback: str = ""
    cells: list[pages.Cell] = field(default_factory=list)
    page: str = ""  # address of its rendered page, where there is one

    @property
    def mark(self) -> str:
        """The status as one sign."""
        return MARKS[self.status]

    @property
    def held(self) -> int:
        """How many claims hold."""
        return sum(self.claims.values())

    @property
    def figures(self) -> dict[tuple, pages.Output]:
        """By cell and place in it, which stay the same when a notebook runs again elsewhere."""
        shown = {}
        for cell in self.cells:
            pictures = [output for output in cell.outputs if output.kind == "picture"]
            shown |= {(cell.id, place): output for place, output in enumerate(pictures)}
        return shown

    @property
    def devices(self) -> list[str]:
        """Machines that its numbers were measured on."""
        return distinct(str(record.get("device") or "") for record in self.records)


@dataclass
class Run:
    """A run's folder, as far as it can be read; `problems` says what cannot."""

    label: str
    plan: dict[str, Any]
    notebooks: dict[str, Notebook]
    problems: list[str]

    @property
    def passed(self) -> int:
        """How many notebooks passed."""
        return sum(notebook.status == "passed" for notebook in self.notebooks.values())

    @property
    def good(self) -> bool:
        """Did everything pass and every claim hold?"""
        claims = [holds for n in self.notebooks.values() for holds in n.claims.values()]
        return self.passed == len(self.notebooks) and all(claims)

    @property
    def verdict(self) -> str:
        """The run in one sentence."""
        notebooks = self.notebooks.values()
        held, claims = sum(n.held for n in notebooks), sum(len(n.claims) for n in notebooks)
        seconds = sum(n.seconds or 0 for n in notebooks)
        return (
            f"{self.passed} of {len(notebooks)} notebooks passed, {held} of {claims} claims hold, "
            f"{duration(seconds)}"
        )

    @property
    def devices(self) -> list[str]:
        """Machines that its numbers were measured on; several for one run on a cluster."""
        return distinct(device for n in self.notebooks.values() for device in n.devices)

    @property
    def sources(self) -> list[str]:
        """Where the images came from."""
        every = (r.get("source") for n in self.notebooks.values() for r in n.records)
        return distinct(str(source or "") for source in every)

    @property
    def machine(self) -> str:
        """The machine in words; where the numbers come from others, these and where it started."""
        about, devices = self.plan["about"], self.devices
        if not about:
            return "; ".join(devices)
        known = {"cpu": "unknown CPU", "cores": "?", "memory_gb": "?", "gpu": "no GPU"} | about
        host = f"{known['cpu']}, {known['cores']} cores, {known['memory_gb']} GB, {known['gpu']}"
        is_host = set(devices) <= {known["cpu"], known["gpu"]}
        return host if is_host else f"{'; '.join(devices)}; started on {host}"

    @property
    def facts(self) -> dict[str, str]:
        """What the numbers depend on, by name; "" for what is not known."""
        about = self.plan["about"]
        began = min((n.began for n in self.notebooks.values() if n.began), default="")
        return {
            "Date": _date(began or about.get("started", "")),
            "Profile": self.plan["profile"],
            "Data": ", ".join(self.sources) or self.plan["data"],
            "Parameters": ", ".join(f"{k} = {v}" for k, v in self.plan["parameters"].items()),
            "Machine": self.machine,
            "Software": about.get("versions", ""),
        }


def read(folder: Path) -> Run:
    """A run's folder; whatever is damaged in it becomes a problem, not an error.

    Raises:
        ParameterError: there is no such folder, or no notebook in it and none asked for.
    """
    if not folder.is_dir():
        raise ParameterError(f"There is no folder {folder}. {HINT}")
    plan, problems = _plan(folder)
    found = (path.stem for path in sorted(folder.glob("*.ipynb")))
    found = distinct(re.sub(r"\.(failed|running)$", "", stem) for stem in found)
    names, notebooks = plan["notebooks"] or found, {}
    if not names:
        raise ParameterError(f"{folder} holds no notebook. {' '.join(problems)} {HINT}")
    for name in names:
        try:
            notebooks[name] = _notebook(folder, name, names)
        except Exception as error:  # cut short, no notebook, hostile: the others are reported
            notebooks[name] = Notebook(name)
            reason = " ".join(str(error).split())[:200]
            problems.append(
                f"{name} is cut short or damaged and counts as not run ({reason}); "
                "`python -m cvlab run --resume --out DIR` runs it again."
            )
    return Run(folder.resolve().name, plan, notebooks, problems)


def _plan(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What `run.json` says, each entry of the type it should have, and what is wrong with it."""
    problems, given = [], {}
    try:
        given = json.loads(_text(folder / "run.json"))
    except FileNotFoundError:
        problems.append("There is no run.json: what was asked for is not known.")
    except (OSError, ValueError) as error:
        problems.append(f"run.json is damaged, so what was asked for is not known: {error}.")
    given = given if isinstance(given, dict) else {}
    names = given.get("notebooks")
    names = [str(name) for name in names] if isinstance(names, list) else []
    strange = [name for name in names if not name or Path(name).name != name or "\\" in name]
    problems += [f"run.json names {name!r}, which is no notebook's name." for name in strange]
    plan = {
        "notebooks": [name for name in names if name not in strange],
        "profile": str(given.get("profile", "")),
        "data": str(given.get("data", "")),
        "parameters": _texts(given.get("parameters")),
        "about": _texts(given.get("about")),
    }
    return plan, problems


def _texts(entries: Any) -> dict[str, str]:
    pairs = entries.items() if isinstance(entries, dict) else ()
    return {str(key): str(value) for key, value in pairs if value is not None}


def _text(path: Path) -> str:
    """A file's text without the passwords in addresses: reports are passed on."""
    return PASSWORD.sub(r"\1***@", path.read_text(encoding="utf-8"))


def _notebook(folder: Path, name: str, names: list[str]) -> Notebook:
    paths = {folder / f"{name}{ending}.ipynb": state for ending, state in STATES.items()}
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return Notebook(name)
    content = nbformat.reads(_text(path), as_version=4)
    notebook = Notebook(name, paths[path], cells=list(pages.cells(content, names)))
    stored = stored_in(content)
    for claim in (entry for entry in stored if "claim" in entry):
        text = str(claim["claim"])
        notebook.claims[text] = notebook.claims.get(text, True) and claim.get("holds") is True
    for entry in (entry for entry in stored if str(entry.get("outcome")) in OUTCOMES):
        notebook.exercises[str(entry.get("exercise"))] = entry["outcome"], str(entry.get("said"))
    measured = [record for record in stored if _is_record(record)]
    notebook.records = [r for r in measured if r["name"] != "notebook_seconds"]
    papermill = content.metadata.get("papermill") or {}
    own = [r["value"] for r in measured if r["name"] == "notebook_seconds"]
    seconds = [s for s in (papermill.get("duration"), *own) if is_number(s)]
    notebook.seconds = seconds[0] if seconds else None
    notebook.began = str(papermill.get("start_time") or "")
    if notebook.status == "failed":
        notebook.error, notebook.traceback = _error(content)
    return notebook


def _error(content: nbformat.NotebookNode) -> tuple[str, str]:
    """What stopped a failed notebook, in one line and in full."""
    every = [o for cell in content.cells for o in cell.get("outputs", [])]
    errors = [output for output in every if output.output_type == "error"]
    if not errors:
        return "Its kernel died, or a cell ran out of time: no cell has an error.", ""
    error = errors[-1]
    return (
        pages.plain(f"{error.ename}: {error.evalue}"),
        pages.plain("\n".join(error.traceback)),
    )


def distinct(texts: Iterable[str]) -> list[str]:
    """Each text once, in order, without empty ones."""
    return list(dict.fromkeys(text for text in texts if text))


def duration(seconds: float) -> str:
    """Seconds as in `4 min 31 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _date(iso: str) -> str:
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return ""
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".strip()
