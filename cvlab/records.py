"""What a notebook leaves: how it is stored in the notebook, read back and put in words.

A record is a dictionary with `name`, `value`, `unit`, `tags`, `device`, `source`, `profile`; a
claim has `claim` and `holds`, an exercise `exercise`, `outcome` and `said`. Each is an output of
type `MIME`, invisible to the reader. No other module knows the format.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvlab.show import in_notebook

if TYPE_CHECKING:  # `import cvlab` shall wait for torch alone
    from nbformat import NotebookNode

MIME = "application/vnd.cvlab.record+json"
STAND_IN_LABEL = "SYNTHETIC STAND-IN DATA"
OUTCOMES = {"solved": "✓", "wrong": "✗", "not attempted": "○"}  # of an exercise
STATES = {"": "passed", ".failed": "failed", ".running": "unfinished"}  # by a file name's ending
NOT_RUN = "not run"  # the state of a notebook that is absent or damaged
OWN_TIME = "notebook_seconds"  # the record that `Run.finish` leaves
MOST_IMAGES = 10**15  # of which a share can be: a number of a damaged record may be any


def store(content: dict) -> None:
    """Leave a record, claim or exercise in the notebook that runs; elsewhere do nothing."""
    if in_notebook():
        from IPython.display import display

        display({MIME: content, "text/plain": ""}, raw=True)


# --- read back -----------------------------------------------------------------------------------


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
    texts = all(isinstance(entry.get(key), str) for key in ("name", "unit"))
    return texts and isinstance(entry.get("tags"), dict) and is_number(entry.get("value"))


def is_number(value: Any) -> bool:
    """Is it a finite number? JSON also knows true, NaN and texts."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


# --- in words ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A measured value as it is shown: a share is in percent, of `n` images where that is known."""

    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    what: str = ""  # low and high are: "95 %", "p10 to p90", "3 seeds"
    n: int | None = None
    note: str = ""

    def __str__(self) -> str:
        return digits(self.value, self.unit)

    @property
    def interval(self) -> str:
        """From low to high, or ""."""
        ends = [] if self.low is None else [self.low, self.high]
        return " to ".join(digits(end, self.unit) for end in ends)


def number(record: Mapping) -> Number:
    """A record as it is shown, with its interval as far as its tags are what they should be."""
    is_share, found, n = record["unit"] == "fraction", interval(record), record["tags"].get("n")
    scale, unit, what = (100, "%", "95 %") if is_share else (1, record["unit"], "p10 to p90")
    low, high = (scale * end for end in found) if found else (None, None)
    n = n if _is_count(n) else None
    return Number(scale * record["value"], unit, low, high, what if found else "", n)


def interval(record: Mapping) -> tuple[float, float] | None:
    """The 95 % interval of a share whose tags say of how many images `n`; p10 to p90 of a time.

    None where the record does not tell.
    """
    from cvlab.metrics import Score

    value, tags = record["value"], record["tags"]
    if record["unit"] == "fraction":
        n = tags.get("n")
        known = _is_count(n) and 0 <= value <= 1
        return Score(math.nan, round(value * n), n).interval if known else None
    ends = tags.get("p10"), tags.get("p90")
    return ends if all(is_number(end) for end in ends) else None


def _is_count(n: Any) -> bool:
    return isinstance(n, int) and is_number(n) and 0 < n <= MOST_IMAGES


def in_words(record: Mapping) -> str:
    """As in `91.7 % (91.1 to 92.2 %, n = 10,000)`, `0.9 ms (0.84 to 1.1)` or `3.6 times`."""
    shown = number(record)
    of = f" %, n = {shown.n:,}" if shown.unit == "%" and shown.what else ""
    return f"{shown} {shown.unit}" + (f" ({shown.interval}{of})" if shown.what else "")


def digits(value: float, unit: str = "") -> str:
    """Three significant digits, whole from 100 on; percent with one decimal."""
    if unit == "%":
        return f"{value:.1f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
