"""Published results: `data/results/` and README's tables, made from the committed notebooks.

README holds each table between two comments, `<!-- NAME -->` and `<!-- end -->`; what stands
between them is made anew by `python -m cvlab results`, and nothing else is touched.
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import nbformat

from cvlab.paths import as_json, project_root, store_text
from cvlab.records import OWN_TIME, digits, in_words, is_number
from cvlab.tools.executed import devices, stored_in
from cvlab.tools.runner import notebook_paths


class ResultsError(ValueError):
    """README or a stored result is not as its tables need it; the message says what is missing."""


def update() -> list[Path]:
    """Write what `expected` says; returns the files that changed.

    Raises:
        ResultsError: see `expected`; nothing is written then.
    """
    changed = {path: text for path, text in expected().items() if _read(path) != text}
    for path, text in changed.items():
        store_text(text, path)
    return list(changed)


def expected() -> dict[Path, str]:
    """Path to text of every generated file, from the committed notebooks and stored full runs.

    Raises:
        ResultsError: README lacks the place of a table, or a notebook the record of a headline.
    """
    root = project_root()
    folder, files, found = root / "data" / "results", {}, {}
    for name, path in notebook_paths().items():
        found[name] = stored_in(nbformat.read(path, as_version=4))
        files[folder / f"{name}.json"] = as_json({"notebook": name, "records": found[name]})
    for path in sorted(folder.glob("*_full.json")):
        found[path.stem] = json.loads(path.read_text(encoding="utf-8"))["records"]
    wanted = tomllib.loads((Path(__file__).parent / "readme.toml").read_text(encoding="utf-8"))
    measured = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    files[folder / "README.md"] = bench(measured)
    tables = {
        "notebooks": notebooks(found, wanted["notebook"]),
        "headlines": headlines(found, wanted["headline"]),
        "peers": peers(measured, wanted["peer"]),
    }
    readme = _read(root / "README.md") or ""
    for name, text in tables.items():
        readme = _put(readme, name, text)
    return files | {root / "README.md": readme}


COLUMNS = ("usual", "rival", "ours")  # of README's table of peers


def headlines(found: Mapping[str, list[dict]], wanted: Sequence[Mapping]) -> str:
    """README's table of results, from the records of each notebook, and which machines' they are.

    Args:
        wanted: a row each: `notebook`, `what` it is, the `name` of its record and its `tags`.
    """
    rows = [(f"`{one['notebook']}`", one["what"], _value(one, found)) for one in wanted]
    return _table(("from", "what", "measured"), rows) + _measured_on(found, wanted, "notebook")


def _value(wanted: Mapping, found: Mapping[str, list[dict]]) -> str:
    tags = wanted.get("tags", {})
    fits = [
        record
        for record in found.get(wanted["notebook"], [])
        if record.get("name") == wanted["name"] and tags.items() <= record["tags"].items()
    ]
    if not fits:
        raise ResultsError(
            f"{wanted['notebook']} has no record {wanted['name']!r} with the tags {tags}, which "
            "README's table shows. Publish it again, or mend cvlab/tools/readme.toml."
        )
    if len(machines := devices(fits)) > 1:
        raise ResultsError(
            f"{wanted['notebook']}: the records {wanted['name']!r} with the tags {tags} come from "
            f"{'; '.join(machines)}. No mean is made over machines: run it on one, and publish it."
        )
    if len(fits) == 1:
        return in_words(fits[0])
    values = [record["value"] for record in fits]
    ends = fmean(values), min(values), max(values)
    middle, low, high = (in_words(fits[0] | {"value": end, "tags": {}}) for end in ends)
    return f"{middle} (mean of {len(values)} seeds, {low} to {high})"


def notebooks(found: Mapping[str, list[dict]], wanted: Sequence[Mapping]) -> str:
    """README's overview: a figure of each notebook, its question, and how long it took."""
    rows = []
    for one in wanted:
        name, there = one["name"], f"notebooks/{one['name']}.ipynb"
        picture = f'<img src="figures/{one["figure"]}" width="240" alt="a figure of {name}">'
        seconds = _value({"notebook": name, "name": OWN_TIME}, found)
        text = f"**[{name}]({there})**<br>{one['question']}"
        rows.append((f"[{picture}]({there})", text, seconds))
    return _table(("", "question", "time"), rows) + _measured_on(found, wanted, "name")


def _measured_on(found: Mapping[str, list[dict]], wanted: Sequence[Mapping], key: str) -> str:
    """The line below a table: the machine of its numbers; of several, which notebooks are whose."""
    machines: dict[str, list[str]] = {}
    for name in dict.fromkeys(one[key] for one in wanted):
        for machine in devices(found.get(name, [])):
            machines.setdefault(machine, []).append(name)
    if len(machines) < 2:
        return "".join(f"\n\nMeasured on {machine}." for machine in machines)
    whose = "; ".join(f"{', '.join(names)} on {machine}" for machine, names in machines.items())
    return f"\n\nMeasured on different machines, whose times do not compare: {whose}."


def peers(measured: Mapping[str, Any], wanted: Sequence[Mapping]) -> str:
    """README's table of our ways beside the usual ones, a row each of `bench.json`'s tables.

    A `rival` is the strongest other way of that table.
    """
    rows = []
    for one in wanted:
        ways = {row["way"]: digits(row[one["column"]]) for row in measured[one["table"]]}
        shown = {k: one[k] for k in COLUMNS if k in one}
        told = {k: f"{ways[way]} {one['unit']} ({way})" for k, way in shown.items()}
        rows.append((one["what"], *(told.get(k, "none measured") for k in COLUMNS)))
    table = _table(("", "usual default", "strongest rival", "ours"), rows)
    return f"{table}\n\nMeasured on {measured['cpu']}."


def bench(stored: Mapping[str, Any]) -> str:
    """`data/results/README.md`: a table for each comparison in `bench.json`."""
    about = "What `make bench` measured: our ways beside the usual ones, contestants in turns."
    lines = ["# Beside the usual ways", "", about, "Made by `python -m cvlab results`."]
    lines += ["", f"{stored['cpu']}; {stored['versions']}; {stored['source']}."]
    for title, rows in stored.items():
        if isinstance(rows, list):
            head = tuple(name for name in rows[0] if name != "index")
            cells = [[row[name] for name in head] for row in rows]
            body = [tuple(digits(c) if is_number(c) else str(c) for c in row) for row in cells]
            lines += ["", f"## {title[0].upper() + title[1:]}", "", _table(head, body)]
    return "\n".join(lines) + "\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _put(readme: str, name: str, text: str) -> str:
    place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not place.search(readme):
        raise ResultsError(
            f"README.md has no place for the table {name!r}: put the lines `<!-- {name} -->` and "
            "`<!-- end -->` where it belongs."
        )
    return place.sub(lambda found: f"{found[1]}{text}\n{found[2]}", readme, count=1)


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
