"""The clock: what it counts, and that contestants take turns."""

import hashlib
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import psutil
import pytest
import torch

from cvlab import bench
from cvlab.bench import (
    Contestant,
    ContestantFailed,
    UnfairComparison,
    compare,
    race,
    summary,
    time_calls,
)
from cvlab.lessons.environment import peak_memory
from cvlab.machine import usable_cores


class FakeTime:
    """A clock that stands still unless a call moves it."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self):
        return self.now

    def call(self, name, *costs):
        costs = list(costs)

        def work():
            self.order.append(name)
            self.now += costs.pop(0) if len(costs) > 1 else costs[0]

        return work


def test_every_call_is_timed_the_first_too():
    clock = FakeTime()
    assert time_calls(clock.call("a", 9, 1), 3, clock=clock).tolist() == [9, 1, 1]


def test_compare_reports_medians_spread_and_ratio_without_the_warm_up():
    clock = FakeTime()
    calls = {"slow": clock.call("slow", 100, 0.004), "fast": clock.call("fast", 100, 0.001)}
    table = compare(calls, rounds=5, warmup=1, clock=clock)
    assert table["ms"].tolist() == pytest.approx([4, 1])
    assert table["p90"].tolist() == pytest.approx([4, 1])
    assert table["ratio"].tolist() == pytest.approx([1, 4])
    assert table["n"].tolist() == [5, 5]


def test_p99_is_told_where_there_are_enough_calls():
    clock = FakeTime()
    calls = {"mostly 1 ms": clock.call("a", *[0.001] * 99, 0.009)}
    table = compare(calls, rounds=100, warmup=0, clock=clock)
    assert table["p90"].item() == pytest.approx(1)
    assert 1 < table["p99"].item() < 9
    assert "p99" not in compare(calls, rounds=99, warmup=0, clock=clock)


def test_contestants_take_turns():
    """One after the other, a slow minute of the machine would hit one contestant only."""
    clock = FakeTime()
    calls = {name: clock.call(name, 1) for name in "ab"}
    compare(calls, rounds=3, warmup=0, clock=clock)
    assert "".join(clock.order) == "ababab"


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="0 contestants"):
        compare({})


def hold(megabytes):
    """A call that needs so much memory for a moment and gives it back."""
    return lambda: torch.ones(megabytes * 250_000).sum()


def test_peak_memory_is_that_of_the_worst_moment_and_of_each_task_alone():
    """In a process that has needed more before: a peak must not be inherited."""
    torch.ones(100_000_000).sum()
    peaks = peak_memory({"much": partial(hold, 200), "little": partial(hold, 50)})
    assert peaks["much"] == pytest.approx(200, abs=25)
    assert peaks["little"] == pytest.approx(50, abs=25)


class Importing:
    """A task that needs 100 MB for good as soon as its process knows it, as an import does."""

    def __reduce__(self):
        return import_much, ()


def import_much():
    import_much.memory = torch.ones(25_000_000)
    return partial(hold, 50)


def test_what_imports_need_does_not_count():
    peaks = peak_memory({"task": Importing()})
    assert peaks["task"] == pytest.approx(50, abs=25)


# --- a process each ------------------------------------------------------------------------------

BATCH = np.zeros((2, 3), dtype=np.float32)


def sleeper(seconds, inputs, threads):
    return partial(time.sleep, seconds)


def broken(inputs, threads):
    raise RuntimeError("no such kernel")


def deadly(inputs, threads):
    return psutil.Process().kill


def busy(inputs, threads):
    """A library whose threads go on for ever, as ONNX Runtime's do for a while."""

    def spin():
        while True:
            hashlib.sha256(much)  # lets go of the interpreter's lock, as a library's threads do

    much = bytes(10_000_000)
    for _ in range(2 * usable_cores()):
        threading.Thread(target=spin, daemon=True).start()
    return lambda: None


def adder(inputs, threads):
    numbers = list(range(1_000_000))  # long enough for the scheduler to let others in
    return partial(sum, numbers)


@pytest.mark.alone
def test_a_race_finds_the_cost_of_each():
    field = {f"{ms} ms": Contestant(partial(sleeper, ms / 1e3), BATCH, 1) for ms in (8, 4)}
    table = race(field, rounds=10, calls=2, warmup=1)
    assert table.loc["8 ms", "ms"] == pytest.approx(8, rel=0.15)
    assert table.loc["4 ms", "ratio"] == pytest.approx(2, rel=0.15)
    assert table.loc["4 ms", "low"] <= table.loc["4 ms", "ratio"] <= table.loc["4 ms", "high"]
    assert table.loc["4 ms", "images/s"] == pytest.approx(500, rel=0.15)
    assert table["n"].tolist() == [20, 20]


