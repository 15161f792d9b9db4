"""The install files: Colab's own packages are kept, exact and ranged versions agree."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RANGES = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}
DEV = {r.name: r for r in map(Requirement, PROJECT["optional-dependencies"]["dev"])}
COLAB = tomllib.loads((ROOT / "tests" / "colab_versions.toml").read_text())
LINES = [
    line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()
]
LINES = [line for line in LINES if line]
PINS = dict(line.split("==") for line in LINES if "==" in line)


@pytest.mark.parametrize("name", COLAB["present"])
def test_colabs_own_version_is_in_our_range(name):
    """Else pip would replace it there, and with torch break the whole runtime."""
    if name in RANGES:
        assert RANGES[name].specifier.contains(COLAB["present"][name])


def test_the_recorded_packages_are_ones_we_depend_on():
    assert set(COLAB["present"]) <= set(RANGES)


@pytest.mark.parametrize("name", RANGES | DEV)
def test_pins_are_exact_and_inside_the_ranges(name):
    assert name in PINS, f"{name} has a range in pyproject.toml but no version in requirements.txt"
    assert (RANGES | DEV)[name].specifier.contains(PINS[name])


def test_requirements_end_by_installing_the_package_itself():
    assert LINES[-1] == "-e ."
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in LINES[:-1])
