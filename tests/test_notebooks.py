"""Every notebook: its anatomy, its smoke run, its records, and what nbval compares."""

import html
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from base64 import b64decode
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from pending import PENDING

from cvlab.profiles import profiles
from cvlab.records import STAND_IN_LABEL
from cvlab.tools import executed, runner

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
BANDS = tomllib.loads((ROOT / "tests" / "bands.toml").read_text(encoding="utf-8"))
REAL = os.environ.get("CVLAB_REAL")  # a folder of data to execute the notebooks on as well


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
    assert len(re.findall(r"^\w+\.explore\(", source, re.M)) == 1
    assert "plt.show" not in source
    assert "run.show(" in source


def test_it_is_published_executed_in_order_on_real_data(request, notebook):
    """Nbval passes a stripped notebook without comparing anything."""
    counts = [cell.execution_count for cell in code(notebook)]
    if request.node.callspec.id in PENDING:  # new cells have no count yet, gone ones left gaps
        counts = [count for count in counts if count]
        assert counts == sorted(counts)
    else:
        assert counts == list(range(1, len(counts) + 1))
    stored = executed.stored_in(notebook)
    assert stored
    assert all(r["holds"] for r in stored if "claim" in r)
    values = [r for r in stored if "name" in r]
    assert {r["profile"] for r in values} == {"class"}
    assert STAND_IN_LABEL not in {r["source"] for r in values}
    assert not any(o.output_type == "error" for c in code(notebook) for o in c.outputs)


def test_figures_are_those_of_the_notebook(request, notebook):
    """A figure of another run would contradict what the page beside it says."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    displayed = [o.data.get("image/png") for o in outputs if "data" in o]
    number = request.node.callspec.id[:2]
    for file in (ROOT / "figures").glob(f"{number}_*.png"):
        assert file.read_bytes() in map(b64decode, filter(None, displayed)), file.name


def test_its_file_is_clean(request, notebook):
    text = nbformat.writes(notebook).replace("/tmp/colab.txt", "")  # of Colab, in the first cell
    assert len(text) < 2_000_000
    assert not re.search(r"""["'\s(=]/(work|root|tmp|home)/""", text)  # a path of some machine
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    widgets = notebook.metadata.get("widgets", {})
    assert all("state" in content for content in widgets.values())  # else GitHub shows nothing


def shown(notebook):
    """The sources that a notebook unfolds: dotted name -> code."""
    found = {}
    for output in (o for cell in code(notebook) for o in cell.outputs if "data" in o):
        page = output.data.get("text/html", "")
        if name := re.match(r"<details><summary>(cvlab\.[\w.]+) \(\d+ lines\)", page):
            found[name[1]] = html.unescape(re.sub(r"<[^>]+>", "", page.split("</summary>")[1]))
    return found


def source(name):
    """The code of a dotted name, empty where it is no more."""
    module, _, rest = name.rpartition(".")
    try:
        return inspect.getsource(getattr(importlib.import_module(module), rest))
    except (ImportError, AttributeError):
        return ""


def test_it_shows_the_sources_of_today(request, notebook):
    """A reader must not be shown code that has never computed what stands below it."""
    today = all(text.strip() == source(name).strip() for name, text in shown(notebook).items())
    assert shown(notebook)
    assert today or request.node.callspec.id in PENDING


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


def published(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def concluded(notebook):
    """The tagged cell's text, which is what nbval compares."""
    (cell,) = tagged(notebook, "nbval-check-output")
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def out_of_band(name, stored):
    """Every number has a band, every band a number: neither can be forgotten."""
    bands, values = BANDS["smoke"][name], [record for record in stored if "name" in record]
    assert {record["name"] for record in values} == set(bands)
    ends = [(record, *bands[record["name"]]) for record in values]
    return [record for record, low, high in ends if not low <= record["value"] <= high]


@pytest.mark.timeout(0)  # however slow or busy the machine: what hangs is stopped cell by cell
@pytest.mark.parametrize("data", ["as found", *(["real"] if REAL else [])])
@pytest.mark.parametrize("name", sorted(NAMES[::-1], key=lambda name: name != "06_int8"))
def test_a_smoke_run_concludes_what_is_published(name, data, tmp_path, monkeypatch):
    """Executed once: all claims hold, in the same words in each profile, on any data.

    The longest comes first, so that it is not the last to end.
    """
    if data == "real":
        monkeypatch.setenv("CVLAB_DATA", REAL)
    (result,) = runner.execute(runner.Plan([name]), tmp_path)
    assert result.status == "passed", result.error
    assert result.held == len(result.claims) >= 3
    made = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
    said, before = (concluded(one).splitlines() for one in (made, published(name)))
    if name in PENDING:
        gone = {f"✓ {claim}" for claim in PENDING[name]}
        assert set(before) - gone <= set(said)
        assert gone <= set(before) - set(said)
    else:
        assert before == said
    assert concluded(made).count("✓") == len(result.claims)
    assert out_of_band(name, executed.stored_in(made)) == []


@pytest.mark.timeout(0)
def test_nbval_compares_what_is_tagged(tmp_path):
    """An instructor's `pytest --nbval-lax` passes what is published, and fails another text.

    Of one notebook: the others are executed above, and compared as nbval does it.
    """
    name = next(name for name in NAMES if name not in PENDING)
    notebook = published(name)
    (cell,) = tagged(notebook, "nbval-check-output")
    changed = deepcopy(cell)
    changed.id, changed.outputs[0].text = "changed", "✓ the first call takes long"
    notebook.cells.insert(notebook.cells.index(cell) + 1, changed)
    nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    environment = {**os.environ, "CVLAB_PROFILE": "smoke", "CVLAB_OUT": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax"]
    command += ["--rootdir", str(tmp_path), "-c", os.devnull, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert f"1 failed, {len(code(notebook)) - 1} passed" in done.stdout, done.stdout[-3000:]
    assert changed.outputs[0].text in done.stdout
