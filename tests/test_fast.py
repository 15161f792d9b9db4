"""09: the training for the record, its changes one by one, and the log that is believed."""

import json
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from cvlab.lessons.engines import calls
from cvlab.lessons.fast import changes, loop, network, record

CPU = torch.device("cpu")
SMALL = loop.Recipe(widths=(24, 24, 32), batch_size=50, passes=1, precision="fp32")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def few(drawn):
    return drawn.take(n_train=200, n_val=50, n_test=50)


def test_whitened_patches_do_not_correlate(drawn):
    images = next(drawn.batches(drawn.train, 500).epoch())[0]
    answers = nn.functional.conv2d(images, network.whitening(images))[:, :12]
    correlation = torch.corrcoef(answers.transpose(0, 1).flatten(1))
    assert (correlation - torch.eye(12)).abs().max() < 0.02


def test_a_new_convolution_lets_its_inputs_through():
    features = torch.randn(2, 8, 5, 5)
    assert torch.allclose(network.Conv(8, 12)(features)[:, :8], features, atol=1e-6)


def test_muon_turns_weights_and_keeps_their_length():
    """A weight that grows is turned less and less by the same rate."""
    weight = nn.Parameter(torch.randn(6, 20))
    optimizer = loop.Muon([weight], lr=0.3, weight_decay=0.0)
    for _ in range(5):
        weight.grad = torch.randn(6, 20)
        before = weight.detach() * 6**0.5 / weight.detach().norm()
        optimizer.step()
        step = weight.detach() - before
        assert 0.6 * 0.3 < step.norm() / 6**0.5 < 1.3 * 0.3


def test_orthogonalise_is_what_torchs_muon_does():
    gradient = torch.randn(9, 30)
    weight = nn.Parameter(torch.zeros(9, 30))
    weight.grad = gradient.clone()
    torch.optim.Muon([weight], lr=1, momentum=0, nesterov=False, weight_decay=0).step()
    assert (weight.detach() + loop.orthogonalise(gradient, 5)).abs().max() < 0.03  # theirs: bf16


def test_a_seed_is_a_training(few):
    one, again, other = (loop.train(few, SMALL, seed, CPU).losses for seed in (0, 0, 1))
    assert one == again
    assert one != other
    assert len(one) == 4


def test_sizes_share_the_steps_and_every_change_trains(few):
    seen = []

    class Watched(network.FastNet):
        def forward(self, images):
            seen.append(images.shape[-1])
            return super().forward(images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "FastNet", Watched)
        loop.train(few, replace(SMALL, passes=1.5, sizes=(20, 24, 32)), 0, CPU)
    assert seen == [20, 20, 24, 24, 32, 32]
    names = [name for name in changes.CHANGES if name != "compiled"]
    recipes = [*changes.ladder(names).values()]
    for before, after in pairwise(recipes):
        differing = [k for k, v in asdict(after).items() if v != asdict(before)[k]]
        assert len(differing) == 1
    last = replace(recipes[-1], widths=(24, 24, 32), batch_size=50, passes=1)
    assert torch.isfinite(loop.judge(loop.train(few, last, 0, CPU), few, few.val, CPU)).all()


def test_a_compiled_training_goes_the_same_way(few):
    """In bf16 its first gradients once were no numbers."""
    if why := calls.no_compiler():
        pytest.skip(why)
    recipe = replace(SMALL, widths=(8,), precision="bf16", passes=0.5, whitened=False)
    plain, compiled = (
        loop.train(few, replace(recipe, compiled=one), 0, CPU).losses for one in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=0.05)


def test_four_views_are_two_images_and_their_mirror_images(few):
    """So a mirrored image gets nearly the same answer; the moved view loses another edge."""
    trained = loop.train(few, SMALL, 0, CPU)
    turned = replace(few.val, images=few.val.images.flip(3))

    def apart(recipe):
        one = replace(trained, recipe=recipe)
        both = [loop.judge(one, few, part, CPU) for part in (few.val, turned)]
        return (both[0] - both[1]).abs().mean()

    assert apart(SMALL) < 0.6 * apart(replace(SMALL, four_views=False))


