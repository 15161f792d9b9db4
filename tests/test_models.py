"""Networks, the stand-in's difficulty, and pictures of them."""

import numpy as np
import pytest
import torch

from cvlab import data as cvdata
from cvlab import plots, synthetic
from cvlab.models import ChannelMax, LeNet, SmallCNN
from cvlab.train import evaluate


@pytest.mark.parametrize(("model", "weights"), [(LeNet, 62_006), (SmallCNN, 237_210)])
def test_shapes_and_sizes(model, weights):
    net = model(10).eval()
    assert net(torch.zeros(3, 3, 32, 32)).shape == (3, 10)
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert sum(p.numel() for p in net.parameters()) == weights


def test_the_stand_in_can_be_learnt_and_is_not_easy(taught):
    """Half a minute of the small CNN must pass 60 % and stay below 99 %."""
    data = cvdata.load("cifar10", "synthetic")
    score = evaluate(taught, data.batches("test", 1000))
    assert 0.6 < score.accuracy < 0.99


def test_the_same_seed_draws_the_same_images():
    labels = np.arange(20) % 2
    first, again, other = (synthetic.draw(labels, ["cat", "otter"], s) for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.dtype == np.uint8
    assert len(np.unique(first[0])) > 50


def test_unknown_names_get_drawings_of_their_own():
    assert synthetic.parts_of("wolf") == synthetic.parts_of("wolf")
    assert synthetic.parts_of("wolf") != synthetic.parts_of("rose")


def test_curves_are_drawn_with_names_at_their_ends():
    figure = plots.curves({"a": ([1, 2], [3, 4])}, "title", "x", "y")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["a"]
    assert figure.get_suptitle() == "title"


def test_names_at_the_ends_of_curves_keep_their_distance():
    assert plots.apart([0.5, 0.51, 0.1, 0.52], 0.05).tolist() == pytest.approx(
        [0.5, 0.55, 0.1, 0.6]
    )
    assert plots.apart([0.9, 0.1], 0.05).tolist() == [0.9, 0.1]


def test_the_largest_of_a_channel_is_the_same_while_exported():
    """Exported without adaptive pooling, which the torch that Colab has cannot put into ONNX."""
    layer, features = ChannelMax(), torch.randn(4, 8, 5, 5)
    assert torch.equal(layer(features), features.amax((2, 3), keepdim=True))
    program = torch.export.export(layer, (features,))
    assert torch.equal(program.module()(features), layer(features))
    assert "adaptive" not in str(program.graph)
