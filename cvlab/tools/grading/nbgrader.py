"""Our exercises for nbgrader: `python -m cvlab nbgrader SOURCE_DIR` writes one assignment."""

import ast
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from cvlab.paths import store_text
from cvlab.tools.grading.collect import Exercise, exercises
from cvlab.tools.grading.marks import weights

SETUP = """import numpy as np
import pandas as pd
import torch

import cvlab

run = cvlab.start("{}", "smoke", "synthetic")"""
TEST = """from cvlab.exercises.judge import judge

outcome, said = judge({name})
assert outcome == "solved", said
### BEGIN HIDDEN TESTS
outcome, said = judge({name}, seed={seed})
assert outcome == "solved", said
### END HIDDEN TESTS"""


def write(folder: Path, seed: int) -> list[Path]:
    """A notebook of exercises for each of ours that has some, in nbgrader's source form.

    `nbgrader generate_assignment` takes the solutions and the hidden tests out; points are those
    of the exercise's difficulty. `seed` is that of the inputs of the hidden tests.
    """
    made = {}
    for one in exercises().values():
        made.setdefault(one.notebook, [new_code_cell(SETUP.format(one.notebook))])
        text = one.text.split("<details><summary>Solution")[0]
        cells = [new_markdown_cell(text), new_code_cell(_solved(one)), new_code_cell("")]
        cells[1].metadata["nbgrader"] = _about(one.name, solution=True)
        cells[2].source = TEST.format(name=one.name, seed=seed)
        points = weights(None)[one.name]
        cells[2].metadata["nbgrader"] = _about(f"test-{one.name}", grade=True, points=points)
        made[one.notebook] += cells
    paths = []
    for name, cells in made.items():
        paths.append(
            store_text(nbformat.writes(new_notebook(cells=cells)), folder / f"{name}.ipynb")
        )
    return paths


def _about(which: str, solution: bool = False, grade: bool = False, **more) -> dict:
    told = {"grade_id": which, "solution": solution, "grade": grade, "locked": grade}
    return told | {"task": False, "schema_version": 3} | more


def _solved(one: Exercise) -> str:
    """The stub with the folded solution between nbgrader's marks, and `run.check` after it."""
    stub, found = ast.parse(one.stub), ast.parse(one.solution)
    lines = one.stub.splitlines()
    (function,) = (n for n in stub.body if getattr(n, "name", "") == one.name)
    (ours,) = (n for n in found.body if getattr(n, "name", "") == one.name)
    head = lines[function.lineno - 1 : function.body[0].end_lineno]
    body = one.solution.splitlines()[ours.lineno : ours.end_lineno]
    before = one.solution.splitlines()[: ours.lineno - 1]
    marks = ["    ### BEGIN SOLUTION", *(f"    {line}" for line in before if line.strip())]
    after = [
        "    ### END SOLUTION",
        "",
        "",
        f"run.check({one.name})",
    ]  # without what `run.use` needs
    return "\n".join([*head, *marks, *body, *after])
