"""Shared small data. Tests never look at the machine's own data: each names where it looks."""

import os
import subprocess
from copy import deepcopy
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported
if "PYTEST_XDIST_WORKER" in os.environ:  # tests side by side: threads would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"

import nbformat
import numpy as np
import pytest
import torch
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_notebook

from cvlab import data as cvdata
from cvlab.models import SmallCNN
from cvlab.records import MIME
from cvlab.train import Training, fit

ROOT = Path(__file__).parent.parent
NEED_POSIX = ["test_grad*.py", "test_cluster.py"]  # they fork, limit and signal processes
collect_ignore_glob = NEED_POSIX if os.name == "nt" else []
PROFILES = """
[10_good.smoke]
n = 1
[10_good.limits]
n = [1, 9]
[11_bad.limits]
n = [1, 9]
[12_last.limits]
only_last = [1, 9]
"""
# as cvlab.records.store leaves it; importing that takes a kernel seconds
CLAIM = "display({'%s': {'claim': 'c', 'holds': True}}, raw=True)"
LOG = "import os; open(os.environ['RAN'], 'a').write('%s')"


def pytest_collection_modifyitems(items):
    """The longest first, half of them for each of two processes, which get a half of the list.

    Else one has them all, and the other nothing to do at the end. Who shares a network is in one
    half, or one process would wait while the other trains.
    """
    long = [item for item in items if item.name.startswith("test_a_smoke_run")]
    others = [item for item in items if item not in long]
    others.sort(key=lambda item: "taught" not in getattr(item, "fixturenames", ()))
    half = len(others) // 2
    items[:] = long[::2] + others[:half] + long[1::2] + others[half:]


@pytest.fixture(scope="session")
def taught(tmp_path_factory):
    """A small CNN after four passes over the stand-in; trained once for all processes."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    torch.manual_seed(0)
    model, file = SmallCNN(10), shared / "taught.pt"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            training = Training(epochs=4, lr=0.03, schedule="one-cycle", batch_size=64)
            fit(model, cvdata.load("cifar10", "synthetic", n_val=100), training, what=None)
            torch.save(model.state_dict(), file)
    model.load_state_dict(torch.load(file))
    return model.eval()


@pytest.fixture(scope="session", autouse=True)
def drawn_once():
    """The stand-in takes seconds to draw, and each test gets a copy. Gives the function itself."""
    draw = cvdata.stand_in
    kept = cache(draw)

    def copied(name, classes=None):
        return deepcopy(kept(name, classes and tuple(classes)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cvdata, "stand_in", copied)
        yield draw


@pytest.fixture(autouse=True)
def no_data_from_outside(monkeypatch, request):
    """Unit tests must pass alike with and without CVLAB_DATA; notebook tests want it."""
    if request.node.path.name != "test_notebooks.py":
        for name in ("CVLAB_DATA", "CVLAB_PROFILE", "CVLAB_OUT"):
            monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def threads_as_before():
    """Engines set PyTorch's threads for good; a test must not slow or change those after it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tracked():
    """Every file that is in git, or new and not ignored; paths as GitHub writes them."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others"]
    command += ["--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in listed.split("\0") if path and (ROOT / path).is_file()]


@pytest.fixture(scope="session")
def drawn():
    """A small stand-in for CIFAR-10: 500 / 200 / 200 images."""
    return cvdata.load("cifar10", "synthetic", n_train=500, n_val=200, n_test=200)


@pytest.fixture
def tiny_images():
    """A function (n, classes) -> (uint8 [n, 32, 32, 3], labels): noise, each image different."""

    def make(n: int, classes: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        return images, np.arange(n) % classes

    return make


@pytest.fixture
def workbook(tmp_path, monkeypatch):
    """A project of three notebooks; the middle one fails. Returns (root, log of cells run)."""

    def write(name, *cells, parameters="PROFILE = None\nDATA = 'auto'\nSEED = 0\nN = None"):
        tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
        notebook = new_notebook(cells=[tagged, *map(new_code_cell, cells)])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
        notebook.metadata.language_info = {"name": "python"}
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")

    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "profiles.toml").write_text(PROFILES)
    write("10_good", LOG % "good ", "print(N)", CLAIM % MIME)
    write("11_bad", LOG % "bad ", "1 / 0")
    write("12_last", LOG % "last ", parameters="PROFILE = None\nSEED = 0\nONLY_LAST = 1")
    monkeypatch.setattr("cvlab.paths.PACKAGE", tmp_path / "cvlab")
    monkeypatch.setenv("RAN", str(tmp_path / "log"))
    (tmp_path / "log").write_text("")
    return tmp_path, tmp_path / "log"
