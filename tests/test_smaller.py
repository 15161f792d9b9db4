"""08's pieces: zeros stay zeros, shapes shrink, a teacher is heard, and a file loses only notes."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import onnx
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cvlab import export, runtime
from cvlab.data import Split
from cvlab.lessons.int8 import quantize
from cvlab.lessons.smaller import channels, distil, figures, front, pack, prune
from cvlab.models import SmallCNN
from cvlab.train import Training, fit

BRIEF = Training(lr=0.05, epochs=2, parts=2, batch_size=50)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return SmallCNN(10)


@pytest.fixture(scope="module")
def few(drawn):
    return drawn.take(n_train=200, n_val=50)


# --- zeros ---------------------------------------------------------------------------------------


def test_the_smallest_weights_of_all_layers_go_first(net):
    sparse = prune.pruned(net, 0.9, "not trained again", None, BRIEF)
    assert prune.zeros(sparse) == pytest.approx(0.9, abs=1e-4)
    assert prune.zeros(net) == 0, "the network itself is kept"
    before = torch.cat([m.weight.detach().flatten().abs() for m, _ in prune.weights(net)])
    after = torch.cat([m.weight.detach().flatten() for m, _ in prune.weights(sparse)])
    assert before[after == 0].max() <= before[after != 0].min()


@pytest.mark.parametrize("way", [way for way, (again, _) in prune.WAYS.items() if again])
def test_a_zero_stays_zero_while_the_others_learn(net, few, way):
    sparse = prune.pruned(net, 0.8, way, few, BRIEF)
    assert prune.zeros(sparse) == pytest.approx(0.8, abs=1e-3)
    one, other = sparse.features[3][0].weight, net.features[3][0].weight
    kept = one != 0
    assert (one[kept] != other[kept]).float().mean() > 0.9
    assert {name for name, _ in sparse.named_parameters()} == {n for n, _ in net.named_parameters()}


def test_little_by_little_ends_before_the_last_epoch():
    plan = prune.stops(0.9, 5, True)
    assert len(plan) == 5
    assert plan[-2:] == [0.9, 0.9]
    steps = [b - a for a, b in pairwise(plan)]
    assert steps == sorted(steps, reverse=True), "steep first"
    assert prune.stops(0.9, 5, False) == [0.9] * 5


def test_zeros_save_bytes_only_when_packed(net, tmp_path):
    sparse = prune.pruned(net, 0.9, "not trained again", None, BRIEF)
    sizes = prune.sizes(prune.files({"dense": net, "sparse": sparse}, tmp_path))
    assert sizes.loc["sparse", "bytes"] == sizes.loc["dense", "bytes"]
    assert sizes.loc["sparse", "zipped"] < 0.3 * sizes.loc["dense", "zipped"]


# --- channels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", channels.CRITERIA)
def test_half_of_the_channels_is_a_quarter_of_the_work(net, few, criterion):
    thin = channels.pruned(net, 0.5, criterion, [next(few.batches("train", 20).epoch())])
    widths = [m.out_channels for m in thin.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [8, 24, 24, 48, 48, 48]
    assert channels.costs(thin)["MACs"] < 0.3 * channels.costs(net)["MACs"]
    assert thin(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert net.features[0][0].out_channels == 16, "the network itself is kept"
    assert all(parameter.grad is None for parameter in thin.parameters())


def test_the_channels_with_the_least_weight_go(net, few):
    marked, loud = torch.arange(48) % 2 == 0, channels.fresh(net, 1)
    with torch.no_grad():
        loud.features[2][0].weight[marked] *= 100
        kept = loud.features[2][0].weight[marked].clone()
    batch = [next(few.batches("train", 4).epoch())]
    thin = channels.pruned(loud, 0.5, "sum of weights (L1)", batch, "features.2.0")
    assert torch.equal(thin.features[2][0].weight, kept)
    assert thin.features[1][0].out_channels == 48, "of that layer alone"


def test_from_scratch_has_the_shapes_and_nothing_else(net):
    new = channels.fresh(net, 1)
    assert [p.shape for p in new.parameters()] == [p.shape for p in net.parameters()]
    assert not torch.equal(new.features[0][0].weight, net.features[0][0].weight)
    assert torch.equal(new.features[0][0].weight, channels.fresh(net, 1).features[0][0].weight)


# --- a teacher -----------------------------------------------------------------------------------


def test_without_the_teachers_share_it_is_training_as_ever(few):
    """The labels' rows, class and logits, must be taken apart rightly: the weights tell."""
    trained = []
    taught = distil.taught(few, torch.randn(len(few.train), 10))
    for data, loss in ((few, None), (taught, distil.lesson(3.0, 0.0))):
        torch.manual_seed(0)
        student = distil.Student(10)
        history = fit(student, data, replace(BRIEF, precision="fp32"), loss=loss, what=None)
        trained.append((student.classifier[2].weight, history.epochs["train_accuracy"].tolist()))
    assert torch.allclose(trained[0][0], trained[1][0], atol=1e-5)
    assert trained[0][1] == trained[1][1]


def test_the_loss_pulls_towards_the_teacher():
    torch.manual_seed(0)
    logits, teacher = torch.zeros(8, 10, requires_grad=True), torch.randn(8, 10)
    labels = torch.cat([torch.zeros(8, 1), teacher], 1)
    distil.lesson(2.0, 1.0)(logits, labels).backward()
    target = F.softmax(teacher / 2, 1)
    expected = 2.0 * (0.1 - target) / 8  # temperature times the difference of the shares
    assert torch.allclose(logits.grad, expected, atol=1e-6)


