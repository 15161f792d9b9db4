"""The machine's peaks, what layers cost, and what a profile says."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from cvlab import export, runtime
from cvlab.lessons import environment
from cvlab.lessons.int8 import quantize, roofline


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A 3x3, a depthwise, a 1x1 convolution and a linear layer: (float model, its INT8 model)."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8)]
    layers += [nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    folder = tmp_path_factory.mktemp("net")
    file = export.to_onnx(nn.Sequential(*layers, nn.Linear(16, 10)), folder / "net.onnx")
    model = runtime.Model(file)
    source = quantize.Source(model, torch.randn(8, 3, 32, 32), folder)
    return model, source.make(quantize.Recipe())


@pytest.mark.parametrize("which", [0, 1], ids=["float", "INT8"])
def test_costs_are_those_of_the_layers(net, which):
    """Counted by hand; a float file and its INT8 file cost the same."""
    found = roofline.costs(net[which].path).set_index("kind")
    pixels = 32 * 32
    expected = {
        "other convolution": (2 * 216 * pixels, 216, 11 * pixels),
        "depthwise convolution": (2 * 72 * pixels, 72, 16 * pixels),
        "1x1 convolution": (2 * 128 * pixels, 128, 24 * pixels),
        "linear": (2 * 160, 160, 26),
    }
    for kind, row in expected.items():
        assert tuple(found.loc[kind]) == row, kind
    assert len(found) == 4


def test_profile_finds_every_layer_of_an_int8_model(net):
    """Shares are of the whole, and no layer hides among the other operators."""
    found = roofline.profile(net[1], batch=2, calls=3)
    assert set(roofline.KINDS) <= set(found.index)
    assert found["time"].sum() == pytest.approx(1)
    assert found["operations"].sum() == pytest.approx(1)
    assert (found.loc[list(roofline.KINDS), "Gop/s"] > 0).all()


def test_points_move_to_more_operations_a_byte_in_batches(net):
    """Weights are shared by a batch; one byte a number is four times as many operations a byte."""
    models = {"fp32": net[0], "INT8": net[1]}
    found = roofline.points({"net": models}, [1, 4], 1, rounds=2)
    assert set(found["network"]) == {"net"}
    fp32, int8 = (found[found["precision"] == name]["intensity"].to_numpy() for name in models)
    assert fp32[1] > fp32[0]
    np.testing.assert_allclose(int8, 4 * fp32)


def test_peaks_are_what_the_clock_says(monkeypatch):
    """Of known times: operations are two a multiply-accumulate, bytes read and written."""
    table = environment.peaks(size=64, megabytes=1, calls=3)
    assert [*table.index] == ["fp32", "bf16", "INT8", "memory"]
    assert (table["p10"] <= table["median"]).all()
    monkeypatch.setattr(environment, "compare", lambda calls, **_: a_second(calls))
    table = environment.peaks(size=64, megabytes=1)
    assert table.loc[["fp32", "INT8"], "median"].tolist() == pytest.approx([2e-9 * 64**3] * 2)
    assert table.loc["memory", "median"] == pytest.approx(2e-3)


def a_second(calls):
    columns = {name: [1e3] for name in ("ms", "p10", "p90")} | {"n": [1], "ratio": [1.0]}
    return pd.DataFrame(columns, index=[*calls])
