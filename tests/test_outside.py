"""Networks of other kinds: they must come to the quantiser as any outside file does."""

import pytest
import torch

from cvlab.tools import outside
from cvlab.tools.examine import examine
from cvlab.train import Training


@pytest.mark.parametrize("name", outside.NETWORKS)
def test_each_takes_cifars_images_and_can_learn(name):
    make, _ = outside.NETWORKS[name]
    net = make()
    logits = net(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None]
    assert silent == []


def test_it_is_trained_once_and_read_like_a_strangers_file(monkeypatch, tmp_path, drawn):
    monkeypatch.setattr(outside, "project_root", lambda: tmp_path)
    make, _ = outside.NETWORKS["ResNet-20"]
    short = Training(epochs=4, lr=0.05, batch_size=25)
    monkeypatch.setitem(outside.NETWORKS, "ResNet-20", (make, short))
    first = outside.file("ResNet-20", drawn)
    written = first.stat().st_mtime_ns
    assert outside.file("ResNet-20", drawn) == first
    assert first.stat().st_mtime_ns == written
    known = examine(first, drawn.take(n_val=100), tmp_path)
    logits, _ = known.model.predict(known.view.batches("test", 25))
    assert logits.shape == (len(drawn.test), 10)
