"""Saved models: what comes back is what went in, and nothing else passes for a model."""

import pytest
import torch

from cvlab import store
from cvlab.lessons import pooling
from cvlab.lessons.search.networks import FlatCNN
from cvlab.models import LeNet, PoolingNet, SmallCNN
from cvlab.train import CheckpointError


@pytest.fixture
def saved(drawn, tmp_path):
    torch.manual_seed(0)
    model = PoolingNet(10, "blur", 16)
    model(torch.randn(8, 3, 32, 32))  # batch normalisation has statistics now
    return model.eval(), store.save(model, tmp_path / "models" / "net.pt", drawn)


def test_a_fresh_process_gives_the_same_logits_from_the_file_alone(saved):
    model, path = saved
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        here = model(images)
    assert torch.allclose(pooling.logits_in_fresh_process(path, images), here, atol=1e-6)


@pytest.mark.parametrize("model", [LeNet(4), SmallCNN(4), PoolingNet(4, "stride", 32)])
def test_every_network_comes_back_as_it_was(drawn, tmp_path, model):
    """`max` and `stride` have the same weights: a file must tell which one it was."""
    back = store.load(store.save(model, tmp_path / "net.pt", drawn))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(back.model(images), model.eval()(images))
    assert back.classes == drawn.classes
    assert back.mean == list(drawn.mean)


def test_a_network_that_could_not_be_read_back_is_not_written(drawn, tmp_path):
    with pytest.raises(ValueError, match="FlatCNN"):
        store.save(FlatCNN(10, 3, [8], [0.2]), tmp_path / "net.pt", drawn)
    assert not list(tmp_path.iterdir())


def test_a_missing_or_damaged_file_is_named_with_the_cure(saved, tmp_path):
    _, path = saved
    with pytest.raises(FileNotFoundError, match=r"other\.pt"):
        store.load(tmp_path / "other.pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"net\.pt.*save the model again"):
        store.load(path)
    torch.save({"weights": {}}, path)
    with pytest.raises(CheckpointError, match="not written by"):
        store.load(path)
    with pytest.raises(RuntimeError, match=r"net\.pt"):
        pooling.logits_in_fresh_process(path, torch.zeros(1, 3, 32, 32))


def test_a_full_disk_leaves_the_older_file_and_says_what_to_do(saved, drawn, monkeypatch):
    model, path = saved
    before = path.read_bytes()

    def full(content, file):
        file.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"No space left.*still in memory"):
        store.save(model, path, drawn)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1
