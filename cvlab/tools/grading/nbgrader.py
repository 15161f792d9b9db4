"""Our exercises for nbgrader: `python -m cvlab nbgrader SOURCE_DIR` writes one assignment."""

import re
from pathlib import Path
from textwrap import indent

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
    made, points = {}, weights(None)
    for name, one in exercises().items():
        cells = made.setdefault(one.notebook, [new_code_cell(SETUP.format(one.notebook))])
        test, more = TEST.format(name=name, seed=seed), {"grade": True, "points": points[name]}
        cells += [
            new_markdown_cell(one.text.split("<details><summary>Solution")[0]),
            new_code_cell(_solved(name, one), metadata=_about(name, solution=True)),
            new_code_cell(test, metadata=_about(f"test-{name}", locked=True, **more)),
        ]
    return [
        store_text(nbformat.writes(new_notebook(cells=cells)), folder / f"{name}.ipynb")
        for name, cells in made.items()
    ]


def _about(which: str, **more) -> dict:
    told = dict.fromkeys(("solution", "grade", "locked", "task"), False)
    return {"nbgrader": told | {"grade_id": which, "schema_version": 3} | more}


def _solved(name: str, one: Exercise) -> str:
    """The stub with the folded solution between nbgrader's marks, and `run.check` after it."""
    before, body = re.split(rf"^def {name}\(.*\n", one.solution, maxsplit=1, flags=re.M)
    solution = indent(before.strip() + "\n", "    ") * bool(before.strip()) + body.rstrip()
    marked = f"    ### BEGIN SOLUTION\n{solution}\n    ### END SOLUTION\n"
    return f"{one.stub.split('    ...')[0]}{marked}\n\nrun.check({name})"
