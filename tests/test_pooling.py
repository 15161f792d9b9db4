"""The pooling experiment: four kinds of one network, shifts, and the rule that chooses."""

import pandas as pd
import pytest
import torch

from cvlab import data as cvdata
from cvlab import metrics, models
from cvlab.data import Split
from cvlab.lessons import pooling
from cvlab.lessons.pooling import plot_shift_curves
from cvlab.machine import import_torchvision
from cvlab.models import POOLINGS, PoolingNet
from cvlab.train import Training


def net(kind, seed=0):
    torch.manual_seed(seed)
    return PoolingNet(5, kind, 16).eval()


@pytest.mark.parametrize("kind", POOLINGS)
def test_all_kinds_have_the_same_weights_and_outputs_of_the_same_shape(kind):
    reference, other = net("max").state_dict(), net(kind).state_dict()
    assert list(reference) == list(other)
    assert all(torch.equal(reference[key], other[key]) for key in reference)
    assert net(kind)(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    assert net(kind).features(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 4, 4)


def test_stride_keeps_every_second_result_of_the_plain_convolution():
    """So "stride" is the same network that looks at fewer places, as the notebook says."""
    images = torch.randn(2, 3, 32, 32)
    strided, plain = net("stride"), net("max")
    expected = plain.features[:2](images)[:, :, ::2, ::2]
    assert torch.allclose(strided.features[:2](images), expected, atol=1e-5)


def test_blur_is_one_two_one_then_every_second_pixel():
    """Against timm's own BlurPool2d, away from the edge, where they reflect differently."""
    import_torchvision()
    from timm.layers import BlurPool2d

    features = torch.randn(2, 4, 16, 16)
    ours, theirs = models.BlurPool()(features), BlurPool2d(4, filt_size=3)(features)
    assert ours.shape == (2, 4, 8, 8)
    assert torch.allclose(ours[..., :7, :7], theirs[..., :7, :7], atol=1e-6)


def test_an_unknown_pooling_is_answered_with_the_choices():
    with pytest.raises(ValueError, match="stride"):
        PoolingNet(5, "mean")


def test_the_summary_counts_what_pytorch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    for kind in POOLINGS:
        table = models.summary(net(kind))
        with FlopCounterMode(display=False) as counter:
            net(kind)(torch.zeros(1, 3, 32, 32))
        assert table["MACs"].sum() == pytest.approx(counter.get_total_flops() / 2, rel=1e-3)
        assert table["parameters"].sum() == sum(p.numel() for p in net(kind).parameters())
    assert table.loc["features.2", "layer"] == "BlurPool"
    assert table.loc["features.1.0", "output"] == "16 x 32 x 32"


def test_a_halved_zone_plate_has_aliases_by_stride_and_hardly_any_by_blur():
    """Far from the centre an honest half-size picture is grey: its spread measures the alias."""
    spread = {k: pooling.halve(pooling.zone_plate(), k)[:8, :8].std().item() for k in POOLINGS}
    assert spread["stride"] > 0.3
    assert spread["blur"] < 0.03
    assert spread["blur"] < spread["avg"] < spread["stride"]


def test_shifted_moves_right_and_down_and_reflects_the_edge():
    images = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).repeat(1, 3, 1, 1)
    split = Split(images, torch.zeros(1).long())
    right = pooling.shifted(split, 1, 0).images[0, 0]
    assert right[0].tolist() == [1, 0, 1, 2]
    down = pooling.shifted(split, 0, 1).images[0, 0]
    assert down[:, 0].tolist() == [4, 0, 4, 8]
    assert torch.equal(pooling.shifted(split, 0, 0).images, images)
    with pytest.raises(ValueError, match="shifted"):
        pooling.shifted(split, 3, 0)


class LooksAtOnePixel(torch.nn.Module):
    """Says class 0 where the pixel in the middle is bright: every shift can change its mind."""

    def forward(self, images):
        bright = images[:, 0, 16, 16]
        return torch.stack([bright, -bright], 1)


class LooksAtNothing(torch.nn.Module):
    def forward(self, images):
        return images[:, 0, :2, 0] * 0


@pytest.fixture(scope="module")
def stripes():
    """Vertical lines, one pixel black, one white; the rows are alike."""
    line = (torch.arange(32) % 2 * 255).to(torch.uint8)
    split = Split(line.expand(6, 3, 32, 32).contiguous(), torch.arange(6) % 2)
    half = (0.5,) * 3
    return cvdata.ImageData("cifar10", ["a", "b"], split, split, split, "test", False, half, half)


def test_shift_consistency_counts_answers_that_stay(stripes):
    sees = LooksAtOnePixel()
    sees.weight = torch.nn.Parameter(torch.zeros(1))
    same = pooling.shift_consistency(sees, stripes, (1, 2))
    assert same == {1: 0.5, 2: 1.0}  # by one pixel, left and right: all flip
    assert pooling.shift_consistency(LooksAtNothing(), stripes, (1,)) == {1: 1.0}