def test_a_race_needs_no_fork(monkeypatch):
    """Windows has none: there each process imports everything anew."""
    monkeypatch.setattr(bench, "get_all_start_methods", lambda: ["spawn"])
    field = {name: Contestant(partial(sleeper, 0.001), BATCH, 1) for name in "ab"}
    assert race(field, rounds=2, warmup=1, processes=1)["n"].tolist() == [4, 4]


@pytest.mark.alone
def test_a_frozen_rival_takes_nobodys_core():
    field = {"alone": Contestant(adder, BATCH, 1)}
    alone = race(field, rounds=10, calls=5).loc["alone", "ms"]
    field |= {"greedy": Contestant(busy, BATCH, 1)}
    assert race(field, rounds=10, calls=5).loc["alone", "ms"] < 1.5 * alone


def test_unlike_contestants_are_refused():
    one = Contestant(partial(sleeper, 0), BATCH, 1)
    for other, says in (
        (replace(one, threads=2), "'one' has 1 threads, 'other' has 2"),
        (replace(one, inputs=BATCH[:1]), r"on float32 \[2, 3\], 'other' on float32 \[1, 3\]"),
        (replace(one, inputs=BATCH.astype("float64")), "'other' on float64"),
        (replace(one, inputs=BATCH + 1), "different values"),
    ):
        with pytest.raises(UnfairComparison, match=says):
            race({"one": one, "other": other})


@pytest.mark.parametrize(("prepare", "says"), [(broken, "no such kernel"), (deadly, "died")])
def test_a_contestant_that_fails_is_named(prepare, says):
    field = {"good": Contestant(partial(sleeper, 0), BATCH, 1)}
    field |= {"bad": Contestant(prepare, BATCH, 1)}
    with pytest.raises(ContestantFailed, match=f"'bad'.*{says}"):
        race(field, rounds=2)


@pytest.mark.parametrize(("processes", "luck"), [(1, 0), (3, 0), (3, 0.1), (3, 1)])
def test_the_interval_of_a_ratio_holds_the_truth_about_95_times_of_100(processes, luck):
    """Equals, but noisy: in each round, and as much as `luck` for the life of a process."""
    random, held = np.random.default_rng(0), 0
    process = np.arange(20) * processes // 20  # of each round
    for _ in range(300):
        lives = random.normal(scale=luck, size=(processes, 2))[process]
        seconds = np.exp(lives + random.normal(scale=0.3, size=(20, 2)))[..., None]
        row = summary(["a", "b"], seconds, processes).loc["b"]
        held += row["low"] <= 1 <= row["high"]
    assert 0.92 < held / 300 <= 0.99
    row = summary(["a", "b"], seconds[:5], processes).loc["b"]
    assert row.isna().sum() == 2  # low and high


def test_turns_are_shuffled_and_shared_by_processes(monkeypatch):
    """A fixed order would give one contestant the warmer cache, always; one process its luck."""
    made, order, real = [], [], bench._Rival.turn
    monkeypatch.setattr(bench._Rival, "turn", lambda r, n: order.append(r.name) or real(r, n))
    start = bench._Rival.__init__
    monkeypatch.setattr(bench._Rival, "__init__", lambda r, *a: made.append(a[0]) or start(r, *a))
    field = {name: Contestant(partial(sleeper, 0), BATCH, 1) for name in "ab"}
    race(field, rounds=12, calls=1, warmup=1, processes=3)
    assert made == [*"ababab"]
    first = [order[i] for i in range(0, len(order), 2)]
    assert 5 <= first.count("a") <= 10  # of 12 rounds and 3 warm-ups


@pytest.mark.skipif(not hasattr(psutil.cpu_times(), "iowait"), reason="others are seen on Linux")
@pytest.mark.alone
def test_a_disturbed_race_says_so(monkeypatch, capsys):
    """One busy program: of a machine with many cores it takes little."""
    monkeypatch.setattr(bench, "DISTURBED", 0.3 / psutil.cpu_count())
    field = {"sleeps": Contestant(partial(sleeper, 0.01), BATCH, 1)}
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        table = race(field, rounds=40)
    finally:
        other.kill()
    assert "other programs took" in capsys.readouterr().out
    assert table.attrs["programs"] > bench.DISTURBED


@pytest.mark.skipif(not hasattr(psutil.cpu_times(), "iowait"), reason="others are seen on Linux")
@pytest.mark.alone
def test_the_work_of_contestants_disturbs_nobody():
    """What rivals and others took are told apart: a race of work alone has few others in it."""
    field = {"works": Contestant(adder, BATCH, 1)}
    shares = [race(field, rounds=30, calls=4).attrs["programs"] for _ in range(2)]
    assert min(shares) < 0.7 / psutil.cpu_count() + psutil.cpu_percent(0.5) / 100
