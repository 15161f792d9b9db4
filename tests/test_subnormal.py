"""Subnormal numbers: all of them are counted, and made on purpose where they were none."""

import numpy as np
import pytest
import torch
from torch import nn

from cvlab import export, runtime
from cvlab.lessons.engines import subnormal


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    layers = (nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), norm, nn.ReLU(), nn.Flatten())
    nn.init.uniform_(norm.running_mean), nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
    return nn.Sequential(*layers, nn.Linear(900, 10))


@pytest.fixture(scope="module")
def file(net, tmp_path_factory):
    return export.to_onnx(net, tmp_path_factory.mktemp("subnormal") / "net.onnx")


IMAGES = np.random.default_rng(0).standard_normal((8, 3, 32, 32), dtype=np.float32)


def test_subnormal_numbers_are_counted(net, file):
    """Zero and normal numbers are none of them, a negative one is."""
    tensors = [torch.tensor([0, 1, 2e-38, 1e-39, -1e-40]), torch.ones(3, dtype=torch.int64)]
    assert subnormal._count(tensors) == (5, 2)
    found = subnormal.census(net, file, IMAGES)
    assert not found["subnormal"].any()
    assert found.loc["weights, ONNX file", "numbers"] == 112 + 9_010  # the normalisation is folded
    net[2].running_var[0] *= 1e-39
    assert subnormal.census(net, file, IMAGES)["subnormal"].tolist()[:3] == [0, 1, 0]
    net[2].running_var[0] *= 1e39
    assert not any(module._forward_hooks for module in net.modules())


def test_a_shrunken_network_computes_with_subnormal_numbers(file, tmp_path):
    """And gives the same answers, so nobody would look for them."""
    small = runtime.Model(subnormal.shrink(file, tmp_path / "small.onnx"), threads=1)
    expected, logits = runtime.Model(file).run(IMAGES), small.run(IMAGES)
    assert (logits.argmax(1) == expected.argmax(1)).all()
    assert np.abs(logits).max() < subnormal.SMALLEST
    assert logits.astype(float) * 1e39 == pytest.approx(expected, rel=1e-2, abs=1e-3)


def test_flushing_ends_with_its_call(file):
    """What is computed afterwards in this thread keeps its subnormal numbers."""
    table = subnormal.cost(file, IMAGES[:1], rounds=1)
    assert list(table.index) == ["as it is", "subnormal", "subnormal, taken for 0"]
    assert (torch.tensor([1e-20]) * torch.tensor([1e-20])).item() > 0