def test_the_rule_takes_the_cheapest_that_validation_cannot_tell_from_the_best():
    table = pd.DataFrame(
        {"val_accuracy": [0.80, 0.79, 0.78, 0.70], "MACs": [10, 5, 5, 1]}, index=list("abcd")
    )
    assert metrics.choose(table, n_val=250) == "b"  # one standard error is 2.5 points
    assert metrics.choose(table, n_val=25_000) == "a"  # now it is 0.25 points


def test_training_judges_and_compares(drawn):
    training = Training(lr=0.01, epochs=2, patience=1, batch_size=50, augment=False, seed=3)
    runs = {(kind, 3): pooling.train(drawn, kind, 16, training) for kind in ("stride", "max")}
    judged = pooling.judge(runs, drawn)
    assert judged["pooling"].tolist() == ["stride", "max"]
    assert (judged["overfit_gap"] == judged["train_accuracy"] - judged["val_accuracy"]).all()
    assert judged[["shift_1", "shift_4"]].le(1).all(axis=None)
    assert "points" in pooling.comparison(judged).loc["max", "overfit gap"]
    assert len(plot_shift_curves({"a": judged, "b": judged}, "t").axes) == 2
    again, _ = pooling.train(drawn, "max", 16, training)
    first = runs["max", 3][0].state_dict()
    assert all(torch.equal(first[key], value) for key, value in again.state_dict().items())


def test_joined_edges_take_a_picture_that_is_rolled_by_eight_for_the_same():
    """Three halvings: by 8 pixels the last map moves by one place, and its mean stays.

    By 4 too for avg and blur, whose last halving leaves the mean as it is. In float64, where
    rounding is far below what a grid or a border changes.
    """
    torch.manual_seed(0)
    images = torch.rand(40, 3, 32, 32).double()
    for kind in POOLINGS:
        padded, joined = net(kind).double(), pooling.join_edges(net(kind).double())

        def moved(model, far):
            with torch.inference_mode():
                return float((model(images.roll(far, 3)) - model(images)).abs().max())

        assert moved(joined, 8) < 1e-12, kind
        assert moved(joined, 2) > 1e-8, kind
        assert (moved(joined, 4) < 1e-12) == (kind in ("avg", "blur")), kind
        assert moved(padded, 8) > 1e-8, kind
        assert pooling.same_answer(joined, images, 8) == 1


def test_pooling_that_reads_more_has_more_macs():
    macs = pooling.costs(POOLINGS, 5, 4, "cpu")["MACs"]
    assert macs["stride"] < macs["max"] == macs["avg"] < macs["blur"] < 1.1 * macs["max"]


def test_other_rates_are_trained_and_the_known_one_is_taken(drawn):
    training = Training(lr=0.01, epochs=1, batch_size=50, augment=False)
    plain = {(kind, 0): pooling.train(drawn, kind, 4, training) for kind in POOLINGS}
    table = pooling.other_rates(plain, drawn, 4, training, [0.01, 1e-7], "cpu")
    judged = pooling.judge(plain, drawn).set_index("pooling")["val_accuracy"]
    assert table.loc[0.01].tolist() == judged.tolist()
    assert table.loc[1e-7].notna().all()


def test_the_test_table_pools_seeds_keeps_the_order_and_compares_in_pairs():
    right, wrong = torch.eye(2)[[0, 1]], torch.eye(2)[[1, 0]]
    labels = torch.tensor([0, 1])
    answers = {
        ("max", "x", 0): (wrong, labels),
        ("max", "x", 1): (right, labels),
        ("avg", "x", 0): (right, labels),
    }
    table = pooling.test_table(answers, [("max", "x"), ("avg", "x")], ("avg", "x"))
    assert table["test accuracy"].tolist() == ["50.0%", "100.0%"]
    assert table["behind the chosen, points"].tolist() == ["50.0 (50.0 to 50.0)", "chosen"]
    assert table.loc[("max", "x"), "seeds"] == "0.0% to 100.0%"


def test_several_trainings_in_pairs_are_one_training_in_pairs():
    """Of one training each it is the paired difference, with the plain normal interval."""
    torch.manual_seed(0)
    labels, first, second = torch.randint(3, (500,)), torch.randn(500, 3), torch.randn(500, 3)
    middle, low, high = metrics.paired_means([first], [second], labels)
    expected = metrics.paired_drop(first, second, labels)
    assert (middle, low, high) == pytest.approx(expected, abs=2e-3)
    assert metrics.paired_means([first, second], [second, first], labels) == (0, 0, 0)


def test_per_class_scores_and_confusion_against_a_count_by_hand():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    logits = torch.eye(3)[[0, 0, 1, 1, 0, 0]]
    table = metrics.per_class(logits, labels, ["a", "b", "c"])
    assert table["precision"].tolist() == pytest.approx([2 / 4, 1 / 2, 0])
    assert table["recall"].tolist() == pytest.approx([2 / 3, 1 / 2, 0])
    assert table["images"].tolist() == [3, 2, 1]
    counts = metrics.confusion(logits, labels, ["a", "b", "c"])
    assert counts.loc["a"].tolist() == [2, 1, 0]
    assert counts.loc["c"].tolist() == [1, 0, 0]
