"""A run's folder read back: what passed, what holds, what was measured and on which machine.

An executed notebook is its own record; `run.json` beside it says what was asked for. Whatever is
damaged, missing or of another type than it should be becomes a problem that is told, not an error.
"""

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from cvlab.profiles import ParameterError
from cvlab.tools import executed, pages
from cvlab.tools.executed import STATES, Executed, distinct

HINT = "Give the folder of a run, made by `python -m cvlab run --out DIR`."
PASSWORD = re.compile(r"(://[^\s/:@\"'\\]*:)[^\s/@\"'\\]+@")  # of a database, in STORAGE


@dataclass
class Folder:
    """A run's folder, as far as it can be read; `problems` says what cannot."""

    label: str
    plan: dict[str, Any]
    notebooks: dict[str, Executed]
    cells: dict[str, list[pages.Cell]]  # of each notebook that can be read
    problems: list[str]
    addresses: dict[str, str] = field(default_factory=dict)  # of the notebooks' pages

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
        return executed.devices(r for n in self.notebooks.values() for r in n.records)

    @property
    def sources(self) -> list[str]:
        """Where the images came from."""
        every = (r.get("source") for n in self.notebooks.values() for r in n.records)
        return distinct(str(source or "") for source in every)

    @property
    def machine(self) -> str:
        """The machine in words; where the numbers come from others, these and where it started."""
        about, measured = self.plan["about"], self.devices
        if not about:
            return "; ".join(measured)
        known = {"cpu": "unknown CPU", "memory_gb": "?", "gpu": "no GPU"} | about
        cpu, gpu = known["cpu"], known["gpu"]
        cores = f", {known['cores']} cores" if "cores" in known else ""  # older: not in the name
        host = f"{cpu}{cores}, {known['memory_gb']} GB, {gpu}"
        is_host = set(measured) <= {cpu, gpu, f"{gpu}; {cpu}"}
        return host if is_host else f"{'; '.join(measured)}; started on {host}"

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

    def figures(self, name: str) -> dict[tuple, pages.Output]:
        """By cell and place in it, which stay the same when a notebook runs again elsewhere."""
        shown = {}
        for cell in self.cells.get(name, []):
            pictures = [output for output in cell.outputs if output.kind == "picture"]
            shown |= {(cell.id, place): output for place, output in enumerate(pictures)}
        return shown


def read(folder: Path) -> Folder:
    """A run's folder; whatever is damaged in it becomes a problem, not an error.

    Raises:
        ParameterError: there is no such folder, or no notebook in it and none asked for.
    """
    if not folder.is_dir():
        raise ParameterError(f"There is no folder {folder}. {HINT}")
    plan, problems = _plan(folder)
    found = (path.stem for path in sorted(folder.glob("*.ipynb")))
    found = distinct(re.sub(r"\.(failed|running)$", "", stem) for stem in found)
    names, notebooks, cells = plan["notebooks"] or found, {}, {}
    if not names:
        raise ParameterError(f"{folder} holds no notebook. {' '.join(problems)} {HINT}")
    for name in names:
        paths = [folder / f"{name}{ending}.ipynb" for ending in STATES]
        path = next((path for path in paths if path.is_file()), paths[0])
        notebook = notebooks[name] = executed.read(path, hide=_without_passwords)
        try:
            cells[name] = list(pages.cells(notebook.content, names)) if notebook.content else []
        except Exception as error:  # hostile: the others are reported
            notebook = notebooks[name] = Executed(name, damage=str(error) or type(error).__name__)
        if notebook.damage:
            reason = " ".join(notebook.damage.split())[:200]
            problems.append(
                f"{name} is cut short or damaged and counts as not run ({reason}); "
                "`python -m cvlab run --resume --out DIR` runs it again."
            )
    return Folder(folder.resolve().name, plan, notebooks, cells, problems)


def _plan(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What `run.json` says, each entry of the type it should have, and what is wrong with it."""
    problems, given = [], {}
    try:
        given = json.loads(_without_passwords((folder / "run.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        problems.append("There is no run.json: what was asked for is not known.")
    except (OSError, RecursionError, ValueError) as error:
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
        "packages": _texts(given.get("packages")),
    }
    return plan, problems


def _texts(entries: Any) -> dict[str, str]:
    pairs = entries.items() if isinstance(entries, dict) else ()
    return {str(key): str(value) for key, value in pairs if value is not None}


def _without_passwords(text: str) -> str:
    """Without those in addresses: reports are passed on."""
    return PASSWORD.sub(r"\1***@", text)


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
