"""The clock: what it counts, and that contestants take turns."""

import hashlib
import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from cvlab.bench import (
    Contestant,
    ContestantFailed,
    UnfairComparison,
    compare,
    peak_memory,
    race,
    summary,
    time_calls,
)

pytestmark = pytest.mark.alone  # it takes times


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
    return partial(os.kill, os.getpid(), signal.SIGKILL)


def busy(inputs, threads):
    """A library whose threads go on for ever, as ONNX Runtime's do for a while."""

    def spin():
        while True:
            hashlib.sha256(much)  # lets go of the interpreter's lock, as a library's threads do

    much = bytes(10_000_000)
    for _ in range(2 * os.cpu_count()):
        threading.Thread(target=spin, daemon=True).start()
    return lambda: None


def adder(inputs, threads):
    numbers = list(range(1_000_000))  # long enough for the scheduler to let others in
    return partial(sum, numbers)


def test_a_race_finds_the_cost_of_each():
    field = {f"{ms} ms": Contestant(partial(sleeper, ms / 1e3), BATCH, 1) for ms in (8, 4)}
    table = race(field, rounds=10, calls=2, warmup=1)
    assert table.loc["8 ms", "ms"] == pytest.approx(8, rel=0.15)
    assert table.loc["4 ms", "ratio"] == pytest.approx(2, rel=0.15)
    assert table.loc["4 ms", "low"] <= table.loc["4 ms", "ratio"] <= table.loc["4 ms", "high"]
    assert table.loc["4 ms", "images/s"] == pytest.approx(500, rel=0.15)
    assert table["n"].tolist() == [20, 20]


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


def test_the_interval_of_a_ratio_holds_the_truth_about_95_times_of_100():
    random, held = np.random.default_rng(0), 0
    for _ in range(300):
        seconds = random.lognormal(sigma=0.3, size=(20, 2, 1))  # equals, but noisy
        row = summary(["a", "b"], seconds).loc["b"]
        held += row["low"] <= 1 <= row["high"]
    assert 0.92 < held / 300 <= 0.99
