"""Our exercises for other graders: `python -m cvlab nbgrader FOLDER`, or `otter FOLDER`.

Each notebook of ours that has exercises becomes a short one with the solutions in it, which
`nbgrader generate_assignment` or `otter assign` takes out again.
"""

import re
from pathlib import Path
from textwrap import indent

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_raw_cell

from cvlab.paths import store_text
from cvlab.tools.grading.collect import Exercise, exercises
from cvlab.tools.grading.marks import weights

SETUP = """import numpy as np
import pandas as pd
import torch

import cvlab

run = cvlab.start("{}", "smoke", "synthetic")"""
TEST = """outcome, said = judge({}, seed={})
assert outcome == "solved", said"""
JUDGE = "from cvlab.exercises.judge import judge\n"
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def write(folder: Path, form: str, seed: int) -> list[Path]:
    """The notebooks for "nbgrader" or "otter"; points are those of the exercise's difficulty.

    Args:
        seed: of the inputs of the hidden tests; those of a notebook are 0.
    """
    made, points = {}, weights(None)
    for name, one in exercises().items():
        if one.notebook not in made:
            config = f"# ASSIGNMENT CONFIG\nname: {one.notebook}\ngenerate: true"
            made[one.notebook] = [new_raw_cell(config)] if form == "otter" else []
            made[one.notebook].append(new_code_cell(SETUP.format(one.notebook)))
        cells = _nbgrader if form == "nbgrader" else _otter
        text = new_markdown_cell(one.text.split("<details><summary>Solution")[0])
        tests = TEST.format(name, 0), TEST.format(name, seed)
        made[one.notebook] += cells(name, points[name], text, _solved(name, one), *tests)
    for name, cells in made.items():
        content = nbformat.writes(new_notebook(cells=cells, metadata=KERNEL))
        made[name] = store_text(content, folder / f"{name}.ipynb")
    return list(made.values())


def _nbgrader(
    name: str, points: float, text: NotebookNode, solved: str, shown: str, hidden: str
) -> list[NotebookNode]:
    marked = re.sub("# (BEGIN|END)", r"### \1", solved)
    test = f"{JUDGE}\n{shown}\n### BEGIN HIDDEN TESTS\n{hidden}\n### END HIDDEN TESTS"
    about = dict.fromkeys(("solution", "grade", "locked", "task"), False) | {"schema_version": 3}
    own = about | {"grade_id": name, "solution": True}
    tested = {"grade_id": f"test-{name}", "grade": True, "locked": True, "points": points}
    cells = [new_code_cell(marked, metadata={"nbgrader": own})]
    return [text, *cells, new_code_cell(test, metadata={"nbgrader": about | tested})]


def _otter(
    name: str, points: float, text: NotebookNode, solved: str, shown: str, hidden: str
) -> list[NotebookNode]:
    tests = [JUDGE + shown, f"# HIDDEN\n{JUDGE}{hidden}"]
    return [
        *(new_raw_cell(f"# BEGIN QUESTION\nname: {name}\npoints: {points:g}"), text),
        *(new_raw_cell("# BEGIN SOLUTION"), new_code_cell(solved), new_raw_cell("# END SOLUTION")),
        *(new_raw_cell("# BEGIN TESTS"), *map(new_code_cell, tests), new_raw_cell("# END TESTS")),
        new_raw_cell("# END QUESTION"),
    ]


def _solved(name: str, one: Exercise) -> str:
    """The stub with the folded solution between marks, and `run.check` after it."""
    before, body = re.split(rf"^def {name}\(.*\n", one.solution, maxsplit=1, flags=re.M)
    solution = indent(before.strip() + "\n", "    ") * bool(before.strip()) + body.rstrip()
    marked = f"    # BEGIN SOLUTION\n{solution}\n    # END SOLUTION\n"
    return f"{one.stub.split('    ...')[0]}{marked}\n\nrun.check({name})"
