"""The package's four wings: imports go one way, so that a change is met where it is looked for."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cvlab"
ROOMS = ["environment", "optimizers", "pooling", "pretrained", "search", "engines", "int8"]
ROOMS += ["capstone"]  # in the notebooks' order
MODULES = {  # dotted name -> file
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
}


def height(module: str) -> tuple[int, int]:
    """How high a module lies: kit, exercises, lessons in their order, tools, the command line."""
    _, *inside = module.split(".")
    if inside and inside[0] == "lessons":
        return 2, ROOMS.index(inside[1]) if len(inside) > 1 else 0
    wings = {"exercises": 1, "tools": 3, "__main__": 4}
    return wings.get(inside[0] if inside else "", 0), 0


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module):
    """Kit < exercises, lessons < tools; a lesson uses earlier lessons, and no exercise a lesson."""
    for other in imported(MODULES[module]):
        if (module, other) == ("cvlab.run", "cvlab.exercises.judge"):
            continue  # `Run.check` reaches the exercises when it is called
        assert height(other) <= height(module), f"{module} imports {other}"
        lesson_in_exercise = module.startswith("cvlab.exercises") and "lessons" in other
        assert not lesson_in_exercise, f"{module} imports {other}"
