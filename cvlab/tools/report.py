"""One page on one or several runs: what passed, what holds, the numbers, the figures.

What the runs hold is data that somebody else may have written: it is shown as text, or cleaned by
`pages`, and nothing in it can run.
"""

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from cvlab.paths import replace_atomically
from cvlab.profiles import ParameterError
from cvlab.records import OUTCOMES, STAND_IN_LABEL, interval, is_number
from cvlab.tools import pages, run_folder
from cvlab.tools.run_folder import Run, distinct, duration

MEASURED = ("n", "p10", "p90")  # tags that say how well a number is known, not what it is of


FEW, SOME = 3, 10  # a metric with so many values is shown at once: any, or one with intervals


@dataclass(frozen=True)
class Number:
    """A measured value as the page shows it; a fraction is in percent."""

    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    what: str = ""  # low and high are: "95 %", "p10 to p90", "3 seeds"
    n: int | None = None
    note: str = ""

    def __str__(self) -> str:
        return _digits(self.value, self.unit)

    @property
    def interval(self) -> str:
        """From low to high, or ""."""
        return "" if self.low is None else _span(self.low, self.high, self.unit)


@dataclass
class Claims:
    """A notebook's claims: (text, does it hold in each run; None: not checked there)."""

    notebook: str
    rows: list[tuple[str, list[bool | None]]]
    summary: str
    broken: bool  # at least one does not hold


@dataclass
class Exercises:
    """A notebook's exercises: (name, in each run the outcome and what was said, or None)."""

    notebook: str
    rows: list[tuple[str, list[tuple[str, str] | None]]]
    summary: str


@dataclass
class Row:
    """A number, measured in each run, or in some: `numbers` has None where it was not."""

    notebook: str
    metric: str
    unit: str
    tags: str
    numbers: list[Number | None]
    key: bool  # shown at once

    @property
    def difference(self) -> tuple[float, str] | None:
        """From the first run to the second: percentage points, or how many times."""
        first, second = (number.value if number else None for number in self.numbers)
        if first is None or second is None or (self.unit != "%" and not first):
            return None
        if self.unit == "%":
            return second - first, f"{second - first:+.1f} points"
        return second / first, f"× {_digits(second / first, self.unit)}"


