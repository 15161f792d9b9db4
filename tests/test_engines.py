"""One network on every engine: the same answers, and no engine wins against itself."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

from cvlab import export, runtime, store
from cvlab.bench import Contestant, race
from cvlab.data import load
from cvlab.lessons.engines import calls, figures, mistakes
from cvlab.machine import usable_cores
from cvlab.models import SmallCNN


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("engines"), load("cifar10", "synthetic", n_train=50)
    torch.manual_seed(0)
    model = SmallCNN(10).eval()
    net = store.save(model, folder / "net.pt", data)
    return net, export.to_onnx(model, folder / "net.onnx")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)


def logits(answer):
    first = answer[0] if isinstance(answer, list) else answer
    return torch.as_tensor(np.asarray(first.float() if isinstance(first, torch.Tensor) else first))


def test_all_engines_give_the_same_answers(files, images):
    field = calls.contestants(*files, images, 1)
    field.pop("PyTorch compiled", None)  # half a minute; the class profile runs it
    expected = logits(field["PyTorch eager"].prepare(images, 1)())
    for name, contestant in field.items():
        answer = contestant.prepare(contestant.inputs, 1)()
        found = answer[next(iter(answer))] if name.startswith("OpenVINO") else answer
        tolerance = 0.1 if "bf16" in name else 1e-5
        assert export.parity(expected, logits(found)).max_difference < tolerance, name


def test_bound_memory_gives_the_same_answer(files, images):
    bound = calls.onnx_bound(files[1], images, 1, "cpu")
    plain = calls.onnx(files[1], images, 1)()
    assert np.array_equal(bound()[0].numpy(), plain[0])


@pytest.mark.alone
def test_an_engine_does_not_win_against_itself(files, images):
    """Two identical contestants come out within 3 %."""
    call = calls.contestants(*files, images, 1)["ONNX Runtime, all"]
    table = race({"one": call, "same": Contestant(call.prepare, images, 1)}, rounds=60, calls=10)
    assert table.loc["same", "ratio"] == pytest.approx(1, abs=0.03)


def test_threads_spin_in_races_only(files, images, monkeypatch):
    """Spinning is quicker for one image; anywhere else it takes a core from other programs."""
    made, real = [], runtime.session
    monkeypatch.setattr(runtime, "session", lambda *a, **k: made.append(real(*a, **k)) or made[-1])
    runtime.Model(files[1])
    calls.onnx(files[1], images, 1)
    entry = "session.intra_op.allow_spinning"
    found = [one.get_session_options().get_session_config_entry(entry) for one in made]
    assert found == ["0", "1"]


class Counting(mistakes.Pair):
    """Counts how often each engine is prepared and called."""

    def pytorch(self):
        return self.count("pytorch")

    def onnx(self, threads=None):
        return self.count("onnx")

    def count(self, engine):
        counts[f"{engine} prepared"] += 1
        return partial(counts.update, [f"{engine} called"])


counts = Counter()


def test_a_mistake_is_the_mistake_that_it_says(files, images):
    pair = Counting(*files, images[:1], 1)
    counts.clear()
    mistakes.first_call(pair)
    assert counts["pytorch called"] == 1
    assert counts["onnx called"] == 2 * mistakes.CALLS
    counts.clear()
    mistakes.new_session(pair)
    assert counts["onnx prepared"] == counts["onnx called"] == 10
    assert counts["pytorch prepared"] == 1


@pytest.mark.alone
def test_mistakes_show_in_their_direction(files, images):
    pair = mistakes.Pair(*files, images[:1], 1)
    kinds = mistakes.by_name(["first_call", "new_session"])
    table = mistakes.measure(pair, kinds, 1)
    honest = table.loc["no mistake", "ratio"]
    assert table.loc["first call", "ratio"] > 1.5 * honest
    assert table.loc["new session", "ratio"] < 0.7 * honest


def test_the_widget_times_what_its_sliders_say(files, images, monkeypatch):
    """The batch of the slider reaches the engine, also where fewer images were given."""
    asked, real = [], calls.onnx
    monkeypatch.setattr(calls, "onnx", lambda *given: asked.append(given[1:]) or real(*given))
    box = figures.explore(files[1], images[:1])
    before = box.children[-1].value
    box.children[0].value = 4
    assert [(len(feed), threads) for feed, threads in asked] == [
        (n, usable_cores()) for n in (1, 4)
    ]
    assert box.children[-1].value != before
