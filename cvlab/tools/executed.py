"""What an executed notebook tells: the other half of `cvlab.records`, for those who run it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cvlab.records import MIME, OUTCOMES, OWN_TIME, is_number

if TYPE_CHECKING:  # a command that reads no notebook shall not wait for it
    from nbformat import NotebookNode

STATES = {"": "passed", ".failed": "failed", ".running": "unfinished"}  # by a file name's ending
NOT_RUN = "not run"  # the state of a notebook that is absent or damaged


@dataclass
class Executed:
    """A notebook as a run left it."""

    name: str
    status: str = NOT_RUN  # or one of STATES
    seconds: float | None = None
    began: str = ""  # ISO, UTC
    claims: dict[str, bool] = field(default_factory=dict)
    records: list[dict] = field(default_factory=list)  # without the notebook's own time
    exercises: dict[str, tuple[str, str]] = field(default_factory=dict)  # outcome, what was said
    error: str = ""  # that stopped a failed one, in a line
    traceback: str = ""
    damage: str = ""  # why its file cannot be read
    content: "NotebookNode | None" = field(default=None, repr=False)

    @property
    def held(self) -> int:
        """How many claims hold."""
        return sum(self.claims.values())


def read(path: Path, hide: Callable[[str], str] = str) -> Executed:
    """An executed notebook, whatever lies there: absent or damaged, it counts as not run.

    Args:
        path: the ending of its name tells the status, see `STATES`.
        hide: takes the file's text and returns it without what must not be passed on.
    """
    ending = Path(path.stem).suffix
    ending = ending if ending in STATES else ""
    found = Executed(path.stem.removesuffix(ending))
    if not path.is_file():
        return found
    try:
        import nbformat

        content = nbformat.reads(hide(path.read_text(encoding="utf-8")), as_version=4)
        return _told_by(content, found.name, STATES[ending])
    except Exception as error:  # cut short, no notebook, hostile: in each case it has to run again
        found.damage = str(error) or type(error).__name__
        return found


def _told_by(content: "NotebookNode", name: str, status: str) -> Executed:
    stored = stored_in(content)
    measured = [entry for entry in stored if _is_record(entry)]
    papermill = content.metadata.get("papermill") or {}
    own = [record["value"] for record in measured if record["name"] == OWN_TIME]
    seconds = [s for s in (papermill.get("duration"), *own) if is_number(s)]
    found = Executed(name, status, seconds[0] if seconds else None, content=content)
    found.began = str(papermill.get("start_time") or "")
    found.records = [record for record in measured if record["name"] != OWN_TIME]
    for entry in stored:
        if "claim" in entry:
            text, holds = str(entry["claim"]), entry.get("holds") is True
            found.claims[text] = found.claims.get(text, True) and holds
        if str(entry.get("outcome")) in OUTCOMES:
            found.exercises[str(entry.get("exercise"))] = entry["outcome"], str(entry.get("said"))
    if status == "failed":
        found.error, found.traceback = _error(content)
    return found


def _error(content: "NotebookNode") -> tuple[str, str]:
    """What stopped a failed notebook, in one line and in full, with a terminal's colours."""
    every = [output for cell in content.cells for output in cell.get("outputs", [])]
    errors = [output for output in every if output.output_type == "error"]
    if not errors:
        return "Its kernel died, or a cell ran out of time: no cell has an error.", ""
    return f"{errors[-1].ename}: {errors[-1].evalue}", "\n".join(errors[-1].traceback)


def stored_in(notebook: "NotebookNode") -> list[dict]:
    """All records, claims and exercises stored in an executed notebook, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [dict(o.data[MIME]) for o in outputs if MIME in o.get("data", {})]


def distinct(texts: Iterable[str]) -> list[str]:
    """Each text once, in order, without empty ones."""
    return list(dict.fromkeys(text for text in texts if text))


def devices(records: Iterable[Mapping]) -> list[str]:
    """Machines that they were measured on, each once, in order."""
    return distinct(str(record.get("device") or "") for record in records)


def mixture(records: Iterable[Mapping]) -> str:
    """A warning where several machines have measured them, else ""."""
    names = devices(records)
    told = f"Measured on {len(names)} machines, whose times do not compare: {'; '.join(names)}."
    return told if len(names) > 1 else ""


def _is_record(entry: dict) -> bool:
    """Is what a notebook stored a record, whole and of the right types?"""
    texts = all(isinstance(entry.get(key), str) for key in ("name", "unit"))
    return texts and isinstance(entry.get("tags"), dict) and is_number(entry.get("value"))
