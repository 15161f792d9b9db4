"""One page on one or several runs: what passed, what holds, the numbers, the figures.

What the runs hold is data that somebody else may have written: it is shown as text, or cleaned by
`pages`, and nothing in it can run.
"""

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from cvlab.paths import replace_atomically
from cvlab.profiles import ParameterError
from cvlab.records import OUTCOMES, STAND_IN_LABEL, Number, digits, number
from cvlab.tools import changes, pages, run_folder
from cvlab.tools.executed import devices, distinct
from cvlab.tools.run_folder import Folder, duration

FEW, SOME = 3, 10  # a metric with so many values is shown at once: any, or one with intervals
MARKS = {"passed": "✓", "failed": "✗", "unfinished": "◐", "not run": "–"}  # of notebooks
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("cvlab.tools"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["plain"] = pages.plain


@dataclass
class Said:
    """A notebook's claims, or its exercises: (which, how it went in each run; None: not there)."""

    notebook: str
    rows: list[tuple[str, list[Any]]]
    summary: str
    broken: bool = False  # at least one claim does not hold


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
        first, second = (shown.value if shown else None for shown in self.numbers)
        if first is None or second is None or (self.unit != "%" and not first):
            return None
        if self.unit == "%":
            return second - first, f"{second - first:+.1f} points"
        return second / first, f"× {digits(second / first, self.unit)}"


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
    if not runs:
        raise ParameterError("No run was given; name the folder of one, as in runs/<time>.")
    read = [run_folder.read(folder) for folder in runs]
    labels = Counter(run.label for run in read)
    for position, run in enumerate(read, start=1):
        run.label += f" ({position})" if labels[run.label] > 1 else ""
    alone = len(read) == 1
    out = out or (runs[0] if alone else runs[0].resolve().parent / "comparison")
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
        "elsewhere": _elsewhere(read, names),
        "changes": changes.between(*read) if len(read) == 2 else [],
        "marks": MARKS | OUTCOMES,
        "rows": list(_rows(read, names)),
        "figures": {name: _figures(read, name) for name in names},
    }
    return save(out / "index.html", "report.html.j2", context, script=_asset("report.js"))


def _elsewhere(runs: Sequence[Folder], names: Sequence[str]) -> list[str]:
    """Notebooks whose numbers in these runs are from different machines."""
    made = {name: [run.notebooks[name] for run in runs if name in run.notebooks] for name in names}
    where = {name: {(*devices(n.records),) for n in made[name] if n.records} for name in names}
    return [name for name in names if len(where[name]) > 1]


def _claims(runs: Sequence[Folder], names: Sequence[str]) -> Iterator[Said]:
    """The claims of each notebook that made some, those that do not hold first: do they hold?"""
    for name in names:
        made = [run.notebooks[name].claims if name in run.notebooks else {} for run in runs]
        texts = dict.fromkeys(text for claims in made for text in claims)
        rows = [(text, [claims.get(text) for claims in made]) for text in texts]
        rows.sort(key=lambda row: False not in row[1])
        counts = [f"{sum(c.values())} of {len(c)} hold" if c else "none checked" for c in made]
        if rows:
            yield Said(name, rows, _summary(runs, counts), False in rows[0][1])


def _exercises(runs: Sequence[Folder], names: Sequence[str]) -> Iterator[Said]:
    """The exercises of each notebook of which one was attempted: the outcome, what was said."""
    for name in names:
        done = [run.notebooks[name].exercises if name in run.notebooks else {} for run in runs]
        exercises = dict.fromkeys(exercise for one in done for exercise in one)
        rows = [(exercise, [one.get(exercise) for one in done]) for exercise in exercises]
        solved = [sum(outcome == "solved" for outcome, _ in one.values()) for one in done]
        counts = [f"{count} of {len(rows)} solved" for count in solved]
        if {outcome for one in done for outcome, _ in one.values()} - {"not attempted"}:
            yield Said(name, rows, _summary(runs, counts))


def _summary(runs: Sequence[Folder], counts: Sequence[str]) -> str:
    """What was counted in each run, in one line; of several, each is named."""
    if len(runs) > 1:
        counts = [f"{run.label}: {count}" for run, count in zip(runs, counts, strict=True)]
    return " · ".join(counts)


