"""Classifiers that nobody here made: what they want is found, or what is wrong is said."""

import json
from dataclasses import replace

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from cvlab import export, runtime, store
from cvlab.data import Split, load
from cvlab.lessons.engines import deploy
from cvlab.lessons.int8.quantize import QuantizeError, Recipe, Source
from cvlab.lessons.smaller import prune
from cvlab.models import SmallCNN
from cvlab.tools import cli, examine, quantize
from cvlab.train import Training, predict

EXAMPLE = torch.zeros(2, 3, 32, 32)


@pytest.fixture(scope="module")
def data():
    drawn = load("cifar10", "synthetic")
    return replace(drawn, val=drawn.train.take(1000))  # enough to tell two swapped classes


@pytest.fixture(scope="module")
def few(data):
    """Enough where no accuracy is asked for."""
    return replace(data, val=data.val.take(100))


@pytest.fixture(scope="module")
def right(taught, data):
    """The share of the validation images that the network is right on, fed as ours."""
    logits, labels = predict(taught, data.batches("val", 100))
    return (logits.argmax(1) == labels).double().mean().item()


class Fed(nn.Module):
    """The network behind another way of feeding, its outputs in another order."""

    def __init__(self, net, data, mean=None, std=None, order=tuple(range(10))):
        super().__init__()
        self.net, self.order = net, list(order)
        shape = (1, 3, 1, 1)
        ours = [torch.tensor(values).reshape(shape) for values in (data.mean, data.std)]
        theirs = [torch.tensor(v).reshape(shape) for v in (mean or data.mean, std or data.std)]
        self.scale, self.shift = theirs[1] / ours[1], (theirs[0] - ours[0]) / ours[1]

    def forward(self, x):
        return self.net(x * self.scale + self.shift)[:, self.order]


def exported(net, path, about=None, **options):
    torch.onnx.export(
        net.eval(), (EXAMPLE,), path, **{"dynamo": False, "verbose": False, **options}
    )
    if about:
        content = onnx.load(path)
        helper.set_model_props(content, about)
        onnx.save(content, path)
    return path


def any_batch(**options):
    return {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}, **options}


def looked_at(path, data, tmp_path, **stated):
    return examine.examine(path, data, tmp_path / "made", stated)


def as_ours(data):
    """Stated, so that nothing has to be tried."""
    return {"mean": data.mean, "std": data.std, "order": "rgb"}


SWAPPED = (1, 0, *range(2, 10))
REVERSED = tuple(range(9, -1, -1))


@pytest.mark.parametrize(
    "how",
    [
        {"order": REVERSED},
        {"order": SWAPPED},
        {"mean": (0.0,) * 3, "std": (1.0,) * 3},
        {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "order": REVERSED},
        {},
    ],
    ids=["reversed", "swapped", "0 to 1", "both at once", "as ours"],
)
def test_how_a_network_is_fed_is_found(taught, data, right, tmp_path, how):
    """Each was quantised before as if it were fed as ours, ended at 19 to 84 %, and passed."""
    path = exported(Fed(taught, data, **how), tmp_path / "net.onnx", **any_batch())
    found = looked_at(path, data, tmp_path)
    order = how.get("order", range(10))
    assert found.view.classes == [data.classes[i] for i in order]
    logits, labels = found.model.predict(found.view.batches("val", 100))
    assert abs((logits.argmax(1) == labels).double().mean().item() - right) < 0.005
    assert json.loads(found.model.metadata["classes"]) == found.view.classes
    assert found.model.metadata["order"] == "rgb"


