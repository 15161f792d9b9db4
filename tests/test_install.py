"""The install files: Colab's own packages are kept, exact and ranged versions agree."""

import ast
import re
import shlex
import tomllib
from pathlib import Path

import colab
import nbformat
import pytest
from packaging.requirements import Requirement

from cvlab.tools.address import CELL

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RANGES = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}
EXTRAS = {
    extra: {r.name: r for r in map(Requirement, wanted)}
    for extra, wanted in PROJECT["optional-dependencies"].items()
}
PINNED = RANGES | EXTRAS["tools"]
COLAB = tomllib.loads((ROOT / "tests" / "colab_versions.toml").read_text(encoding="utf-8"))
LINES = [
    line.split("#")[0].strip()
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
]
LINES = [line for line in LINES if line]
PINS = dict(line.split("==") for line in LINES if "==" in line)


THERE = colab.pins()


@pytest.mark.parametrize("name", sorted(RANGES.keys() & THERE.keys()))
def test_colabs_own_version_is_in_our_range(name):
    """Else pip would replace it there, and with torch break the whole runtime."""
    assert RANGES[name].specifier.contains(THERE[name])


def test_the_recorded_packages_are_ones_we_depend_on():
    assert set(COLAB["present"]) <= set(RANGES)
    assert COLAB["present"].items() <= THERE.items()


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_the_bootstrap_cell_may_only_add_to_what_colab_has(path):
    """What is there constrains pip, and no flag replaces; `make colab` proves that it works."""
    cells = nbformat.read(path, as_version=4).cells
    source = next(cell.source for cell in cells if cell.cell_type == "code")
    listing, install = (line.strip() for line in source.splitlines() if "%pip" in line)
    assert listing == "%pip list --format=freeze > /tmp/colab.txt"
    *words, wanted = shlex.split(install)
    assert words == ["%pip", "install", "-q", "-c", "/tmp/colab.txt"]
    assert CELL.fullmatch(wanted)


def test_make_colab_installs_from_the_checkout_in_place_of_github():
    line = '%pip install -q "cvlab @ git+https://github.com/a/b"'
    expected = f'%pip install -q "cvlab @ git+file://{ROOT}"'
    assert colab.from_checkout(line) == expected
    with pytest.raises(colab.Failed, match="2 bootstrap lines"):
        colab.from_checkout(line + line)


@pytest.mark.parametrize(
    ("wanted", "available", "expected"),
    [
        ("2.11.0", ["2.9.1", "2.11.0", "2.12.0"], "2.11.0"),
        ("2.11.0", ["2.12.0", "2.9.1", "2.10.0"], "2.10.0"),  # as numbers, not as text
        ("1.0", ["1.2", "1.1"], "1.1"),
    ],
)
def test_make_colab_takes_the_nearest_version(wanted, available, expected):
    assert colab.nearest(wanted, available) == expected


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ({}, []),
        ({"c": ["1", [["c.py", [1, 1]]]]}, []),  # added, which is what the cell is for
        ({"a": ["2", [["a.py", [1, 1]]]]}, ["a 1 became 2"]),
        ({"a": ["1", [["a.py", [1, 2]]]]}, ["a 1: 1 files differ, as a.py"]),
        ({"a": ["1", []]}, ["a 1: 1 files differ, as a.py"]),
        ({"a": None}, ["a 1 became removed"]),
    ],
)
def test_make_colab_sees_what_was_replaced(after, expected):
    before = {name: ["1", [[f"{name}.py", [1, 1]]]] for name in "ab"}
    both = {name: value for name, value in (before | after).items() if value}
    assert colab.changes(before, both) == expected


@pytest.mark.parametrize("name", PINNED)
def test_pins_are_exact_and_inside_the_ranges(name):
    assert name in PINS, f"{name} has a range in pyproject.toml but no version in requirements.txt"
    assert PINNED[name].specifier.contains(PINS[name])


def test_what_checks_with_is_exact():
    """A linter of another version would ask for other things."""
    assert all(str(r.specifier).startswith("==") for r in EXTRAS["dev"].values())


def test_a_notebook_needs_no_tool():
    """What a student installs is what a student uses: the base alone serves every notebook."""
    tools = {name.replace("-", "_") for name in EXTRAS["tools"] | EXTRAS["dev"]}
    kit = [path for path in (ROOT / "cvlab").rglob("*.py") if "tools" not in path.parts]
    for path in kit:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for node in (node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)):
            names = [getattr(node, "module", None) or node.names[0].name]
            assert not {name.split(".")[0] for name in names} & tools, path


def test_requirements_end_by_installing_the_package_itself():
    assert LINES[-1] == "-e .[tools]"
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in LINES[:-1])
