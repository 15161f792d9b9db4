"""Marks from what was judged: tables for a learning platform, a page for each student and one for
the instructor. Texts of students are data: the templates escape them, the tables disarm formulas.
"""

import csv
import io
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cvlab.paths import as_json, store_text
from cvlab.records import OUTCOMES
from cvlab.tools.grading.collect import GradeError, HandedIn, exercises
from cvlab.tools.report import save

WEIGHTS = {"points": {"●○○": 1, "●●○": 2, "●●●": 3}, "exercise": {}, "late": 1.0}
MISSING = "its notebook, or its cell, was not handed in"
SIGNS = {**OUTCOMES, "missing": "–"}


def weights(file: Path | None) -> dict[str, float]:
    """Points of each exercise and, as "late", the share that a late one keeps, from a TOML file.

    Raises:
        GradeError: the file names what is not there, or is no TOML.
    """
    try:
        given = tomllib.loads(file.read_text(encoding="utf-8")) if file else {}
        points = WEIGHTS["points"] | given.get("points", {})
        own = given.get("exercise", {})
        unknown = ({*given} - {*WEIGHTS}) | ({*points} - {*WEIGHTS["points"]})
        unknown |= {*own} - {*exercises()}
        found = {n: float(own.get(n, points.get(one.level, 1))) for n, one in exercises().items()}
        found["late"] = float(given.get("late", WEIGHTS["late"]))
    except (tomllib.TOMLDecodeError, TypeError, ValueError) as error:
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
            nothing = {"outcome": "missing", "said": MISSING, "form": ""}
            told = judged.get((one.student, name), nothing)
            late = exercise.notebook in one.late
            share = (told["outcome"] == "solved") * (worth["late"] if late else 1)
            row = {"student": one.student, "notebook": exercise.notebook, "exercise": name}
            row |= {"points": worth[name] * share, "of": worth[name], "late": late}
            rows.append(row | told)
    return rows


def write(rows: list[dict], handed: Sequence[HandedIn], out: Path, enforced: str) -> Path:
    """Write marks.csv, totals.csv, marks.json and the pages; returns the instructor's."""
    students = [_student(one, [r for r in rows if r["student"] == one.student]) for one in handed]
    columns = ["student", "notebook", "exercise", "points", "of", "outcome", "late", "said"]
    store_text(_csv(columns, rows), out / "marks.csv")
    notebooks = list(dict.fromkeys(row["notebook"] for row in rows))
    totals = [
        {"student": s["student"], "points": s["points"], "of": s["of"]} | s["by"] for s in students
    ]
    store_text(_csv(["student", "points", "of", *notebooks], totals), out / "totals.csv")
    kept = [{key: row[key] for key in columns} for row in rows]
    notes = {one.student: one.notes for one in handed if one.notes}
    store_text(as_json({"marks": kept, "notes": notes, "enforced": enforced}), out / "marks.json")
    for position, student in enumerate(students):
        safe = re.sub(r"[^\w-]", "_", student["student"])[:40]
        student["page"] = f"students/{position:04d}_{safe}.html"
        save(out / student["page"], "marks.html.j2", _of(student))
    return save(out / "index.html", "marks.html.j2", _of_all(rows, students, enforced))


def _student(handed: HandedIn, rows: list[dict]) -> dict[str, Any]:
    by: dict[str, float] = defaultdict(float)
    for row in rows:
        by[row["notebook"]] += row["points"]
    missing = [name for name in by if name not in handed.notebooks]
    notes = [*handed.notes, *(f"{name} is missing" for name in missing)]
    notes += [f"{name} is late" for name in sorted(handed.late)]
    points, of = (sum(row[key] for row in rows) for key in ("points", "of"))
    told = {"student": handed.student, "points": points, "of": of, "by": dict(by)}
    return told | {"rows": rows, "notes": notes}


def _of(student: dict[str, Any]) -> dict[str, Any]:
    """What a student's page shows."""
    rows = [
        (f"{SIGNS[r['outcome']]} {r['exercise']}", f"{r['points']:g} of {r['of']:g}", r["said"])
        for r in student["rows"]
    ]
    facts = [f"{student['points']:g} of {student['of']:g} points", *student["notes"]]
    tables = [("Exercises", ("exercise", "points", "what was said"), rows)]
    return {
        "title": f"Marks of {student['student']}",
        "facts": facts,
        "tables": tables,
        "links": {},
    }


def _of_all(rows: list[dict], students: list[dict], enforced: str) -> dict[str, Any]:
    """What the instructor's page shows: who is stuck where, and what is wrong most often."""
    counted = []
    for name in exercises():
        counts = Counter(row["outcome"] for row in rows if row["exercise"] == name)
        wrong = "; ".join(f"{count} × {said}" for said, count in common(rows, name))
        counted.append((name, *(counts[outcome] for outcome in SIGNS), wrong))
    tenths = Counter(min(9, int(10 * s["points"] / (s["of"] or 1))) for s in students)
    bars = [(f"{10 * i} to {10 * i + 10} %", tenths[i], "█" * tenths[i]) for i in range(10)]
    each = []
    for one in students:
        stuck = {r["notebook"][:2]: "" for r in one["rows"]}
        for row in one["rows"]:
            stuck[row["notebook"][:2]] += SIGNS[row["outcome"]]
        told = " ".join(f"{number} {signs}" for number, signs in stuck.items())
        line = (one["student"], f"{one['points']:g}", told, "; ".join(one["notes"]))
        each.append(line)
    alike = [
        (name, ", ".join(who), "the folded solution" if ours else "")
        for name, who, ours in similar(rows)
    ]
    tables = [
        ("Students", ("student", "points", "exercises by notebook", "notes"), each),
        ("How many points", ("share", "students", ""), bars),
        ("Exercises", ("exercise", *SIGNS, "wrong most often"), counted),
        ("Similar answers, a hint and no more", ("exercise", "students", "like"), alike),
    ]
    signs = ", ".join(f"{sign} {outcome}" for outcome, sign in SIGNS.items())
    facts = [f"{len(students)} students; {signs}", enforced]
    links = {one["student"]: one["page"] for one in students}
    return {"title": "Marks", "facts": facts, "tables": tables, "links": links}


def similar(rows: Sequence[dict]) -> list[tuple[str, list[str], bool]]:
    """Answers that are the same but for names, texts and layout: exercise, students, is it ours?"""
    from cvlab.tools.grading.judge import form

    found = defaultdict(list)
    for row in rows:
        if row["form"] and row["outcome"] != "not attempted":
            found[row["exercise"], row["form"]].append(row["student"])
    ours = {name: form(one.solution, name) for name, one in exercises().items()}
    return [(n, who, ours[n] == one) for (n, one), who in found.items() if len(who) > 1]


def common(rows: Sequence[dict], name: str) -> list[tuple[str, int]]:
    """What was said most often of the wrong answers to an exercise, numbers apart."""
    wrong = [r["said"] for r in rows if r["exercise"] == name and r["outcome"] == "wrong"]
    kinds = Counter(re.sub(r"-?\d[\d.e+-]*", "#", said) for said in wrong)
    first = {re.sub(r"-?\d[\d.e+-]*", "#", said): said for said in reversed(wrong)}
    return [(first[kind], count) for kind, count in kinds.most_common(3) if count > 1]


def _csv(columns: list[str], rows: Sequence[Mapping]) -> str:
    """A table; a text that a spreadsheet would compute begins with an apostrophe."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in (row[c] for c in columns)]
        writer.writerow(["'" + text if text[:1] in "=+-@\t\r" else text for text in texts])
    return stream.getvalue()
