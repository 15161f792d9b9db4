"""What changed from one run to a later one, and a history of runs, one line each.

For whoever finds a weekly run red: which package, which claim, which number, which time.
"""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

from cvlab.paths import project_root
from cvlab.records import in_words
from cvlab.tools.run_folder import Folder, duration

SLOWER = 1.5  # times as long as before
MEASURED = ("n", "p10", "p90")  # tags that say how well a number is known, not what it is of
HOLDS = {True: "holds", False: "does not hold", None: "not checked"}


def between(old: Folder, new: Folder) -> list[tuple[str, ...]]:
    """A row for each difference that may matter: what it is, which one, as it was, as it is."""
    return [*_packages(old, new), *_notebooks(old, new), *_numbers(old, new)]


def table(old: Folder, new: Folder) -> str:
    """The same in Markdown, or one sentence if there is none."""
    rows = between(old, new)
    if not rows:
        return f"Nothing changed from {old.label} to {new.label}."
    every = [("what", "which", old.label, new.label), ("---",) * 4, *rows]
    return "\n".join(f"| {' | '.join(_cell(text) for text in row)} |" for row in every)


def _cell(text: str) -> str:
    """Text that stays in its cell, and is text: what a run's folder holds is not ours."""
    return " ".join(text.replace("|", "/").replace("<", "&lt;").split())


def _packages(old: Folder, new: Folder) -> Iterator[tuple[str, ...]]:
    before, now = old.plan["packages"], new.plan["packages"]
    for name in sorted(before | now) if before and now else ():
        if before.get(name) != now.get(name):
            yield "package", name, before.get(name, "missing"), now.get(name, "missing")


def _notebooks(old: Folder, new: Folder) -> Iterator[tuple[str, ...]]:
    """Status, claims and times of the notebooks that both were asked for."""
    for name in (name for name in new.notebooks if name in old.notebooks):
        before, now = old.notebooks[name], new.notebooks[name]
        if before.status != now.status:
            why = f"{now.status}: {now.error}" if now.error else now.status
            yield "notebook", name, before.status, why[:200]
        for text in before.claims | now.claims:
            was, is_now = before.claims.get(text), now.claims.get(text)
            if was != is_now:
                yield "claim", f"{name}: {text}", HOLDS[was], HOLDS[is_now]
        if before.seconds and now.seconds and now.seconds > SLOWER * before.seconds:
            yield "time", name, duration(before.seconds), duration(now.seconds)


def _numbers(old: Folder, new: Folder) -> Iterator[tuple[str, ...]]:
    """Numbers that are now out of the range that `tests/bands.toml` has for their profile."""
    path = project_root() / "tests" / "bands.toml"
    every = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, notebook in new.notebooks.items():
        bands = every.get(new.plan["profile"], {}).get(name, {})
        same = old.notebooks[name].records if name in old.notebooks else []
        before = {(r["name"], _of(r)): in_words(r) for r in same}
        for record in notebook.records:
            low, high = bands.get(record["name"], (record["value"],) * 2)
            if not low <= record["value"] <= high:
                which = f"{name}: {record['name']} {_of(record)}, expected {low:g} to {high:g}"
                was = before.get((record["name"], _of(record)), "not measured")
                yield "number", which, was, in_words(record)


def _of(record: dict) -> str:
    """What a number is of: its tags in words, without how well it is known."""
    return ", ".join(f"{k} {v}" for k, v in record["tags"].items() if k not in MEASURED)


def remember(run: Folder, history: Path) -> None:
    """Add a line of JSON to `history`: the run's plan and machine, and all that was measured."""
    line = {"label": run.label, "verdict": run.verdict, "good": run.good} | run.plan
    line["notebooks"] = {
        name: {
            "status": notebook.status,
            "seconds": notebook.seconds,
            "claims": notebook.claims,
            "records": notebook.records,
        }
        for name, notebook in run.notebooks.items()
    }
    history.parent.mkdir(parents=True, exist_ok=True)
    with history.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
