"""What a notebook leaves: how it is stored in the notebook, and put in words.

A record is a dictionary with `name`, `value`, `unit`, `tags`, `device`, `source`, `profile`; a
claim has `claim` and `holds`, an exercise `exercise`, `outcome` and `said`. Each is an output of
type `MIME`, invisible to the reader. `cvlab.tools.executed` reads them back.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cvlab.show import in_notebook

MIME = "application/vnd.cvlab.record+json"
STAND_IN_LABEL = "SYNTHETIC STAND-IN DATA"
OUTCOMES = {"solved": "✓", "wrong": "✗", "not attempted": "○"}  # of an exercise
OWN_TIME = "notebook_seconds"  # the record that `Run.finish` leaves
MOST_IMAGES = 10**15  # of which a share can be: a number of a damaged record may be any


def store(content: dict) -> None:
    """Leave a record, claim or exercise in the notebook that runs; elsewhere do nothing."""
    if in_notebook():
        from IPython.display import display

        display({MIME: content, "text/plain": ""}, raw=True)


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
