"""The comparisons of `make bench`: every rival does the same work, ours among them."""

import torch

from cvlab import export, openvino_int8, peers, runner, store
from cvlab.ladder import examples
from cvlab.models import SmallCNN
from cvlab.train import fit


def test_the_quantisers_defaults_and_ours_are_judged_on_the_same_test_images(drawn, tmp_path):
    torch.manual_seed(0)
    net = SmallCNN(10)
    fit(net, drawn.batches("train", 25), drawn.batches("val", 200), epochs=2, lr=0.03, what=None)
    model = export.to_onnx(net, tmp_path / "fp32.onnx")
    some = examples(drawn.batches(drawn.train.take(32), 25)).images
    table = peers.int8(model, some, drawn, tmp_path, 1)
    ways = ["fp32", "cvlab", "ONNX Runtime's default, dynamic", "ONNX Runtime's default, static"]
    assert list(table.index[:4]) == ways
    assert ("OpenVINO NNCF int8" in table.index) == openvino_int8.available()
    assert (table["n"] == len(drawn.test)).all()
    assert (table["size_mb"][1:] < table.loc["fp32", "size_mb"] / 2).all()
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


def test_the_smoke_run_is_told_by_notebook_and_in_all(monkeypatch):
    found = [runner.Result("00", "passed", 20.0, 3, 3), runner.Result("01", "passed", 22.0, 8, 8)]
    monkeypatch.setattr(runner, "choose", lambda asked: [one.notebook for one in found])
    monkeypatch.setattr(runner, "execute", lambda plan, out: found)
    table = peers.smoke_run()
    assert table.loc["all", "seconds"] == 42
    assert table.loc["01", "claims"] == 8
