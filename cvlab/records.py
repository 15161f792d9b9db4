"""What a notebook leaves: how records are stored in it, read back and put in words.

A record is a dictionary with `name`, `value`, `unit`, `tags`, `device`, `source`, `profile`; a
claim has `claim` and `holds`, an exercise `exercise`, `outcome` and `said`. Each is an output of
type `MIME`, invisible to the reader. No other module knows the format.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cvlab.show import in_notebook

if TYPE_CHECKING:
    import nbformat

MIME = "application/vnd.cvlab.record+json"
STAND_IN_LABEL = "SYNTHETIC STAND-IN DATA"
OUTCOMES = {"solved": "✓", "wrong": "✗", "not attempted": "○"}  # of an exercise


def store(content: dict) -> None:
    """Leave a record, claim or exercise in the notebook that runs; elsewhere do nothing."""
    if in_notebook():
        from IPython.display import display

        display({MIME: content, "text/plain": ""}, raw=True)


def _is_record(entry: dict) -> bool:
    texts = all(isinstance(entry.get(key), str) for key in ("name", "unit"))
    return texts and isinstance(entry.get("tags"), dict) and is_number(entry.get("value"))


def is_number(value: Any) -> bool:
    """Is it a finite number? JSON also knows true, NaN and texts."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def stored_in(notebook: "nbformat.NotebookNode") -> list[dict]:
    """All records and claims stored in an executed notebook, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [dict(o.data[MIME]) for o in outputs if MIME in o.get("data", {})]


def interval(record: Mapping) -> tuple[float, float] | None:
    """The 95 % interval of a share whose tags say of how many images `n`; p10 to p90 of a time.

    None where the record does not tell.
    """
    from cvlab.metrics import Score

    value, tags = record["value"], record["tags"]
    if record["unit"] == "fraction" and tags.get("n"):
        return Score(float("nan"), round(value * tags["n"]), tags["n"]).interval
    return (tags["p10"], tags["p90"]) if {"p10", "p90"} <= tags.keys() else None


def in_words(record: Mapping) -> str:
    """As in `91.7 % (91.1 to 92.2 %, n = 10,000)`, `0.9 ms (0.84 to 1.1)` or `3.6 times`."""
    low_high, n = interval(record), record["tags"].get("n")
    if record["unit"] == "fraction":
        shown = f"{100 * record['value']:.1f} %"
        low, high = (100 * side for side in low_high or (0, 0))
        return f"{shown} ({low:.1f} to {high:.1f} %, n = {n:,})" if low_high else shown
    value = record["value"]
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    spread = f" ({low_high[0]:.3g} to {low_high[1]:.3g})" if low_high else ""
    return f"{shown} {record['unit']}{spread}"
