"""Timing that can be believed: warm up, synchronise, take turns, repeat, report the spread."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch


def time_calls(call: Callable[[], object], n: int, *, clock=time.perf_counter) -> np.ndarray:
    """Seconds of each of `n` calls, the first included: float [n]. CUDA is waited for."""
    seconds = np.empty(n)
    for i in range(n):
        synchronise()
        start = clock()
        call()
        synchronise()
        seconds[i] = clock() - start
    return seconds


def compare(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    warmup: int = 3,
    clock=time.perf_counter,
) -> pd.DataFrame:
    """Time contestants in turns: one call each a round, so that a slow moment hits all alike.

    Args:
        contestants: name to a call without arguments; the first is the reference of `ratio`.
        rounds: timed calls of each.
        warmup: calls of each before, not counted.
        clock: seconds; the tests put their own.

    Returns:
        one row a contestant: `ms` (median), `p10`, `p90` in milliseconds, `n`, and `ratio`, the
        median over rounds of the reference's time over this one's (2 means twice as fast).
    """
    if not contestants or rounds < 1:
        raise ValueError(
            f"{len(contestants)} contestants, {rounds} rounds: need 1 or more of both."
        )
    for call in contestants.values():
        time_calls(call, warmup, clock=clock)
    turns = [
        [time_calls(call, 1, clock=clock)[0] for call in contestants.values()]
        for _ in range(rounds)
    ]
    seconds = np.array(turns)  # [rounds, contestants]
    low, median, high = np.percentile(seconds * 1e3, [10, 50, 90], axis=0)
    ratio = np.median(seconds[:, :1] / seconds, axis=0)
    columns = {"ms": median, "p10": low, "p90": high, "n": rounds, "ratio": ratio}
    return pd.DataFrame(columns, index=pd.Index(contestants, name="contestant"))


def synchronise() -> None:
    """Wait until the GPU has finished, where there is one: CUDA calls return before their work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
