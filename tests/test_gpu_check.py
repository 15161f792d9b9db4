"""`gpu-check`: what a CPU can do of each part, and that no part costs another one its result."""

import json
import os
import re
import sys
import time
from dataclasses import dataclass, replace
from multiprocessing import active_children, get_context

import numpy as np
import pandas as pd
import psutil
import pytest
import some_parts
import torch

from cvlab import bench, export, runtime, store
from cvlab.data import ImageData
from cvlab.lessons.engines import calls, mistakes
from cvlab.machine import hardware
from cvlab.models import LeNet, SmallCNN
from cvlab.tools import cli, gpu_budgets, gpu_check, gpu_parts
from cvlab.train import Training, _State, fit

TINY = replace(
    gpu_check.ON_CPU,
    images=32,
    epochs=2,
    batch=8,
    side=32,
    batches=(1, 2),
    calls=5,
    memory_batches=(8, 256),
    profile="smoke",
    unit_images=32,
    large_images=32,
)


@dataclass(frozen=True)
class Drawn(gpu_check.Context):
    """The same few images for every name."""

    images: ImageData | None = None

    def load(self, name, classes=None):
        return self.images


@pytest.fixture
def given(drawn):
    return Drawn(sizes=TINY, images=drawn)


def by_name(rows):
    return {row["what"]: row for row in rows}


def test_training_is_tried_in_every_precision_and_resumed(given):
    rows = list(gpu_parts.training(given))
    assert all(row.get("holds", True) for row in rows), rows
    found = by_name(rows)
    assert found["fit, fp32"]["value"] > 0
    assert found["fit, bf16"]["tags"]["images"] == 32
    if not hardware().gpu:
        assert "minutes" in found["training in fp16"]["left_out"]
        assert found["losses of a resumed training are off by"]["value"] == 0


def test_a_resumed_training_that_forgets_its_momentum_is_found(drawn, tmp_path, monkeypatch):
    real = _State.resume

    def forgetful(self, path):
        real(self, path)
        self.optimizer.state.clear()

    monkeypatch.setattr(_State, "resume", forgetful)
    how = Training(lr=0.02, schedule="one-cycle", batch_size=8, precision="fp32")
    *_, last = gpu_parts.resumed(drawn.take(64, 8), how, hardware().device, tmp_path)
    assert last["holds"] is False


def test_the_scaler_of_fp16_is_read_from_the_checkpoint(drawn, tmp_path):
    """LeNet, for a CPU takes minutes for more."""
    how = Training(lr=0.001, batch_size=2, precision="fp16")
    few, device = drawn.take(4, 2), hardware().device
    fit(LeNet(), few, how, device=device, checkpoint=tmp_path / "state", what=None)
    finite, scale, steps, taken = gpu_parts.scaled(tmp_path / "state")
    assert finite["holds"]
    assert taken["holds"]
    assert scale["value"] >= 1
    assert steps["value"] == 2


@pytest.fixture(scope="module")
def files(drawn, tmp_path_factory):
    """A network as `cvlab.store` keeps it, and as ONNX file."""
    folder, net = tmp_path_factory.mktemp("gpu"), SmallCNN(10).eval()
    return store.save(net, folder / "net.pt", drawn), export.to_onnx(net, folder / "net.onnx")


@pytest.fixture
def exported(files, monkeypatch):
    monkeypatch.setattr(gpu_parts, "exported", lambda given, folder: files)


def test_each_clock_times_the_same_call(given, exported):
    """Without a GPU there is nothing to wait for; what needs one is left out and says so."""
    rows = list(gpu_parts.timing(given))
    found = by_name(rows)
    assert found["batch 2, awaited"]["tags"]["n"] == TINY.calls
    assert found["05, no mistake: PyTorch's time over ONNX's"]["value"] > 0
    if not hardware().gpu:
        assert 0.2 < found["batch 2, made faster by not waiting"]["value"] < 5
        assert rows[-1]["left_out"] == gpu_parts.NO_GPU


