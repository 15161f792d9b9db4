"""Marks from what was judged: tables for a learning platform, a page for each student and one for
the instructor. Texts of students are data: the templates escape them, the tables disarm formulas.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cvlab.paths import as_json, store_text
from cvlab.records import OUTCOMES
from cvlab.tools.grading.collect import GradeError, HandedIn, exercises
from cvlab.tools.report import save

WEIGHTS = {"points": {"●○○": 1, "●●○": 2, "●●●": 3}, "exercise": {}, "late": 1.0}
MISSING = {"outcome": "missing", "said": "no cell that was handed in defines it", "form": ""}
SIGNS = {**OUTCOMES, "missing": "–"}
COLUMNS = ["student", "notebook", "exercise", "points", "of", "outcome", "late", "said"]


def weights(file: Path | None) -> dict[str, float]:
    """Points of each exercise and, as "late", the share that a late one keeps, from a TOML file.

    Raises:
        GradeError: the file names what is not there, or is no TOML.
    """
    try:
        given = tomllib.loads(file.read_text(encoding="utf-8")) if file else {}
        points = WEIGHTS["points"] | given.get("points", {})
        own = given.get("exercise", {})
        unknown = (given.keys() - WEIGHTS) | (points.keys() - WEIGHTS["points"])
        unknown |= own.keys() - exercises()
        found = {n: float(own.get(n, points.get(one.level, 1))) for n, one in exercises().items()}
        found["late"] = float(given.get("late", WEIGHTS["late"]))
    except (AttributeError, TypeError, ValueError) as error:
        raise GradeError(f"{file} cannot be used: {error}") from error
    if unknown:
        raise GradeError(f"{file} names {', '.join(sorted(unknown))}; known are {WEIGHTS}.")
    return found


def marks(
    handed: Sequence[HandedIn], judged: Mapping[tuple[str, str], dict], worth: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A row for each student and exercise: points, of how many, outcome, what was wrong."""
    rows = []
    for one in handed:
        for name, exercise in exercises().items():
            told, late = judged.get((one.student, name), MISSING), exercise.notebook in one.late
            share = (told["outcome"] == "solved") * (worth["late"] if late else 1)
            row = {"student": one.student, "notebook": exercise.notebook, "exercise": name}
            row |= {"points": worth[name] * share, "of": worth[name], "late": late}
            rows.append(row | told)
    return rows


def write(rows: list[dict], handed: Sequence[HandedIn], out: Path, enforced: str) -> Path:
    """Write marks.csv, totals.csv, marks.json and the pages; returns the instructor's."""
    table = pd.DataFrame(rows, columns=[*COLUMNS, "form"])
    by = table.pivot_table(values="points", index="student", columns="notebook", aggfunc="sum")
    totals = table.groupby("student")[["points", "of"]].sum().join(by).reset_index()
    _store(table[COLUMNS], out / "marks.csv")
    _store(totals, out / "totals.csv")
    notes = {one.student: _notes(one) for one in handed}
    told = {"marks": table[COLUMNS].to_dict("records"), "notes": notes, "enforced": enforced}
    store_text(as_json(told), out / "marks.json")
    pages = {}
    for position, (student, own) in enumerate(table.groupby("student")):
        safe = re.sub(r"[^\w-]", "_", student)[:40]
        pages[student] = f"students/{position:04d}_{safe}.html"
        save(out / pages[student], "marks.html.j2", _of(student, own, notes[student]))
    return save(out / "index.html", "marks.html.j2", _of_all(table, notes, pages, enforced))


def _store(table: pd.DataFrame, path: Path) -> None:
    """As CSV; a text that a spreadsheet would compute begins with an apostrophe."""
    safe = lambda text: re.sub(r"^(?=[=+\-@\t\r])", "'", text)  # noqa: E731
    texts = table.select_dtypes(exclude=["number", "bool"]).columns
    disarmed = table.assign(**{name: table[name].map(safe) for name in texts})
    content = disarmed.to_csv(index=False, float_format="%g", lineterminator="\n")
    store_text(content, path)


def _notes(one: HandedIn) -> list[str]:
    """What is odd, missing and late."""
    wanted = dict.fromkeys(exercise.notebook for exercise in exercises().values())
    missing = [f"{name} is missing" for name in wanted if name not in one.notebooks]
    return [*one.notes, *missing, *(f"{name} is late" for name in sorted(one.late))]


def _of(student: str, own: pd.DataFrame, notes: list[str]) -> dict[str, Any]:
    """What a student's page shows."""
    rows = [
        (f"{SIGNS[r.outcome]} {r.exercise}", f"{r.points:g} of {r.of:g}", r.said)
        for r in own.itertuples()
    ]
    return {
        "title": f"Marks of {student}",
        "facts": [f"{own.points.sum():g} of {own.of.sum():g} points", *notes],
        "tables": [("Exercises", ("exercise", "points", "what was said"), rows)],
        "links": {},
    }


def _of_all(
    table: pd.DataFrame, notes: dict[str, list[str]], pages: dict[str, str], enforced: str
) -> dict[str, Any]:
    """What the instructor's page shows: who is stuck where, and what is wrong most often."""
    each, tenths = [], Counter()
    for student, own in table.groupby("student"):
        points = own.points.sum()
        tenths[min(9, int(10 * points / (own.of.sum() or 1)))] += 1
        signs = own.outcome.map(SIGNS).groupby(own.notebook.str[:2]).sum()
        told = " ".join(f"{number} {one}" for number, one in signs.items())
        each.append((student, f"{points:g}", told, "; ".join(notes[student])))
    counted = []
    for name, own in table.groupby("exercise", sort=False):
        counts, wrong = Counter(own.outcome), own.said[own.outcome == "wrong"]
        said = "; ".join(f"{count} × {one}" for one, count in common(wrong))
        counted.append((name, *(counts[outcome] for outcome in SIGNS), said))
    bars = [(f"{10 * i} to {10 * i + 10} %", tenths[i], "█" * tenths[i]) for i in range(10)]
    signs = ", ".join(f"{sign} {outcome}" for outcome, sign in SIGNS.items())
    return {
        "title": "Marks",
        "facts": [f"{len(pages)} students; {signs}", enforced],
        "tables": [
            ("Students", ("student", "points", "exercises by notebook", "notes"), each),
            ("How many points", ("share", "students", ""), bars),
            ("Exercises", ("exercise", *SIGNS, "wrong most often"), counted),
            ("Similar answers, a hint and no more", ("exercise", "students", ""), similar(table)),
        ],
        "links": pages,
    }


def similar(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Answers that are the same but for names, texts and layout: exercise, students, is it ours?"""
    from cvlab.tools.grading.judge import form

    ours = {name: form(one.solution, name) for name, one in exercises().items()}
    shown = table[(table.form != "") & (table.outcome != "not attempted")]
    return [
        (name, ", ".join(own.student), "the folded solution" if ours[name] == kind else "")
        for (name, kind), own in shown.groupby(["exercise", "form"], sort=False)
        if len(own) > 1
    ]


def common(wrong: Sequence[str]) -> list[tuple[str, int]]:
    """What was said most often of wrong answers, numbers apart, and how often."""
    kinds: dict[str, list[str]] = {}
    for said in wrong:
        kinds.setdefault(re.sub(r"-?\d[\d.e+-]*", "#", said), []).append(said)
    most = sorted(kinds.values(), key=len, reverse=True)[:3]
    return [(alike[0], len(alike)) for alike in most if len(alike) > 1]