def _figures(runs: Sequence[Folder], name: str) -> list[list[pages.Output | None]]:
    """A notebook's figures, those of one place in it beside each other, an entry a run."""
    shown = [run.figures(name) for run in runs]
    places = dict.fromkeys(place for figures in shown for place in figures)
    return [[figures.get(place) for figures in shown] for place in places]


def _rows(runs: Sequence[Folder], names: Sequence[str]) -> Iterator[Row]:
    """The table of numbers: a row a number, in the order of the notebooks.

    Key numbers of a comparison are those that at least two runs have.
    """
    tables = [_numbers(run) for run in runs]
    every = dict.fromkeys(key for table in tables for key in table)
    for key in sorted(every, key=lambda key: names.index(key[0])):
        notebook, metric, unit, tags, which = key
        found = [table.get(key, (None, False)) for table in tables]
        numbers = [shown for shown, _ in found]
        is_key = any(is_key for _, is_key in found)
        shared = len(runs) == 1 or sum(shown is not None for shown in numbers) > 1
        tags += f" ({which + 1})" if which else ""
        yield Row(notebook, metric, unit, tags, numbers, is_key and shared)


def _numbers(run: Folder) -> dict[tuple, tuple[Number, bool]]:
    """(notebook, metric, unit, tags, which of several) -> (number, is it a key number).

    Numbers of one machine that differ in their seed alone get a row of their mean; a metric with
    many values, as one for each class or batch size, is no key number.
    """
    rows: dict[tuple, tuple[Number, bool]] = {}
    for name, notebook in run.notebooks.items():
        groups: dict[tuple, list[dict]] = {}
        for record in notebook.records:
            unit = "%" if record["unit"] == "fraction" else record["unit"]
            groups.setdefault((record["name"], unit, _tags(record, "seed")), []).append(record)
        sizes = Counter(metric for metric, _, _ in groups)
        for (metric, unit, tags), members in groups.items():
            numbers = [number(member) for member in members]
            counted = all(one.what == "95 %" for one in numbers)
            key = sizes[metric] <= FEW or (counted and sizes[metric] <= SOME)
            seeds = {str(member["tags"].get("seed")) for member in members}
            if len(seeds) > 1:
                if len(devices(members)) < 2:
                    rows[name, metric, unit, tags, 0] = (_mean(numbers), key)
                labels, key = [_tags(member) for member in members], False
            else:
                labels = [tags] * len(members)
            for i, (label, shown) in enumerate(zip(labels, numbers, strict=True)):
                rows[name, metric, unit, label, labels[:i].count(label)] = (shown, key)
    return rows


def _tags(record: dict, *without: str) -> str:
    left = {k: v for k, v in record["tags"].items() if k not in (*changes.MEASURED, *without)}
    return " · ".join(f"{k}: {v}" for k, v in left.items())


def _mean(numbers: list[Number]) -> Number:
    """Of several seeds; the interval is that of one typical model, as in `metrics.over_seeds`."""
    unit, values, n = numbers[0].unit, [one.value for one in numbers], numbers[0].n
    mean = sum(values) / len(values)
    spread = Number(mean, unit, min(values), max(values), f"{len(values)} seeds")
    if not all(one.what == "95 %" and one.n == n for one in numbers):
        return spread
    typical = number({"value": mean / 100, "unit": "fraction", "tags": {"n": n}})
    return replace(typical, note=f"{spread.what}: {spread.interval}")


def _write_notebooks(run: Folder, out: Path, where: str) -> None:
    """Give each readable notebook a page of its own."""
    home = "../" * len(Path(where).parts) + "index.html"
    for name in (name for name, cells in run.cells.items() if cells):
        context = {"name": name, "run": run, "home": home}
        save(out / where / f"{name}.html", "notebook.html.j2", context)
        run.addresses[name] = f"{where}/{quote(os.fsencode(name), safe='')}.html"


def save(path: Path, template: str, context: dict[str, Any], script: str = "") -> Path:
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
        "devices": devices,
        "stand_in": STAND_IN_LABEL,
    }
    page = TEMPLATES.get_template(template).render(context)
    content = page.encode("utf-8", errors="replace")  # half a character is possible in JSON
    return replace_atomically(lambda temporary: temporary.write_bytes(content), path)


def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a Content-Security-Policy calls a style or script by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