class Brightness:
    """A teacher whose logit is the mean of the image's left half; it counts its questions."""

    def __init__(self, path: Path):
        self.path, self.asked = path, 0
        path.write_bytes(b"teacher")

    def predict(self, batches, *, what=None):
        self.asked += 1
        told = [(images[..., :16].mean((1, 2, 3)), labels) for images, labels in batches]
        logits, labels = zip(*told, strict=True)
        return torch.cat(logits)[:, None], torch.cat(labels)


def test_the_teacher_is_asked_once_for_an_image_and_its_mirror_image(few, tmp_path):
    teacher = Brightness(tmp_path / "teacher.onnx")
    told = distil.answers(teacher, few, few.train, tmp_path)
    images = torch.cat([x for x, _ in few.batches(few.train, 50)])
    assert torch.allclose(told[:, 0], images.mean((1, 2, 3)), atol=1e-5)
    assert torch.equal(distil.answers(teacher, few, few.train, tmp_path), told)
    assert teacher.asked == 2
    distil.answers(teacher, few, Split(few.train.images[:20], few.train.labels[:20]), tmp_path)
    assert teacher.asked == 4, "other images are other answers"


def test_the_pairs_to_try_differ_in_one_thing():
    assert distil.lessons([1, 4, 8], [0.9, 0.5]) == [(1, 0.9), (4, 0.9), (8, 0.9), (4, 0.5)]


# --- bytes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def int8(drawn, tmp_path_factory):
    """A student in INT8, its biases and statistics not those of a fresh network."""
    torch.manual_seed(0)
    student, folder = distil.Student(10), tmp_path_factory.mktemp("int8")
    for norm in (m for m in student.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias)
    some = torch.cat([x for x, _ in drawn.batches(drawn.val, 50)])[:50].contiguous()
    model = runtime.Model(export.to_onnx(student.eval(), folder / "float.onnx"))
    return quantize.Source(model, some, folder).make(quantize.Recipe()), some.numpy()


def test_the_students_file_keeps_within_mlperf_tinys_bytes_and_says_the_same(int8, tmp_path):
    model, images = int8
    stripped = runtime.Model(pack.strip(model.path, tmp_path / "small.onnx"))
    assert stripped.path.stat().st_size <= pack.MLPERF
    assert (stripped.run(images) == model.run(images)).all()
    assert stripped.input.name == model.input.name
    assert stripped.metadata == model.metadata
    assert b"stack_trace" in model.path.read_bytes()
    assert b"stack_trace" not in stripped.path.read_bytes()


def test_where_the_bytes_are_adds_up(int8):
    model, _ = int8
    parts = pack.breakdown(model.path)
    assert parts.drop("file").sum() == parts["file"] == model.path.stat().st_size
    stored = onnx.load(model.path).graph.initializer
    many = sum(t.dims[0] * t.dims[1] for t in stored if len(t.dims) == 4) * 9
    assert many < parts["weights"] < many + 1000  # and the last layer


def test_a_layer_has_as_many_values_as_asked_for(net):
    shared = pack.shared(net, 16)
    for module, _ in prune.weights(shared):
        assert len(module.weight.unique()) <= 16
    one, other = net.features[4][0].weight, shared.features[4][0].weight
    assert (one - other).abs().mean() < 0.2 * one.abs().mean()


# --- all of them ---------------------------------------------------------------------------------


def test_the_course_is_read_from_what_it_published():
    table = front.course()
    assert table.loc["capstone, INT8", "size_mb"] < table.loc["capstone, ONNX Runtime", "size_mb"]
    assert 0.8 < table.loc["capstone, INT8", "accuracy"] < 0.9
    assert table.loc["Lite0, fp32", "size_mb"] > 3 * table.loc["Lite0, INT8", "size_mb"] > 10
    assert table.loc["vgg16", "size_mb"] == pytest.approx(553, abs=1)
    assert pd.isna(table.loc["vgg16", "accuracy"]), "nobody asked it about CIFAR-10"


def test_without_a_clone_only_the_reports_are_there(tmp_path, monkeypatch):
    """As in Colab, where the package comes alone."""
    monkeypatch.setattr("cvlab.lessons.smaller.front.project_root", lambda: tmp_path)
    table = front.course()
    assert set(table["kind"]) == {"reports"}


def test_nothing_beats_what_is_on_the_front(tmp_path):
    columns = {"accuracy": [0.7, 0.9, 0.8, None, 0.9], "size_mb": [1.0, 3.0, 4.0, 0.1, 5.0]}
    table = pd.DataFrame(columns, index=[*"abcde"])
    assert list(front.frontier(table, "size_mb").index) == ["a", "b"]


def test_the_slider_shows_another_picture():
    columns = {way: [0.8, 0.5] for way in prune.WAYS} | {"bytes": [900, 900], "zipped": [800, 90]}
    columns |= {"latency_ms": [0.4, 0.4], "p10": [0.3, 0.3], "p90": [0.5, 0.5]}
    box = figures.explore(pd.DataFrame(columns, index=[0.0, 0.9]))
    before = box.children[-1].value
    box.children[0].value = 0.9
    assert box.children[-1].value != before
