"""Splits and batches: nothing leaks, nothing is lost, augmentation is what it says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cvlab import data as cvdata
from cvlab.data import Split
from cvlab.lessons import environment


def test_splits_are_stratified_and_disjoint():
    """A validation image that is also trained on would make every choice look good."""
    data = cvdata.load("cifar10", "synthetic")
    assert (len(data.train), len(data.val), len(data.test)) == (5400, 600, 2000)
    for split in (data.train, data.val, data.test):
        assert len(set(split.labels.bincount().tolist())) == 1
    rows = {
        part: {i.numpy().tobytes() for i in getattr(data, part).images} for part in ("train", "val")
    }
    assert not rows["train"] & rows["val"]


def test_the_split_does_not_depend_on_the_notebooks_seed(drawn_once, monkeypatch):
    """Notebook 05 tests the model of 03: both must hold out the same images."""
    monkeypatch.setattr(cvdata, "stand_in", drawn_once)
    torch.manual_seed(1)
    np.random.seed(1)
    first = cvdata.load("cifar10", "synthetic").val.images
    torch.manual_seed(2)
    assert torch.equal(first, cvdata.load("cifar10", "synthetic").val.images)


@pytest.mark.parametrize("n", [10, 37, 200])
def test_take_is_balanced_and_nested(drawn, n):
    small = drawn.train.take(n)
    counts = small.labels.bincount(minlength=10)
    assert len(small) == n
    assert counts.max() - counts.min() <= 1
    assert torch.equal(drawn.train.take(200).images[:n], small.images)


def test_normalised_training_images_have_mean_0_and_std_1():
    data = cvdata.load("cifar10", "synthetic")
    images = torch.cat([x for x, _ in data.batches(data.train, 600)])
    assert images.mean((0, 2, 3)).abs().max() < 1e-4
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-3


def coordinates() -> Split:
    """One image whose red channel is the row and whose green one is the column, + 100."""
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    image = torch.stack([rows + 100, columns + 100, torch.zeros(32, 32)]).to(torch.uint8)
    return Split(image.repeat(400, 1, 1, 1), torch.zeros(400, dtype=torch.long))


def test_augmentation_is_a_crop_of_the_padded_image_and_a_flip(drawn):
    """All 9 x 9 shifts and both directions occur, and pixels keep their neighbours."""
    data = replace(drawn, train=coordinates(), mean=(0, 0, 0), std=(1, 1, 1))
    images, _ = next(data.batches("train", 400).epoch())
    pixels = (images * 255).round().int()
    down, right = pixels[:, 0, 16, 16] - 116, pixels[:, 1, 16, 15:17] - 116
    flipped = right[:, 0] > right[:, 1]
    shift = torch.where(flipped, right[:, 1], right[:, 1])
    assert set(down.tolist()) == set(range(-4, 5))
    assert flipped.float().mean().item() == pytest.approx(0.5, abs=0.12)
    assert set(shift[~flipped].tolist()) == set(range(-4, 5))
    inner = pixels[:, 1, 16, 5:27]
    assert ((inner[:, 1:] - inner[:, :-1]).abs() == 1).all()


def test_evaluation_batches_are_every_image_once_in_order(drawn):
    batches = drawn.batches("test", 64)
    labels = torch.cat([y for _, y in batches.epoch()])
    assert torch.equal(labels, drawn.test.labels)
    assert len(batches) == 4


def test_an_epoch_depends_on_seed_and_number_alone(drawn):
    """What makes a resumed training see the batches that it would have seen."""
    first = drawn.batches("train", 100, seed=3)
    again = drawn.batches("train", 100, seed=3)
    list(again.epoch(0))
    for (x, y), (u, v) in zip(first.epoch(1), again.epoch(1), strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
    assert not torch.equal(next(first.epoch(1))[0], next(first.epoch(2))[0])
    other = drawn.batches("train", 100, seed=4)
    assert not torch.equal(next(first.epoch(1))[0], next(other.epoch(1))[0])


def test_training_epoch_uses_each_image_at_most_once(drawn):
    marked = replace(drawn, train=Split(drawn.train.images, torch.arange(500)))
    labels = torch.cat([y for _, y in marked.batches("train", 64)])
    assert len(labels) == 448
    assert len(labels.unique()) == 448


def test_shuffled_images_can_stay_as_they_are(drawn):
    """What 02 trains on without augmentation: every image as it is, in another order each epoch."""
    batches = drawn.batches("train", 50, augment=False, seed=1)
    images = torch.cat([x for x, _ in batches.epoch(0)])
    still = torch.cat([x for x, _ in drawn.batches(drawn.train, 100).epoch()])
    assert not torch.equal(images, still)
    weights = torch.linspace(1, 2, 32)  # a mirrored image has another weighted mean
    means = [sorted((x * weights).mean((1, 2, 3)).tolist()) for x in (images, still)]
    assert means[0] == pytest.approx(means[1], abs=1e-5)
    assert not torch.equal(images, torch.cat([x for x, _ in batches.epoch(1)]))
    with pytest.raises(ValueError, match="augment=True is for"):
        drawn.batches("val", 10, augment=True)


def test_batches_are_channels_last_floats(drawn):
    images, labels = next(drawn.batches("train", 32).epoch())
    assert images.shape == (32, 3, 32, 32)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64


def test_the_torchvision_loader_does_the_same_augmentation():
    """The contrast in 00 is fair only if both do the same work."""
    split = coordinates()
    loader = environment.torchvision_loader(split, 400, (0, 0, 0), (1, 1, 1), workers=0)
    images, _ = next(iter(loader))
    pixels = (images * 255).round().int()
    assert set((pixels[:, 0, 16, 16] - 116).tolist()) == set(range(-4, 5))
    assert images.shape == (400, 3, 32, 32)


def test_the_stand_in_says_that_it_is_one(drawn):
    assert not drawn.real
    assert "STAND-IN" in str(drawn)


def test_any_class_list_can_be_drawn():
    data = cvdata.load("cifar100", "synthetic", classes=["wolf", "rose"], n_test=10)
    assert data.classes == ["wolf", "rose"]
    assert data.test.labels.bincount().tolist() == [5, 5]


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"name": "cifar11"}, "cifar100"),
        ({"name": "cifar10", "classes": ["cat", "dgo"]}, "dog"),
        ({"name": "cifar10", "classes": ["cat"]}, "two or more"),
    ],
)
def test_wrong_names_are_answered_with_the_choices(wrong, hint):
    with pytest.raises(ValueError, match=hint):
        cvdata.load(where="synthetic", **wrong)


def test_parts_are_a_pass_over_all_images_in_pieces(drawn):
    """Judged more often, but no image is seen twice before all were seen."""
    whole = drawn.batches("train", 25, augment=False)
    parts = drawn.batches("train", 25, augment=False, parts=4)
    assert len(parts) == len(whole) // 4
    images = {n: torch.cat([x for x, _ in parts.epoch(n)]) for n in range(4)}
    expected = torch.cat([x for x, _ in whole.epoch(0)])
    assert torch.equal(torch.cat(list(images.values())), expected)
    assert not torch.equal(torch.cat([x for x, _ in parts.epoch(4)]), images[0])


@pytest.mark.parametrize(("part", "parts"), [("train", 0), ("train", 501), ("val", 2)])
def test_impossible_parts_are_refused(drawn, part, parts):
    with pytest.raises(ValueError, match=f"parts={parts} was given"):
        drawn.batches(part, 10, parts=parts)


def test_batches_are_resized_after_augmentation(drawn):
    """The crops move by CIFAR's pixels, not by those of the enlarged image."""
    data = replace(drawn, size=64)
    small, large = drawn.batches("train", 50, seed=3), data.batches("train", 50, seed=3)
    images, labels = next(iter(small.epoch(2)))
    enlarged, same = next(iter(large.epoch(2)))
    assert torch.equal(labels, same)
    assert enlarged.shape == (50, 3, 64, 64)
    expected = torch.nn.functional.interpolate(images, size=64, mode="bilinear")
    assert torch.allclose(enlarged, expected, atol=1e-4)