def test_a_clock_that_does_not_wait_is_found():
    """As on a GPU: the call returns at once, and whoever waits gets the work's time."""
    clocks = {"awaited": lambda *_: [0.02], "not awaited": lambda *_: [0.001]}
    ratio, differs = list(gpu_parts.by_clocks(int, clocks, 4, "c"))[2:]
    assert ratio["value"] == pytest.approx(20)
    assert differs["holds"] is False
    clocks["CUDA events"] = lambda *_: [0.019]
    assert [*gpu_parts.by_clocks(int, clocks, 4, "c")][-1]["holds"] is True
    clocks["CUDA events"] = lambda *_: [0.001]
    assert [*gpu_parts.by_clocks(int, clocks, 4, "c")][-1]["holds"] is False


class Event:
    """A CUDA event on the clock of this process."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, later):
        return 1e3 * (later.at - self.at)


def test_on_a_gpu_its_own_clock_and_the_race_take_part(given, exported, monkeypatch):
    """No GPU, but the way through: whoever asks for one gets the CPU's call and a race's table."""
    real, summary = calls.pytorch, bench.summary(["a", "b"], np.ones((6, 2, 1)))
    monkeypatch.setattr(gpu_check.Context, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(calls, "pytorch", lambda *given, device: real(*given))
    monkeypatch.setattr(mistakes, "measure", lambda *_: pd.DataFrame())
    asked = []
    monkeypatch.setattr(calls, "contestants", lambda *given: asked.append(given[3:]))
    monkeypatch.setattr(gpu_parts, "race", lambda *_, **how: summary)
    found = by_name(gpu_parts.timing(given))
    assert found["batch 1, CUDA events"]["unit"] == "ms"
    assert found["05's race, batch 2: b"]["value"] == 1000
    assert [device for _, device in asked] == ["cuda", "cuda"]


def test_a_larger_batch_takes_more_memory(given):
    rows = list(gpu_parts.memory(given))
    assert [row["unit"] for row in rows[:-1]] == ["MB", "MB"]
    assert rows[-1]["holds"]


def test_onnx_runtime_says_the_same_bound_and_plain(given, exported):
    rows = list(gpu_parts.onnx_runtime(given))
    assert all(row.get("holds", True) for row in rows)
    assert sum(row.get("unit") == "ms" for row in rows) == 4
    if not runtime.has_cuda():
        assert "left_out" in rows[0]


def test_a_silent_fall_back_to_the_cpu_is_found(given, exported, monkeypatch):
    """ONNX Runtime without CUDA's libraries computes on the CPU and says nothing."""
    monkeypatch.setattr(runtime, "has_cuda", lambda: True)
    monkeypatch.setattr(gpu_check.Context, "device", torch.device("cuda"))
    real = runtime.Model
    monkeypatch.setattr(runtime, "Model", lambda path, device="cpu", **how: real(path, **how))
    assert next(gpu_parts.onnx_runtime(given)) == gpu_check.holds(
        "ONNX Runtime computes on cuda", False
    )


def test_the_network_that_is_timed_is_one_of_the_zoo(given, tmp_path):
    net, model = gpu_parts.exported(given, tmp_path)
    images = gpu_parts.noise(given, 2)
    here = store.load(net).model(torch.from_numpy(images)).detach().numpy()
    assert runtime.Model(model).run(images) == pytest.approx(here, abs=1e-4)


def test_every_unit_is_timed_and_scaled_to_its_profile(given):
    rows = list(gpu_parts.budgets(given))
    units, wholes = rows[::2], rows[1::2]
    for notebook, unit, whole in zip(gpu_budgets.UNITS, units, wholes, strict=True):
        assert unit["what"].startswith(notebook)
        assert whole["what"].startswith(f"{notebook}, estimate of smoke")
        timed, of = re.search(r"([\d,]+) of ([\d,]+) images", unit["what"]).groups()
        scale = int(of.replace(",", "")) / int(timed.replace(",", ""))
        minutes = unit["value"] * scale * whole["tags"]["units"] / 60
        assert whole["value"] == pytest.approx(minutes)
    assert units[1]["what"] == "02_pooling, an epoch of PoolingNet, 32 of 2,250 images"
    # 4 kinds as they are and cropped, 4 at another rate, 2 with joined edges, 13 epochs each
    assert wholes[1]["tags"]["units"] == (4 + 4 + 4 + 2) * 13