def test_the_order_of_channels_is_found(data, tmp_path):
    """Drawings have random colours: here red alone tells the class."""
    images = torch.full_like(data.val.images, 128)
    images[:, 0] = 25 * data.val.labels[:, None, None]
    painted = replace(data, val=Split(images, data.val.labels))

    class Red(nn.Module):
        def forward(self, x):
            return -((x[:, 2].mean((1, 2))[:, None] - torch.arange(10) * 25 / 255) ** 2)

    path = exported(Red(), tmp_path / "net.onnx", **any_batch())
    found = looked_at(path, painted, tmp_path, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert found.model.metadata["order"] == "bgr"
    assert found.view.classes == data.classes
    assert torch.equal(found.view.val.images, images.flip(1))


def test_what_the_file_says_is_taken_in_any_spelling(taught, data, tmp_path):
    names = ["frog", "plane", "car", "bird", "cat", "deer", "dog", "horse", "ship", "truck"]
    meant = [6, 0, 1, 2, 3, 4, 5, 7, 8, 9]
    about = {"classes": ", ".join(names), "mean": "0.5", "std": "0.25, 0.25, 0.25"}
    fed = Fed(taught, data, (0.5,) * 3, (0.25,) * 3, order=meant)
    path = exported(fed, tmp_path / "net.onnx", about, **any_batch())
    view = looked_at(path, data, tmp_path).view
    assert view.classes == [data.classes[i] for i in meant]
    assert view.mean == (0.5,) * 3


def test_what_the_user_states_goes_before_what_the_file_says(taught, data, few, tmp_path):
    about = {"classes": json.dumps(data.classes)}
    path = exported(Fed(taught, data, order=REVERSED), tmp_path / "net.onnx", about, **any_batch())
    stated = tuple(reversed(data.classes))
    found = looked_at(path, few, tmp_path, classes=stated, **as_ours(data))
    assert found.view.classes == [*stated]


def test_a_stated_mean_is_taken_without_a_deviation(data):
    """Once it counted only beside one."""
    ways = examine._ways(data, {"mean": (0.1, 0.2, 0.3)})
    assert {mean for _, _, (mean, _) in ways} == {(0.1, 0.2, 0.3)}
    assert {std for _, _, (_, std) in ways} > {data.std, data.std[::-1]}


def test_where_nothing_fits_it_says_what_was_tried(data, tmp_path):
    path = exported(SmallCNN(10).eval(), tmp_path / "net.onnx", **any_batch())
    with pytest.raises(QuantizeError, match=r"near guessing.*ImageNet's, bgr.*--mean"):
        looked_at(path, data, tmp_path)


def as_floats(path, kind):
    """All weights, the input and the output in another precision."""
    content, made = (
        onnx.load(path),
        TensorProto.DOUBLE if kind == "float64" else TensorProto.FLOAT16,
    )
    for tensor in content.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), tensor.name)
            )
    for one in (*content.graph.input, *content.graph.output):
        one.type.tensor_type.elem_type = made
    onnx.save(content, path)


def in_constants(path):
    """Every weight in a Constant node."""
    content = onnx.load(path)
    for tensor in [*content.graph.initializer]:
        node = helper.make_node("Constant", [], [tensor.name], value=tensor)
        content.graph.node.insert(0, node)
        content.graph.initializer.remove(tensor)
    onnx.save(content, path)


FORMS = {
    "weights beside it": ({"dynamo": True, "external_data": True}, None, "taken in"),
    "opset 11": (any_batch(opset_version=11), None, "opset 11 made 13"),
    "weights as inputs": (any_batch(keep_initializers_as_inputs=True), None, "no inputs"),
    "float16": (any_batch(), lambda path: as_floats(path, "float16"), "float32"),
    "float64": (any_batch(), lambda path: as_floats(path, "float64"), "float32"),
    "constants": (any_batch(), in_constants, ""),
}


def test_zeros_are_counted(taught, data, few, tmp_path):
    sparse = prune.pruned(taught, 0.3, "not trained again", data, Training())
    found = looked_at(exported(sparse, tmp_path / "net.onnx"), few, tmp_path, **as_ours(data))
    assert found.about["zeros"] == "30% of the weights"


@pytest.mark.parametrize("form", FORMS)
def test_ordinary_forms_can_be_quantised(taught, data, few, tmp_path, form):
    options, change, said = FORMS[form]
    path = exported(taught, tmp_path / "net.onnx", **options)
    if change:
        change(path)
    found = looked_at(path, few, tmp_path, **as_ours(data))
    assert said in found.about["made readable"]
    images = torch.cat([x for x, _ in found.view.batches(data.train.take(32), 2)])
    made = Source(found.model, images.contiguous(), tmp_path).make(Recipe())
    assert made.path.stat().st_size < 300_000  # 0.9 MB in float


def test_what_stands_behind_preprocessing_is_quantised(taught, data, tmp_path):
    """Our own deployed form, which takes pixels, and a network that takes channels last."""
    stored = store.Stored(taught, data.classes, data.mean, data.std, None, "bilinear")
    file = export.to_onnx(taught, tmp_path / "net.onnx", about=export.about(stored))
    deploy.with_pixels(file, tmp_path / "pixels.onnx")
    last = Ends(taught, lambda net, x: net(x.permute(0, 3, 1, 2))).eval()
    options = any_batch(verbose=False, dynamo=False)
    torch.onnx.export(last, (EXAMPLE.permute(0, 2, 3, 1),), tmp_path / "last.onnx", **options)
    for name in ("pixels", "last"):
        found = looked_at(tmp_path / f"{name}.onnx", data, tmp_path, **as_ours(data))
        assert "taken off" in found.about["made readable"]
        assert found.model.input.shape[1:] == [3, 32, 32]
        some = data.val.take(200)
        logits = found.model.predict(found.view.batches(some, 50))[0]
        plain = predict(taught, data.batches(some, 50), precision="fp32")[0]
        assert torch.equal(logits.argmax(1), plain.argmax(1))


