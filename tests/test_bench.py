"""The clock: what it counts, and that contestants take turns."""

from functools import partial

import pytest
import torch

from cvlab.bench import compare, peak_memory, time_calls


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


def hold_for_good():
    hold_for_good.memory = torch.ones(25_000_000)


def test_what_imports_need_does_not_count():
    peaks = peak_memory({"task": partial(hold, 50)}, hold_for_good)
    assert peaks["task"] == pytest.approx(50, abs=25)