def test_a_package_that_is_missing_costs_only_the_units_that_use_it(given, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna.trial", None)
    units = {name: gpu_budgets.UNITS[name] for name in ("07_capstone", "08_smaller")}
    monkeypatch.setattr(gpu_budgets, "UNITS", units)
    missing, unit, _ = gpu_budgets.budgets(given)
    assert missing == gpu_check.left_out("07_capstone", "optuna.trial is not installed")
    assert "a pass of Student" in unit["what"]


# --- running them ----------------------------------------------------------------------------


def test_no_part_costs_another_its_result(tmp_path, capsys):
    """One hangs, one raises, one dies: the next ones run, what each has found is stored."""
    out, given = tmp_path / "found.json", gpu_check.Context("synthetic", TINY)
    out.write_text('{"another machine": {"works": {"rows": []}}}', encoding="utf-8")
    began = time.monotonic()
    assert not gpu_check.check({"hangs": some_parts.hangs}, given, out, 1)
    assert time.monotonic() - began < 60
    assert not active_children()
    parts = {"dies": some_parts.dies, "breaks": some_parts.breaks, "works": some_parts.works}
    assert not gpu_check.check(parts, given, out, 300)
    stored = json.loads(out.read_text(encoding="utf-8"))
    assert stored.pop("another machine") == {"works": {"rows": []}}
    (mine,) = stored.values()
    assert {name: part["outcome"] for name, part in mine.items()} == {
        "hangs": "over time: stopped after 1 s",
        "dies": "failed: its process died, exit code 3",
        "breaks": "failed: ZeroDivisionError: by",
        "works": "done",
    }
    assert mine["dies"]["rows"] == mine["breaks"]["rows"] == mine["works"]["rows"]
    assert len(mine["works"]["rows"]) == 2
    assert "torch" in mine["works"]["versions"]
    assert "  seen: 3 things\n  ✓ it is true\nworks: done" in capsys.readouterr().out


def test_what_a_part_has_started_ends_with_it():
    """A race's contestants, say, of a part that hangs."""
    command = f'"{sys.executable}" -c "import time; time.sleep(600)"'
    process = get_context("spawn").Process(target=os.system, args=(command,))
    process.start()
    until, whole = time.monotonic() + 60, psutil.Process(process.pid)
    while not (started := whole.children(recursive=True)) and time.monotonic() < until:
        time.sleep(0.05)
    gpu_check._end(process, 0)
    assert started
    assert not process.is_alive()
    assert not psutil.wait_procs(started, timeout=10)[1]


def test_a_part_whose_check_does_not_hold_has_failed(tmp_path, monkeypatch):
    here = lambda part, given, seconds: [*part(given), gpu_check.DONE]  # noqa: E731
    monkeypatch.setattr(gpu_check, "_messages", here)
    given, out = gpu_check.Context("synthetic", TINY), tmp_path / "found.json"
    assert gpu_check.check({"works": some_parts.works}, given, out, 1)
    wrong = {"wrong": some_parts.is_wrong, "works": some_parts.works}
    assert not gpu_check.check(wrong, given, out, 1)
    (found,) = gpu_check.read(out).values()
    assert found["wrong"]["outcome"] == "failed: it does not hold that it is true"


def test_a_file_of_something_else_is_left_alone(tmp_path, capsys):
    out = tmp_path / "bench.json"
    for text in ('{"cpu": "C"}', "[1", "[]"):
        out.write_text(text, encoding="utf-8")
        assert cli.main(["gpu-check", "--part", "memory", "--out", str(out)]) == 2
        assert "bench.json was not written by gpu-check" in capsys.readouterr().err
        assert out.read_text(encoding="utf-8") == text


def test_an_unknown_part_is_refused_before_anything_runs(capsys):
    assert cli.main(["gpu-check", "--part", "trains"]) == 2
    assert "'trains'; choose from training, timing, memory" in capsys.readouterr().err
    assert [*gpu_parts.choose(["memory"])] == ["memory"]
    assert [*gpu_parts.choose([])] == [*gpu_parts.PARTS]


def test_what_was_not_measured_is_no_row():
    with pytest.raises(ValueError, match="loss: nan was measured"):
        gpu_check.number("loss", float("nan"), "nats")


def test_the_record_is_tried_and_judged_on_the_test_images(given):
    rows = by_name(gpu_parts.record(given))
    accuracy = rows["09, 0.04 passes, mean test accuracy"]
    assert 0 <= accuracy["value"] <= 1
    assert rows["its seconds, answers included"]["value"] > 0
    assert len(rows) == 2  # the stand-in promises nothing
