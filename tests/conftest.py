"""Shared small data. Tests never look at the machine's own data: each names where it looks."""

import numpy as np
import pytest
import torch

from cvlab import data as cvdata


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
