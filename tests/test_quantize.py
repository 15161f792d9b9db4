"""INT8: every rung works, a kept layer stays in float, what cannot be quantised says why."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from cvlab import export, metrics, runtime, store
from cvlab.data import load
from cvlab.lessons.engines import deploy
from cvlab.lessons.int8 import figures, ladder, quantize, sensitivity
from cvlab.models import SmallCNN


class Uneven(nn.Module):
    """Three convolutions; one channel of the middle, depthwise one has weights 300 times as large.

    What it is given is as much smaller, so it matters no more than the other 15.
    """

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 16, 3, 2)
        self.middle, self.head = nn.Conv2d(16, 16, 3, groups=16), nn.Linear(576, 10)
        with torch.no_grad():
            self.middle.weight[0] *= 300
            self.first.weight[0] /= 300
            self.first.bias[0] /= 300
            self.head.weight *= 30

    def forward(self, x):
        x = self.middle(self.first(x).relu()).relu()
        return self.head(self.last(x).relu().flatten(1))


def images(n, seed=0):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def batches(given, size):
    labels = torch.arange(len(given)) % 10
    return list(zip(given.split(size), labels.split(size), strict=True))


def source_of(model, folder, **about):
    torch.manual_seed(0)
    path = export.to_onnx(model.eval(), folder / "net.onnx", about=about)
    return quantize.Source(runtime.Model(path), images(32), folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    torch.manual_seed(0)
    model = SmallCNN(10)
    for _ in range(3):  # running statistics of its batch normalisation
        model.train()(images(64))
    return source_of(model, tmp_path_factory.mktemp("small"), classes='["a"]')


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    torch.manual_seed(0)
    return source_of(Uneven(), tmp_path_factory.mktemp("uneven"))


@pytest.fixture(scope="module")
def some():
    return batches(images(100, 1), 25)


def kl(source, recipe, some, **how):
    made = source.make(recipe, **how)
    return ladder.divergence(source.float_model.predict(some)[0], made.predict(some)[0])


# --- the rungs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", quantize.LADDER)
def test_every_rung_is_small_and_near_its_float(small, some, name):
    recipe = quantize.LADDER[name]
    made = small.make(recipe)
    assert ladder.megabytes(made.path) < 0.4 * ladder.megabytes(small.float_model.path)
    assert kl(small, recipe, some) < 0.01
    assert made.classes == ["a"]
    assert made.metadata["int8"] == str(recipe)


def test_the_ladder_is_one_table_with_the_float_model_first(small, some):
    recipes = {
        name: quantize.LADDER[name] for name in ("dynamic, per tensor", "static, per channel")
    }
    table, logits, models = ladder.ladder(small, recipes, some, check=25)
    assert [*table.index] == [*logits] == [*models] == ["fp32", *recipes]
    assert table.loc["fp32", ["agreement", "drop_pp", "kl", "unoptimised"]].tolist() == [1, 0, 0, 1]
    assert (table["unoptimised"] > 0.9).all()
    speeds = ladder.speed(models, images(4).numpy(), 1, rounds=6)
    assert speeds.loc["fp32", "speedup"] == 1
    assert (speeds[["latency_ms", "throughput"]] > 0).all(axis=None)


def test_a_weight_is_off_by_half_a_step_at_most():
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    weight[0] *= 100
    weight[1] = 0
    for axis, scales in ((0, 4), (None, 1)):
        integers, scale = quantize.quantize_weight(weight, axis)
        assert integers.dtype == np.int8
        assert scale.size == scales
        back = integers * scale.reshape((-1, 1, 1, 1) if axis == 0 else ())
        assert (np.abs(back - weight) <= scale.reshape(-1, 1, 1, 1) / 2 + 1e-6).all()
    assert np.abs(integers[2:]).max() < 8, "one scale leaves the other channels a few levels"


def test_for_any_cpu_weights_have_seven_bits_where_sums_have_sixteen(uneven, small):
    def largest(name, **how):
        with warnings.catch_warnings(action="ignore"):  # of target "vnni" where there is no VNNI
            content = onnx.load(uneven.make(quantize.Recipe(**how)).path)
        (found,) = [one for one in content.graph.initializer if one.name == f"{name}_quantized"]
        said = {entry.key: entry.value for entry in content.metadata_props}["int8_target"]
        return np.abs(numpy_helper.to_array(found).astype(int)).max(), said

    for how in ({}, {"per_channel": False}, {"activations": "int8"}):
        assert largest("last.weight", **how) in ((63, "any"), (64, "any"))
        assert largest("middle.weight", **how) == (127, "any"), "depthwise"
        assert largest("last.weight", target="vnni", **how) == (127, "vnni")
    dynamic = small.make(quantize.Recipe("dynamic", per_channel=False, target="vnni"))
    assert dynamic.metadata["int8_target"] == "any", "uint8 weights are right everywhere"


def test_a_file_for_vnni_warns_where_there_is_none(small, tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(runtime, "saturates", lambda: False)
    made = small.make(quantize.Recipe(target="vnni"), tmp_path / "vnni.onnx")
    monkeypatch.setattr(runtime, "saturates", lambda: True)
    small.make(quantize.Recipe(), tmp_path / "any.onnx")
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"vnni.onnx .* may saturate .* target 'any'"):
        runtime.Model(made.path)


def one_convolution(activation, weight, groups):
    """An INT8 model as `Recipe` makes it, half extreme and half random integers, NumPy's answer.

    Args:
        activation: np.uint8 or np.int8, or None for "dynamic".
        weight: the largest integer of a weight.
    """
    low, high = (-128, 127) if activation is np.int8 else (0, 255)
    pick = np.random.default_rng(0)
    x = pick.choice([low, high, high, high], (2, 32, 7, 7))
    x[1] = pick.integers(low, high + 1, x[1].shape)
    kernel = np.where(pick.random((32, 32 // groups, 3, 3)) < 0.8, weight, -weight)
    kernel[1::2] = pick.integers(-weight, weight + 1, kernel[1::2].shape)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    windows = windows.reshape(2, groups, 32 // groups, 5, 5, 3, 3)
    split = kernel.reshape(groups, 32 // groups, -1, 3, 3)
    truth = np.einsum("ngchwij,gocij->ngohw", windows, split).reshape(2, 32, 5, 5)
    step = np.float32(1 if activation is None else 2.0 ** np.ceil(np.log2(abs(truth).max() / 120)))
    stored = {"one": np.float32(1), "step": step}
    if activation is None:
        stored |= {"w": (kernel + 128).astype(np.uint8), "x0": np.uint8(0), "w0": np.uint8(128)}
        nodes = [helper.make_node("ConvInteger", ["x", "w", "x0", "w0"], ["y"], group=groups)]
        kinds = onnx.TensorProto.UINT8, onnx.TensorProto.INT32
    else:
        stored |= {"x0": activation(0), "w": kernel.astype(np.int8), "w0": np.int8(0)}
        stored["y0"] = activation(128 if low == 0 else 0)
        chain = [("Q", "x", "one", "x0"), ("D", "Q_x", "one", "x0"), ("D", "w", "one", "w0")]
        chain += [("Q", "sum", "step", "y0"), ("D", "Q_sum", "step", "y0")]
        names = {"Q": "QuantizeLinear", "D": "DequantizeLinear"}
        nodes = [helper.make_node(names[k], given, [f"{k}_{given[0]}"]) for k, *given in chain]
        nodes.insert(3, helper.make_node("Conv", ["D_Q_x", "D_w"], ["sum"], group=groups))
        nodes[-1].output[0] = "y"
        kinds = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(*one, None) for one in zip("xy", kinds, strict=True)]
    arrays = [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "one", ends[:1], ends[1:], arrays)
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return (
        content,
        x.astype(np.uint8 if activation is None else np.float32),
        np.round(truth / step) * step,
    )


@pytest.mark.parametrize(
    ("activation", "weight", "groups", "anywhere"),
    [
        (np.uint8, 64, 1, True),  # what target "any" makes
        (np.uint8, 127, 32, True),  # and of depthwise convolutions
        (np.int8, 64, 1, True),
        (np.int8, 127, 32, True),
        (None, 127, 1, True),  # dynamic
        (np.uint8, 127, 1, False),  # what target "vnni" makes
        (np.int8, 127, 1, False),
    ],
)
def test_sums_are_those_of_integers(tmp_path, activation, weight, groups, anywhere):
    """On this machine: ONNX Runtime was wrong on some with VNNI (27671), is without (24220)."""
    content, x, truth = one_convolution(activation, weight, groups)
    onnx.save(content, tmp_path / "one.onnx")
    session = runtime.session(tmp_path / "one.onnx", write_to=tmp_path / "rewritten.onnx")
    (got,) = session.run(None, {"x": x})
    rewritten = {node.op_type for node in onnx.load(tmp_path / "rewritten.onnx").graph.node}
    assert rewritten & {"QLinearConv", "ConvInteger"}, "computed in integers"
    assert np.array_equal(got, truth) == (anywhere or not runtime.saturates())


def test_one_scale_for_uneven_channels_is_the_damage_not_the_calibration(uneven, some):
    rungs = {name: kl(uneven, recipe, some) for name, recipe in quantize.LADDER.items()}
    for kind in ("weights only", "static"):
        assert rungs[f"{kind}, per tensor"] > 3 * rungs[f"{kind}, per channel"]


def test_ranges_are_found_once(small, some, monkeypatch):
    kept = quantize.Recipe(keep=(list(small.layers)[2],))
    small.make(quantize.Recipe())
    monkeypatch.setattr(quantize, "calibrate", lambda *_: pytest.fail("calibrated again"))
    again = quantize.Source(small.float_model, images(32), small.folder.parent)
    assert kl(again, kept, some) < 0.01
    with pytest.raises(pytest.fail.Exception):  # other images have other ranges
        quantize.Source(small.float_model, images(32, 5), small.folder.parent).make(kept)


def test_percentiles_cut_what_min_max_keeps(small):
    def width(kind):
        content = quantize.ort_quantization.load_tensors_data(small.ranges(kind))
        return sum((r.range_value[1] - r.range_value[0]).item() for r in content.data.values())

    assert width("percentile 99.9") < width("percentile 99.99") < width("min-max")


def test_the_int8_network_goes_behind_pixels(tmp_path):
    """The deployable folder of 05 takes an INT8 file as it takes a float one."""
    torch.manual_seed(0)
    stored = store.Stored(
        SmallCNN(10).eval(), list("abcdefghij"), [0.5] * 3, [0.2] * 3, None, "bilinear"
    )
    path = export.to_onnx(stored.model, tmp_path / "net.onnx", about=export.about(stored))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    seen = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.2
    source = quantize.Source(runtime.Model(path), seen, tmp_path)
    made = source.make(quantize.Recipe(), tmp_path / "int8.onnx")
    folder = deploy.package(made.path, tmp_path / "folder")
    found = runtime.Model(folder / "model.onnx").run(pixels)
    expected = torch.from_numpy(made.run(seen.numpy())).softmax(1)
    assert torch.allclose(torch.from_numpy(found), expected, atol=0.02)


# --- a layer in float ----------------------------------------------------------------------------


def test_a_kept_layer_stays_in_float_when_the_model_is_loaded(uneven, some):
    """Unpinned, ONNX Runtime quantises it per tensor on loading; if that ends, `pin` may go."""
    middle = quantize.Recipe(keep=(list(uneven.layers)[1],))
    pinned, excluded = (kl(uneven, middle, some, pinned=pin) for pin in (True, False))
    assert excluded > 3 * pinned
    made = uneven.make(middle, pinned=False)
    assert ladder.unoptimised(made, some, made.predict(some)[0]) < 0.98
    made = uneven.make(middle)
    assert ladder.unoptimised(made, some, made.predict(some)[0]) > 0.98


def test_a_layer_is_a_node_and_its_activation(tmp_path):
    class Swish(nn.Sequential):
        def forward(self, x):
            x = nn.functional.silu(self[0](x))
            return self[1](x).clamp(0, 6).mean((2, 3))

    found = source_of(Swish(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3)), tmp_path).layers
    kinds = {node.name: node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    kinds = [[kinds.get(node, node) for node in nodes] for nodes in found.values()]
    assert [[kind.split("_")[0] for kind in nodes] for nodes in kinds] == [
        ["Conv", "Sigmoid", "Mul"],
        ["Conv", "Clip"],
    ]


def test_the_worst_layer_is_found_by_ranges_noise_and_leaving_it_out(uneven, some):
    names = sensitivity.titles(uneven.prepared)
    middle = list(uneven.layers)[1]
    levels = sensitivity.channel_ranges(uneven.prepared).groupby("layer")["levels"].median()
    assert levels.idxmin() == middle
    coarse, fine = (quantize.Recipe(per_channel=one) for one in (False, True))
    noise = sensitivity.sqnr(uneven, uneven.make(coarse))
    assert noise["weights"].idxmin() == middle
    assert noise.notna().all(axis=None)
    better = sensitivity.sqnr(uneven, uneven.make(fine))
    assert better.loc[middle, "weights"] > noise.loc[middle, "weights"] + 6
    gains = sensitivity.leave_one_out(uneven, coarse, some)
    assert gains.index[0] == middle
    assert gains["gain"].iloc[0] > 0.5
    assert gains.loc[middle, "title"] == names[middle] == "middle"


def test_leaving_out_goes_on_where_it_was_stopped(uneven, some, monkeypatch):
    done, real = [], uneven.make

    def stopping(recipe, *path):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(recipe)
        return real(recipe, *path)

    recipe, few = quantize.Recipe(), ladder.first(some, 50)
    monkeypatch.setattr(uneven, "make", stopping)
    with pytest.raises(KeyboardInterrupt):
        sensitivity.leave_one_out(uneven, recipe, few)
    monkeypatch.setattr(uneven, "make", lambda *given: done.append(given[0]) or real(*given))
    table = sensitivity.leave_one_out(uneven, recipe, few)
    assert len(table) == 4
    assert len(done) == len(set(done)) == 5, "each recipe is measured once"


def test_a_damaged_journal_is_measured_again(tmp_path):
    (tmp_path / "j.json").write_text('{"a": {"x"')
    journal = sensitivity.Journal(tmp_path / "j.json")
    assert journal.row("a", lambda: {"x": 1}) == {"x": 1}
    assert sensitivity.Journal(tmp_path / "j.json").row("a", pytest.fail) == {"x": 1}


# --- measures ------------------------------------------------------------------------------------


def test_a_paired_drop_counts_only_what_changed():
    labels = torch.zeros(1000, dtype=torch.long)
    right, wrong = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    one = torch.where((torch.arange(1000) < 900)[:, None], right, wrong)
    other = torch.where((torch.arange(1000) < 880)[:, None], right, wrong)
    drop, low, high = metrics.paired_drop(one, other, labels)
    assert drop == pytest.approx(0.02)
    assert 0.01 < low < drop < high < 0.03
    separate = metrics.score(one, labels).interval, metrics.score(other, labels).interval
    assert separate[0][0] < separate[1][1], "two separate intervals would overlap"
    assert metrics.paired_drop(other, one, labels)[0] == pytest.approx(-0.02)
    same, low, high = metrics.paired_drop(one, one, labels)
    assert same == 0
    assert low < 0 < high


def test_divergence_sees_what_accuracy_does_not():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    assert ladder.divergence(logits, logits + 5) == pytest.approx(0, abs=1e-9)
    assert ladder.divergence(logits, logits / 2) > 0.05


def test_more_calibration_is_drawn_from_the_pool(small, some, tmp_path):
    table = ladder.by_calibration(small.float_model, images(40), [4, 16], some, tmp_path, draws=2)
    assert table["images"].tolist() == [4, 4, 16, 16]
    assert table["kl"].nunique() == 4, "every draw has images of its own"


def test_what_is_kept_in_memory_is_what_batches_feed():
    data = load("cifar10", "synthetic", n_train=50)
    fed = data.batches(data.train, 8)
    kept = ladder.in_memory(fed)
    assert len(kept) == len(fed)
    assert all(
        torch.equal(a, c) and torch.equal(b, d)
        for (a, b), (c, d) in zip(kept, fed.epoch(), strict=True)
    )
    assert torch.equal(ladder.stacked(fed), torch.cat([images for images, _ in kept]))
    few = ladder.first(kept, 20)
    assert len(ladder.stacked(few)) == 24, "whole batches: some models take nothing else"
    assert ladder.digest(few) != ladder.digest(kept)


def test_the_widget_shows_the_chosen_rung():
    logits = {"a": torch.eye(3), "b": torch.eye(3).flip(0)}
    box = figures.explore(logits, torch.arange(3), ["x", "y", "z"], {"a": 4.0, "b": 1.0})
    before = box.children[-1].value
    box.children[0].value = "b"
    assert box.children[-1].value != before


# --- what cannot be quantised --------------------------------------------------------------------


def graph(path, nodes, inputs, outputs, initializers=()):
    made = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(made, opset_imports=opset, ir_version=9), path)
    return path


def tensor(name, *shape, kind=onnx.TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def test_an_int8_model_is_not_quantised_twice(small, tmp_path):
    for name in ("dynamic, per tensor", "static, per channel", "weights only, per channel"):
        with pytest.raises(quantize.QuantizeError, match="quantised already"):
            quantize.Source(small.make(quantize.LADDER[name]), images(8), tmp_path)


def test_a_model_without_weights_says_what_it_has(tmp_path):
    shape = ("n", 3, 32, 32)
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    path = graph(tmp_path / "m.onnx", relu, [tensor("x", *shape)], [tensor("y", *shape)])
    with pytest.raises(quantize.QuantizeError, match=r"nothing to quantise.*Relu"):
        quantize.Source(runtime.Model(path), images(8), tmp_path)


def test_inputs_that_calibration_cannot_fill_are_named(tmp_path):
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    product = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    flat = graph(
        tmp_path / "f.onnx", product, [tensor("x", "n", 4)], [tensor("y", "n", 4)], [weight]
    )
    both = [
        helper.make_node("Add", ["x", "z"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    given = [tensor("x", "n", 3, 4, 4), tensor("z", "n", 3, 4, 4)]
    two = graph(tmp_path / "t.onnx", both, given, [tensor("y", "n", 3, 4, 4)], [weight])
    none = [helper.make_node("MatMul", ["w", "w"], ["y"])]
    empty = graph(tmp_path / "e.onnx", none, [], [tensor("y", 4, 4)], [weight])
    for path, named in ((flat, "x"), (two, "z"), (empty, "none")):
        with pytest.raises(quantize.QuantizeError, match=rf"inputs .*{named}.*exactly one"):
            quantize.Source(runtime.Model(path), images(8), tmp_path)


def test_a_model_that_takes_pixels_is_sent_back_to_fp32(tmp_path):
    torch.manual_seed(0)
    stored = store.Stored(
        SmallCNN(10).eval(), list("abcdefghij"), [0.5] * 3, [0.2] * 3, None, "bilinear"
    )
    path = export.to_onnx(stored.model, tmp_path / "net.onnx", about=export.about(stored))
    pixels = runtime.Model(deploy.with_pixels(path, tmp_path / "p.onnx"))
    with pytest.raises(quantize.QuantizeError, match="with_pixels"):
        quantize.Source(pixels, images(8), tmp_path)


def test_images_of_another_shape_are_refused(small, tmp_path):
    with pytest.raises(ValueError, match="was given; this model takes"):
        quantize.Source(small.float_model, torch.zeros(8, 1, 28, 28), tmp_path)


def test_a_fixed_batch_is_kept(tmp_path, some):
    torch.manual_seed(0)
    path, fixed = tmp_path / "net.onnx", tmp_path / "fixed.onnx"
    torch.onnx.export(SmallCNN(10).eval(), (images(4),), fixed, verbose=False, external_data=False)
    model = runtime.Model(fixed)
    assert model.batch_size(25) == 4
    source = quantize.Source(model, images(30), tmp_path)
    assert len(source.images) == 28
    fours = batches(ladder.stacked(some), 4)
    for recipe in quantize.LADDER.values():
        assert kl(source, recipe, fours) < 0.01
    assert not path.exists()


def test_unknown_choices_list_what_there_is(small):
    with pytest.raises(quantize.QuantizeError, match="min-max"):
        quantize.Recipe(ranges="max")
    with pytest.raises(quantize.QuantizeError, match="no layer stem; choose of"):
        small.make(quantize.Recipe(keep=("stem",)))


def test_a_full_disk_leaves_the_older_model(small, tmp_path, monkeypatch):
    path = small.make(quantize.Recipe(), tmp_path / "m.onnx").path
    before = path.read_bytes()

    def full(content, file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantize.onnx, "save", full)
    with pytest.raises(OSError, match="No space"):
        small.make(quantize.LADDER["weights only, per tensor"], path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
