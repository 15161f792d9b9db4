"""The package's four wings: imports go one way, so that a change is met where it is looked for."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LESSONS = ["environment", "optimizers", "pooling", "pretrained", "search", "engines", "int8"]
LESSONS += ["capstone", "smaller", "fast"]  # in the notebooks' order
MODULES = [p.relative_to(ROOT) for p in sorted((ROOT / "cvlab").rglob("*.py"))]
CALLED = {  # reached when they are called: by `Run.check`, and for a file of a network of the zoo
    ("cvlab.run", "cvlab.exercises.judge"),
    ("cvlab.store", "cvlab.lessons.pretrained.zoo"),
}


def height(name: str) -> tuple[int, int]:
    """How high a name lies: kit, exercises, lessons in their order, tools, the command line."""
    wing, room = [*name.split("."), "", ""][1:3]
    if wing == "lessons" and room:
        return 2, LESSONS.index(room)
    return {"exercises": 1, "lessons": 2, "tools": 3, "__main__": 4}.get(wing, 0), 0


def imported(path: Path) -> list[str]:
    """What a file imports from this package, anywhere in it: modules, or names in them."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    found = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            found += [f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names]
    assert not [name for name in found if name.startswith(".")], "write imports in full"
    return [name for name in found if name.split(".")[0] == "cvlab"]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_texts_are_utf8_on_every_system(path):
    """Windows takes a file for cp1252 where nothing is said."""
    nodes = ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Attribute)]
    texts = [call for call in named if call.func.attr in ("read_text", "write_text")]
    assert all("encoding" in {k.arg for k in call.keywords} for call in texts)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_down(path):
    """Kit < exercises; kit < lessons in their order < tools; no lesson uses an exercise."""
    module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    for name in imported(ROOT / path):
        here, there = height(module), height(name)
        lesson_uses_exercise = (here[0], there[0]) == (2, 1)
        down = there <= here and not lesson_uses_exercise
        assert down or (module, name) in CALLED, f"{module} imports {name}"


def test_the_kit_stays_small():
    """What a student meets first: whatever one lesson alone uses belongs into its room."""
    kit = [ROOT / path for path in MODULES if len(path.parts) == 2]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in kit)
    assert len(kit) <= 20
    assert lines <= 3600
