"""Every notebook: its anatomy, its smoke run, its records, and what nbval compares."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

from cvlab import records
from cvlab.profiles import profiles
from cvlab.records import STAND_IN_LABEL
from cvlab.tools import runner

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
BANDS = tomllib.loads((ROOT / "tests" / "bands.toml").read_text())


@pytest.fixture(params=NOTEBOOKS, ids=NAMES)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# --- anatomy -------------------------------------------------------------------------------------


def test_title_badge_and_bootstrap_come_first(notebook):
    title = notebook.cells[0].source
    assert "colab-badge.svg" in title
    assert re.search(r"^# \d\d · ", title, re.M)
    assert "google.colab" in notebook.cells[1].source


def test_the_parameters_cell_has_the_three_common_parameters(notebook):
    (cell,) = tagged(notebook, "parameters")
    names = re.findall(r"^(\w+) = ", cell.source, re.M)
    assert names[:3] == ["PROFILE", "DATA", "SEED"]
    assert "PROFILE = None" in cell.source


def test_every_own_parameter_has_limits(request, notebook):
    """Else the runner could not check it before the run."""
    (cell,) = tagged(notebook, "parameters")
    own = re.findall(r"^(\w+) = ", cell.source, re.M)[3:]
    name = notebook.cells[0].source.split("# ")[1][:2]
    (limits,) = [p.get("limits", {}) for n, p in profiles().items() if n.startswith(name)]
    assert sorted(map(str.lower, own)) == sorted(limits)


def test_cells_are_thin(notebook):
    for cell in code(notebook):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 15, cell.source
        assert not re.search(r"^\s*class ", cell.source, re.M)
    short = [cell for cell in code(notebook) if len(cell.source.splitlines()) <= 8]
    assert len(short) > len(code(notebook)) / 2


def test_it_ends_with_claims_that_nothing_disturbs(notebook):
    cells = tagged(notebook, "nbval-check-output")
    assert len(cells) == 1, "nbval compares tagged cells only: without one it compares nothing"
    lines = cells[0].source.strip().splitlines()
    assert sum(line.startswith("run.claim(") for line in lines) >= 3
    assert all(line.startswith(("run.claim(", "    ", ")")) for line in lines)
    assert "run.finish()" in notebook.cells[notebook.cells.index(cells[0]) + 1].source


def test_it_has_one_widget_and_shows_every_figure_through_the_run(notebook):
    source = "\n".join(cell.source for cell in code(notebook))
    assert len(re.findall(r"^widgets\.\w+\(", source, re.M)) == 1
    assert "plt.show" not in source
    assert "run.show(" in source


def test_it_is_published_executed_in_order_on_real_data(notebook):
    """Nbval passes a stripped notebook without comparing anything."""
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    stored = records.stored_in(notebook)
    assert stored
    assert all(r["holds"] for r in stored if "claim" in r)
    values = [r for r in stored if "name" in r]
    assert {r["profile"] for r in values} == {"class"}
    assert STAND_IN_LABEL not in {r["source"] for r in values}
    assert not any(o.output_type == "error" for c in code(notebook) for o in c.outputs)


def test_its_file_is_clean(request, notebook):
    text = nbformat.writes(notebook).replace("/tmp/colab.txt", "")  # of Colab, in the first cell
    assert len(text) < 2_000_000
    assert not re.search(r"""["'\s(=]/(work|root|tmp|home)/""", text)  # a path of some machine
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    widgets = notebook.metadata.get("widgets", {})
    assert all("state" in content for content in widgets.values())  # else GitHub shows nothing


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_github_and_colab_can_show_it(path):
    """As it lies on disk: reading would add what is missing, and only warn of what is wrong."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(stored)
    assert (stored["nbformat"], stored["nbformat_minor"]) == (4, 5)
    assert set(stored["metadata"]) <= {"kernelspec", "language_info", "widgets"}
    assert stored["metadata"]["kernelspec"]["name"] == "python3"
    for cell in stored["cells"]:  # no times of papermill, no settings of Colab
        assert set(cell["metadata"]) <= {"tags"}, cell["id"]


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """All notebooks executed once in the smoke profile: (results, folder)."""
    out = tmp_path_factory.mktemp("smoke")
    return {r.notebook: r for r in runner.execute(runner.Plan(NAMES), out)}, out


@pytest.mark.parametrize("name", NAMES)
def test_smoke_run_passes_with_all_claims(smoke, name):
    result = smoke[0][name]
    assert result.status == "passed", result.error
    assert result.claims_held == result.claims >= 3


@pytest.mark.parametrize("name", NAMES)
def test_smoke_claims_what_the_published_notebook_claims(smoke, name):
    """In the same words and order: a conclusion must not depend on profile or data."""
    published = records.stored_in(nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4))
    executed = records.stored_in(nbformat.read(smoke[1] / f"{name}.ipynb", as_version=4))
    claims = [[r["claim"] for r in each if "claim" in r] for each in (published, executed)]
    assert claims[0] == claims[1]


@pytest.mark.parametrize("name", NAMES)
def test_smoke_records_lie_in_their_bands(smoke, name):
    """Every number has a band, every band a number: neither can be forgotten."""
    stored = records.stored_in(nbformat.read(smoke[1] / f"{name}.ipynb", as_version=4))
    values = [record for record in stored if "name" in record]
    bands = BANDS["smoke"][name]
    assert {record["name"] for record in values} == set(bands)
    for record in values:
        low, high = bands[record["name"]]
        assert low <= record["value"] <= high, record


def test_nbval_finds_what_the_notebooks_say_unchanged(tmp_path):
    """The tagged cells' text is the same in class on real data and in smoke on any."""
    environment = {**os.environ, "CVLAB_PROFILE": "smoke", "CVLAB_OUT": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax"]
    command += ["--rootdir", str(tmp_path), "-c", os.devnull, *map(str, NOTEBOOKS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    cells = sum(len(code(nbformat.read(path, as_version=4))) for path in NOTEBOOKS)
    assert f"{cells} passed" in done.stdout