def write(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report on one run, or on several side by side; returns the page's path.

    Args:
        runs: folders that `python -m cvlab run` made.
        out: where `index.html` and `html/` go: the run's own folder if None, for several runs
            `comparison` beside the first.

    Raises:
        ParameterError: a folder is not there, or holds no run.
        OSError: the page cannot be written; an older one is as it was.
    """
    folders = [Path(run) for run in runs]
    if not folders:
        raise ParameterError("No run was given; name the folder of one, as in runs/<time>.")
    read = [run_folder.read(folder) for folder in folders]
    labels = Counter(run.label for run in read)
    for position, run in enumerate(read, start=1):
        run.label += f" ({position})" if labels[run.label] > 1 else ""
    alone = len(read) == 1
    out = out or (folders[0] if alone else folders[0].resolve().parent / "comparison")
    for position, run in enumerate(read, start=1):
        _write_notebooks(run, out, "html" if alone else f"html/{position}")
    names = distinct(name for run in read for name in run.notebooks)
    context = {
        "runs": read,
        "alone": alone,
        "names": names,
        "failed": [(run, n) for run in read for n in run.notebooks.values() if n.error],
        "claims": sorted(_claims(read, names), key=lambda claims: not claims.broken),
        "exercises": list(_exercises(read, names)),
        "marks": OUTCOMES,
        "rows": list(_rows(read)),
        "figures": {name: _figures(read, name) for name in names},
    }
    return _save(out / "index.html", "report.html.j2", context, script=_asset("report.js"))


def _claims(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Claims]:
    """The claims of each notebook that made some, in each run, those that do not hold first."""
    for name in names:
        made = [run.notebooks[name].claims if name in run.notebooks else {} for run in runs]
        texts = dict.fromkeys(text for claims in made for text in claims)
        rows = [(text, [claims.get(text) for claims in made]) for text in texts]
        rows.sort(key=lambda row: False not in row[1])
        counts = [f"{sum(c.values())} of {len(c)} hold" if c else "none checked" for c in made]
        if rows:
            yield Claims(name, rows, _summary(runs, counts), False in rows[0][1])


def _exercises(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Exercises]:
    """The exercises of each notebook of which at least one was attempted, in each run."""
    for name in names:
        done = [run.notebooks[name].exercises if name in run.notebooks else {} for run in runs]
        exercises = dict.fromkeys(exercise for one in done for exercise in one)
        rows = [(exercise, [one.get(exercise) for one in done]) for exercise in exercises]
        solved = [sum(outcome == "solved" for outcome, _ in one.values()) for one in done]
        counts = [f"{count} of {len(rows)} solved" for count in solved]
        if {outcome for one in done for outcome, _ in one.values()} - {"not attempted"}:
            yield Exercises(name, rows, _summary(runs, counts))


def _summary(runs: Sequence[Run], counts: Sequence[str]) -> str:
    """What was counted in each run, in one line; of several, each is named."""
    if len(runs) > 1:
        counts = [f"{run.label}: {count}" for run, count in zip(runs, counts, strict=True)]
    return " · ".join(counts)


def _figures(runs: Sequence[Run], name: str) -> list[list[pages.Output | None]]:
    """A notebook's figures, those of one place in it beside each other, an entry a run."""
    shown = [run.notebooks[name].figures if name in run.notebooks else {} for run in runs]
    places = dict.fromkeys(place for figures in shown for place in figures)
    return [[figures.get(place) for figures in shown] for place in places]


def _rows(runs: Sequence[Run]) -> Iterator[Row]:
    """The table of numbers: a row a number, in the order of the notebooks.

    Key numbers of a comparison are those that at least two runs have.
    """
    tables = [_numbers(run) for run in runs]
    places = {name: i for i, name in enumerate(distinct(n for run in runs for n in run.notebooks))}
    every = dict.fromkeys(key for table in tables for key in table)
    for key in sorted(every, key=lambda key: places[key[0]]):
        notebook, metric, unit, tags, which = key
        found = [table.get(key, (None, False)) for table in tables]
        numbers = [number for number, _ in found]
        is_key = any(is_key for _, is_key in found)
        shared = len(runs) == 1 or sum(number is not None for number in numbers) > 1
        tags += f" ({which + 1})" if which else ""
        yield Row(notebook, metric, unit, tags, numbers, is_key and shared)


def _numbers(run: Run) -> dict[tuple, tuple[Number, bool]]:
    """(notebook, metric, unit, tags, which of several) -> (number, is it a key number).

    Numbers that differ in their seed alone get a row of their mean; a metric with many values,
    as one for each class or batch size, is no key number.
    """
    rows: dict[tuple, tuple[Number, bool]] = {}
    for notebook in run.notebooks.values():
        groups: dict[tuple, list[dict]] = {}
        for record in notebook.records:
            unit = "%" if record["unit"] == "fraction" else record["unit"]
            groups.setdefault((record["name"], unit, _tags(record, "seed")), []).append(record)
        sizes = Counter(metric for metric, _, _ in groups)
        for (metric, unit, tags), members in groups.items():
            numbers = [_number(member) for member in members]
            counted = all(number.what == "95 %" for number in numbers)
            key = sizes[metric] <= FEW or (counted and sizes[metric] <= SOME)
            if len({str(member["tags"].get("seed")) for member in members}) > 1:
                rows[notebook.name, metric, unit, tags, 0] = (_mean(numbers), key)
                of, key = [_tags(member) for member in members], False
            else:
                of = [tags] * len(members)
            for which, (one, number) in enumerate(zip(of, numbers, strict=True)):
                rows[notebook.name, metric, unit, one, of[:which].count(one)] = (number, key)
    return rows


def _tags(record: dict, *without: str) -> str:
    left = {k: v for k, v in record["tags"].items() if k not in (*MEASURED, *without)}
    return " · ".join(f"{k}: {v}" for k, v in left.items())


def _number(record: dict) -> Number:
    """A record with its interval, as far as its tags are what they should be."""
    value, tags, percent = record["value"], record["tags"], record["unit"] == "fraction"
    sure = {k: tags[k] for k in MEASURED if is_number(tags.get(k)) and tags[k] >= 0}
    found = None if percent and not 0 <= value <= 1 else interval(record | {"tags": sure})
    what = ("95 %" if percent else "p10 to p90") if found else ""
    scale, unit = (100, "%") if percent else (1, record["unit"])
    low, high = (scale * side for side in found) if found else (None, None)
    return Number(scale * value, unit, low, high, what, sure.get("n"))


def _mean(numbers: list[Number]) -> Number:
    """Of several seeds; the interval is that of one typical model, as in `metrics.over_seeds`."""
    unit, values = numbers[0].unit, [number.value for number in numbers]
    mean, n, seeds = sum(values) / len(values), numbers[0].n, f"{len(values)} seeds"
    if all(number.what == "95 %" and number.n == n for number in numbers):
        note = f"{seeds}: {_span(min(values), max(values), unit)}"
        low, high = interval({"value": mean / 100, "unit": "fraction", "tags": {"n": n}})
        return Number(mean, unit, 100 * low, 100 * high, "95 %", n, note)
    return Number(mean, unit, min(values), max(values), seeds)


def _span(low: float, high: float, unit: str) -> str:
    return f"{_digits(low, unit)} to {_digits(high, unit)}"


def _digits(value: float, unit: str) -> str:
    """Three significant digits, whole from 1000 on or where it is whole; percent with a decimal."""
    if unit == "%":
        return f"{value:.1f}"
    if abs(value) >= 999.5 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def _write_notebooks(run: Run, out: Path, where: str) -> None:
    """Give each readable notebook a page of its own."""
    home = "../" * len(Path(where).parts) + "index.html"
    for notebook in (notebook for notebook in run.notebooks.values() if notebook.cells):
        context = {"notebook": notebook, "run": run, "home": home}
        _save(out / where / f"{notebook.name}.html", "notebook.html.j2", context)
        notebook.page = f"{where}/{quote(os.fsencode(notebook.name), safe='')}.html"


def _save(path: Path, template: str, context: dict[str, Any], script: str = "") -> Path:
    """Render a template to a file. Its policy allows our own style and script, nothing else.

    A notebook's page has no script; the colours of folded sources are style attributes.
    """
    css = _asset("report.css") + ("" if script else pages.CODE.get_style_defs())
    ours = f"style-src {_hash(css)}; script-src {_hash(script)}"
    attributes = f"style-src 'unsafe-inline'; style-src-elem {_hash(css)}"
    policy = f"default-src 'none'; img-src data:; {ours if script else attributes}"
    context |= {
        "policy": f"{policy}; base-uri 'none'; form-action 'none'",
        "css": Markup(css),
        "script": Markup(script),
        "duration": duration,
        "stand_in": STAND_IN_LABEL,
    }
    page = _templates().get_template(template).render(context)
    content = page.encode("utf-8", errors="replace")  # half a character is possible in JSON
    return replace_atomically(lambda temporary: temporary.write_bytes(content), path)


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("cvlab.tools"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a Content-Security-Policy calls a style or script by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
