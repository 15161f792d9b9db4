"""The comparisons of `make bench`: every rival does the same work, ours among them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cvlab import export, store
from cvlab.lessons.int8 import openvino_int8
from cvlab.lessons.int8.ladder import stacked
from cvlab.models import SmallCNN
from cvlab.tools import peers
from cvlab.train import Training, fit


def test_the_quantisers_defaults_and_ours_are_judged_on_the_same_test_images(drawn, tmp_path):
    torch.manual_seed(0)
    net = SmallCNN(10)
    fit(net, drawn, Training(epochs=2, lr=0.03, batch_size=25), what=None)
    model = export.to_onnx(net, tmp_path / "fp32.onnx")
    some = stacked(drawn.batches(drawn.train.take(32), 25))
    table = peers.int8(model, some, drawn, tmp_path, 1)
    ways = ["fp32", "cvlab", "ONNX Runtime's default, dynamic", "ONNX Runtime's default, static"]
    assert list(table.index[:4]) == ways
    assert [*peers.DEFAULTS] == list(table.index[2:6])
    assert ("OpenVINO NNCF int8" in table.index) == openvino_int8.available()
    assert (table["n"] == len(drawn.test)).all()
    float_kept = ["fp32", "OpenVINO bf16", "OpenVINO NNCF int8, accuracy kept"]
    small = table["size_mb"].drop(float_kept, errors="ignore")
    assert (small < table.loc["fp32", "size_mb"] / 2).all()
    assert (table["throughput"] > 0).all()
    assert table.loc["fp32", "drop_pp"] == 0


def test_engines_race_on_one_image_and_on_the_batch(drawn, tmp_path):
    net = store.save(SmallCNN(10).eval(), tmp_path / "net.pt", drawn)
    model = export.to_onnx(store.load(net).model, tmp_path / "fp32.onnx")
    images = next(iter(drawn.batches("val", 8).epoch()))[0].contiguous().numpy()
    table = peers.inference(net, model, images, 1, rounds=6)
    assert table.index[0] == "PyTorch eager"
    assert "ONNX Runtime, all" in table.index
    assert "ONNX Runtime, basic" not in table.index
    assert table.loc["PyTorch eager", "speedup"] == 1
    assert (table["throughput"] > 0).all()


def test_races_against_itself_count_what_the_intervals_hold(monkeypatch):
    """Of four intervals one lies beside 1.00, and one race was disturbed."""
    ends = iter([(0.9, 1.1), (0.98, 1.02), (1.01, 1.05), (0.97, 1.0)])

    def drawn_race(field, **how):
        assert len({id(one) for one in field.values()}) == 1
        low, high = next(ends)
        row = {"ratio": (low + high) / 2, "low": low, "high": high}
        table = pd.DataFrame([row, row], index=[*field])
        table.attrs = {"programs": 0.5 if low == 0.9 else 0.01, "hypervisor": 0.0}
        return table

    monkeypatch.setattr(peers, "race", drawn_race)
    row = peers.against_itself(Path("model.onnx"), np.zeros((1, 3, 8, 8), "float32"), 1, 4).iloc[0]
    assert row[["races", "held", "disturbed"]].tolist() == [4, 3, 1]
    assert row[["width", "least", "greatest"]].tolist() == pytest.approx([0.04, 0.985, 1.03])


def test_the_smoke_run_is_timed_as_a_user_meets_it(workbook, monkeypatch):
    """In a process of its own: after OpenVINO, starting kernels from the same one crashed."""
    root, log = workbook
    code = f"import pathlib, cvlab.paths as p; p.PACKAGE = pathlib.Path({str(root / 'cvlab')!r});"
    code += "import sys; from cvlab.tools.cli import main; sys.exit(main(sys.argv[1:]))"
    real = subprocess.run
    as_there = lambda command: real([sys.executable, "-c", code, *command[3:]])  # noqa: E731
    monkeypatch.setattr(peers.subprocess, "run", as_there)
    good = {path: path.read_text(encoding="utf-8") for path in root.glob("notebooks/1[02]_*.ipynb")}
    for path in good:
        path.unlink()
    with pytest.raises(RuntimeError, match="did not pass"):
        peers.smoke_run()
    (root / "notebooks" / "11_bad.ipynb").unlink()
    for path, text in good.items():
        path.write_text(text)
    table = peers.smoke_run()
    assert list(table.index) == ["10_good", "12_last", "all"]
    assert table.loc["all", "claims"] == 1
    assert table.loc["all", "seconds"] > table.loc["10_good", "seconds"] > 0
    assert "last" in log.read_text(encoding="utf-8")