def test_a_weight_in_a_side_file_is_part_of_what_ranges_are_kept_for(taught, few, tmp_path):
    """Ranges of one network were used for another whose `.onnx` is the same."""
    made = []
    for factor in (1, 1.5):
        torch.manual_seed(0)
        changed = SmallCNN(10).eval()
        changed.load_state_dict(
            {k: v * factor if "classifier" in k else v for k, v in taught.state_dict().items()}
        )
        path = exported(changed, tmp_path / "net.onnx", dynamo=True, external_data=True)
        made.append(looked_at(path, few, tmp_path, **as_ours(few)).model.path)
    assert made[0] != made[1]


class Ends(nn.Module):
    def __init__(self, net, end):
        super().__init__()
        self.net, self.end = net, end

    def forward(self, x):
        return self.end(self.net, x)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda net, x: net(x).argmax(1), r"int64.*must be logits"),
        (lambda net, x: (net.features(x), net(x)), r"must be logits.*with them first"),
        (lambda net, x: net(x)[:, :7], r"must be logits or probabilities, \[N, 10\]"),
    ],
    ids=["argmax", "features", "seven classes"],
)
def test_an_output_that_is_no_class_scores_is_named(taught, data, tmp_path, end, message):
    path = exported(Ends(taught, end), tmp_path / "net.onnx", **any_batch())
    with pytest.raises(QuantizeError, match=message):
        looked_at(path, data, tmp_path)


def test_a_batch_size_without_a_name_is_free(taught, few, tmp_path):
    """ONNX Runtime calls it None."""
    content = onnx.load(exported(taught, tmp_path / "named.onnx", **any_batch()))
    for one in (*content.graph.input, *content.graph.output):
        one.type.tensor_type.shape.dim[0].Clear()
    onnx.save(content, tmp_path / "net.onnx")
    found = looked_at(tmp_path / "net.onnx", few, tmp_path, **as_ours(few))
    assert found.model.run(EXAMPLE.numpy()).shape == (2, 10)


def test_inputs_that_are_no_images_are_refused_at_once(data, tmp_path):
    net = nn.Sequential(nn.Linear(3072, 10))
    path = tmp_path / "net.onnx"
    torch.onnx.export(net, (torch.zeros(2, 3072),), path, dynamo=False, **any_batch())
    with pytest.raises(ValueError, match=r"\[25, 3, 32, 32\] was given"):
        looked_at(path, data, tmp_path)


def test_a_network_in_training_mode_is_refused(taught, data, tmp_path):
    training = torch.onnx.TrainingMode.TRAINING
    path = exported(
        taught, tmp_path / "net.onnx", **any_batch(training=training, do_constant_folding=False)
    )
    with pytest.raises(QuantizeError, match=r"training mode.*model\.eval"):
        looked_at(path, data, tmp_path)
    taught.eval()


def test_missing_weights_are_not_called_a_damaged_file(taught, tmp_path):
    path = exported(taught, tmp_path / "net.onnx", dynamo=True, external_data=True)
    path.with_name("net.onnx.data").unlink()
    with pytest.raises(runtime.ModelError, match="keep that in the same folder"):
        runtime.Model(path)


def test_a_network_that_has_seen_the_validation_images_is_judged_on_others(
    data, taught, tmp_path, capsys
):
    path = export.to_onnx(taught, tmp_path / "net.onnx")
    known = looked_at(path, data, tmp_path, **as_ours(data))
    assert quantize.unseen(known) is known.view
    answers = nn.functional.one_hot(known.view.val.labels, 10).float()
    honest = known.model.predict

    def remembers(batches, **options):
        logits, labels = honest(batches, **options)
        return (answers, labels) if len(labels) == len(answers) else (logits, labels)

    known.model.predict = remembers
    view = quantize.unseen(known)
    assert len(view.val) == len(view.test) == len(data.test) / 2
    assert "trained on" in capsys.readouterr().out


def test_the_last_sentence_looks_at_test_images_and_speed(data, taught, tmp_path):
    import pandas as pd

    class Found:
        reached, max_drop = True, 0.2

        def __str__(self):
            return "found"

    row = {"n": 5000, "drop_pp": 0.4, "drop_low": 0.3, "drop_high": 0.5, "speedup": 0.66}
    made = quantize.Shrunk(Found(), pd.DataFrame([row, row]))
    assert not made.good
    assert "more than may be lost" in str(made)
    assert "only 0.66 times the speed" in str(made)


def test_inspect_says_what_a_file_is(taught, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cvlab.data.load", lambda *_: data)
    path = exported(Fed(taught, data, order=REVERSED), tmp_path / "net.onnx", **any_batch())
    assert cli.main(["inspect", str(path), "--where", "synthetic"]) == 0
    said = capsys.readouterr().out
    assert "classes          truck, ship" in said
    assert "Conv" in said
    for text in ("a,b", "0.5,0.5"):
        assert cli.main(["inspect", str(path), "--where", "synthetic", "--mean", text]) == 2
        assert "one number or three" in capsys.readouterr().err
