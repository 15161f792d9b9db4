"""The search finds the fewest layers, goes on after a stop, says so when it cannot; the command."""

import pandas as pd
import pytest
import torch
from torch import nn

from cvlab import export, runtime, store
from cvlab.data import load
from cvlab.lessons.int8 import quantize, shrink
from cvlab.models import SmallCNN
from cvlab.tools import cli


class Rehearsal:
    """Stands in for a source: `needed` layers must be kept until nothing is lost."""

    def __init__(self, folder, needed):
        self.folder, self.needed, self.float_model = folder, needed, None
        self.layers = {f"layer{i}": [] for i in range(20)}
        self.made = []

    def make(self, recipe):
        self.made.append(recipe)
        return recipe


SOME = [(torch.zeros(2, 1), torch.zeros(2))]  # a batch; the rehearsal does not look at it


@pytest.fixture
def rehearsal(tmp_path, monkeypatch):
    def begin(needed):
        source = Rehearsal(tmp_path, needed)

        def judged(recipe):
            lost = max(0.0, needed - len(recipe.keep))
            row = {"drop_pp": lost, "drop_low": lost - 0.1, "drop_high": lost + 0.1, "n": 1000}
            return row | {"kl": lost + (recipe.ranges != "percentile 99.9")}

        monkeypatch.setattr(shrink, "against", lambda model, batches: judged)
        order = pd.DataFrame(index=[*source.layers])
        monkeypatch.setattr(shrink, "leave_one_out", lambda *_, **__: order)
        return source

    return begin


@pytest.mark.parametrize("needed", [0, 1, 2, 5, 7, 10])
def test_the_fewest_layers_are_found(rehearsal, needed):
    found = shrink.search(rehearsal(needed), SOME, 0.2)
    assert found.reached
    assert found.recipe.keep == tuple(f"layer{i}" for i in range(needed))
    assert found.recipe.ranges == ("min-max" if needed == 0 else "percentile 99.9")
    assert "within the 0.2" in str(found)


def test_it_says_that_it_cannot(rehearsal):
    found = shrink.search(rehearsal(15), SOME, 0.2)
    assert not found.reached
    assert len(found.recipe.keep) == 10, "half of the layers, no more"
    assert "cannot be kept" in str(found)
    assert "5.00 points" in str(found)


def test_a_drop_within_its_error_of_the_limit_is_not_accepted(rehearsal):
    """A standard error is 0.05 here: 0 passes at 0.06, and not at 0.04."""
    assert not shrink.search(rehearsal(0), SOME, 0.04).reached
    assert shrink.search(rehearsal(0), SOME, 0.06).reached


def test_a_stopped_search_measures_nothing_twice(rehearsal, monkeypatch):
    source, calls = rehearsal(7), []
    real = shrink.against(None, SOME)

    def stopping(recipe):
        calls.append(recipe)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(recipe)

    monkeypatch.setattr(shrink, "against", lambda model, batches: stopping)
    with pytest.raises(KeyboardInterrupt):
        shrink.search(source, SOME, 0.2)
    found = shrink.search(source, SOME, 0.2)
    assert len(found.recipe.keep) == 7
    repeated = {recipe for recipe in calls if calls.count(recipe) > 1}
    assert repeated == {calls[6]}, "only what was under way is measured again"


@pytest.mark.parametrize("most", [1, 2, 7, 25])
def test_doubling_and_halving_ask_little(most):
    for needed in range(1, most + 1):
        asked = []
        assert shrink.fewest(lambda k: asked.append(k) or k >= needed, most) == needed  # noqa: B023
        assert max(asked) <= most
        assert len(asked) == len(set(asked)) <= 2 * most.bit_length()
    assert shrink.fewest(lambda k: False, most) is None


def test_a_limit_that_is_none_is_refused(rehearsal):
    for wrong in (-1, float("nan")):
        with pytest.raises(quantize.QuantizeError, match="percentage points"):
            shrink.search(rehearsal(0), SOME, wrong)


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory, taught):
    """A network that knows the stand-in, exported with what it needs to know."""
    folder, data = tmp_path_factory.mktemp("shrink"), load("cifar10", "synthetic")
    stored = store.Stored(taught, data.classes, data.mean, data.std, None, "bilinear")
    path = export.to_onnx(taught, folder / "net.onnx", about=export.about(stored))
    given = torch.zeros(8, 3, 32, 32)
    fixed = folder / "fixed.onnx"
    torch.onnx.export(taught, (given,), fixed, verbose=False, external_data=False)
    return path


def quantized(*arguments):
    return cli.main(["quantize", *map(str, arguments), "--where", "synthetic"])


def test_the_command_writes_a_model_and_a_table(trained, capsys, monkeypatch):
    opened, real = [], runtime.session
    monkeypatch.setattr(
        runtime, "session", lambda path, **asked: opened.append(path) or real(path, **asked)
    )
    out = trained.with_name("small.onnx")
    assert quantized(trained, "--max-drop", 3, "--out", out) == 0
    assert sum(path.name.startswith("net-") for path in opened) == 1, "it carries its session"
    said = capsys.readouterr().out
    assert "within the 3" in said
    assert "speedup" in said
    assert out.stat().st_size < 0.4 * trained.stat().st_size
    made = runtime.Model(out)
    assert "static" in made.metadata["int8"]
    assert made.metadata["int8_target"] == "any"
    assert made.classes[0] == "airplane"


def test_what_cannot_be_is_one_line(trained, tmp_path, capsys):
    damaged, foreign, untrained = (tmp_path / f"{name}.onnx" for name in "dfu")
    damaged.write_bytes(trained.read_bytes()[:1000])
    export.to_onnx(SmallCNN(7), foreign)
    export.to_onnx(nn.Sequential(SmallCNN(10), nn.Softmax(1)), untrained)
    source = quantize.Source(runtime.Model(trained), torch.rand(16, 3, 32, 32), tmp_path)
    small = source.make(quantize.Recipe()).path
    cases = {
        damaged: "cannot load",
        tmp_path / "missing.onnx": "no model file",
        foreign: "[N, 10]",
        untrained: "near guessing",
        small: "quantised already",
    }
    for path, named in cases.items():
        capsys.readouterr()
        assert quantized(path, "--out", tmp_path / "out.onnx") == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert named in line
    assert not (tmp_path / "out.onnx").exists()


def test_what_was_guessed_and_a_fixed_batch_are_told(trained, capsys):
    fixed = trained.with_name("fixed.onnx")
    assert quantized(fixed, "--max-drop", 100, "--target", "vnni") == 0
    made = runtime.Model(fixed.with_name("fixed.int8.onnx"))
    assert made.metadata["int8_target"] == "vnni"
    said = capsys.readouterr().out
    assert "fed: rgb" in said
    assert "takes 8 images at a time" in said