def sides(images, batches):
    """Is each of `images` mirrored in its crop? Fails where one is moved by more than 2 pixels."""
    crops, found = batches._augmented(torch.arange(len(images)), torch.Generator()), []
    for image, crop in zip(images, crops, strict=True):
        middle = image.permute(1, 2, 0)[4:-4, 4:-4]
        places = [(down, right) for down in range(2, 7) for right in range(2, 7)]
        fits = [
            side
            for side, view in enumerate((crop, crop.flip(1)))
            if any(torch.equal(view[y : y + 24, x : x + 24], middle) for y, x in places)
        ]
        assert len(fits) == 1
        found += fits
    return found


def test_each_image_shows_the_other_side_in_the_next_epoch(few):
    batches = loop.TakingTurns(few, few.train, 50, True, True, CPU, 0, 1)
    shown = []
    for epoch in (0, 1):
        batches.epoch(epoch)
        shown.append(sides(few.train.images[:20], batches))
    assert shown[0] == [1 - side for side in shown[1]]
    assert 2 < sum(shown[0]) < 18


def test_operations_are_counted_without_computing():
    """Six for each multiply-accumulate, less what the first layers need not send back."""
    recipe = loop.Recipe(muon=False)
    net = loop.FastNet(10, recipe.widths, torch.zeros(24, 3, 2, 2))
    pixels = {0: 31 * 31, 1: 15 * 15, 2: 15 * 15, 3: 7 * 7, 4: 7 * 7, 5: 3 * 3}
    convs = [m for m in net.modules() if isinstance(m, network.Conv)]
    macs = sum(conv.weight.numel() * pixels[i] for i, conv in enumerate(convs))
    counted = record.operations(recipe, 1000)
    assert 0.85 < counted / (6 * macs * 8 * 1000) < 1.02
    assert record.operations(replace(recipe, passes=4), 1000) == pytest.approx(counted / 2)
    assert record.operations(replace(recipe, sizes=(24,)), 1000) < 0.7 * counted
    assert counted < record.operations(loop.Recipe(), 1000) < 1.1 * counted


def lines(accuracies, seconds=100.0, real=True):
    """A log of 10,000 images."""
    facts = {"recipe": {}, "data": "d", "machine": "m", "versions": "v", "n": 10_000, "images": 1}
    facts |= {"seconds": seconds, "real": real}
    right = [round(10_000 * accuracy) for accuracy in accuracies]
    return [{"seed": seed, "correct": count} | facts for seed, count in enumerate(right)]


ENOUGH = [0.931, 0.932, 0.930, 0.933, 0.931, 0.932, 0.931, 0.930, 0.932, 0.931]


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (lines(ENOUGH), "93% within 300 s: shown"),
        (lines(ENOUGH[:9]), "not shown, 9 seeds"),
        (lines(ENOUGH, real=False), "not shown, the data is the stand-in"),
        (lines(ENOUGH, seconds=301), "not shown, one run took 301 s"),
        (lines([*ENOUGH[:9], 0.90]), "not shown, the interval of the mean begins at 92.1"),
    ],
)
def test_a_log_shows_what_it_shows(log, says):
    assert says in record.verdict(log, 0.93, 300)


def test_a_log_goes_on_and_takes_no_other_runs(few, tmp_path):
    """What was trained is kept, and nothing is trained that could not be kept."""
    log = tmp_path / "runs" / "log.jsonl"
    first = record.keep_log(log, few, SMALL, [0], CPU)
    both = record.keep_log(log, few, SMALL, [0, 1], CPU)
    assert both[0] == first[0]
    assert [one["seed"] for one in record.read(log)] == [0, 1]
    assert {one["n"] for one in both} == {50}
    with pytest.raises(record.LogError, match="differ in recipe"):
        record.keep_log(log, few, replace(SMALL, passes=2), [2], CPU)
    with open(log, "a") as file:
        file.write(json.dumps(both[0]) + "\n")
    with pytest.raises(record.LogError, match="a seed twice"):
        record.read(log)
    log.write_text(log.read_text() + '{"seed": 3, "corr')
    with pytest.raises(record.LogError, match="line 4 is no line"):
        record.read(log)


def test_validation_images_join_for_the_record(few):
    whole = record.everything(few)
    assert len(whole.train) == len(few.train) + len(few.val)
    assert torch.equal(whole.train.images[-50:], few.val.images)
    assert whole.test is few.test


def test_the_published_log_is_one(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in record.published()))
    assert record.read(log) == record.published()
    assert "92% within 300 s: shown" in record.in_words(record.published())
