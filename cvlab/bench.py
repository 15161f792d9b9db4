"""Measuring that can be believed: warm up, synchronise, take turns, repeat, report the spread."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

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
        median over rounds of the reference's time over this one's (2 means twice as fast). From
        100 rounds on also `p99`: of fewer it would be little else than the slowest.
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
    if rounds >= 100:
        columns["p99"] = np.percentile(seconds * 1e3, 99, axis=0)
    return pd.DataFrame(columns, index=pd.Index(contestants, name="contestant"))


def synchronise() -> None:
    """Wait until the GPU has finished, where there is one: CUDA calls return before their work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(
    tasks: Mapping[str, Callable[[], Callable[[], object]]], imports: Callable | None = None
) -> pd.Series:
    """Memory that work needs at its worst moment, each task in a fresh process: MB (10^6 bytes).

    On a CPU: how far the highest resident memory of the process rises above what Python, torch and
    one small convolution need, so it counts weights, gradients, optimizer state, activations
    and the libraries' work space. On a GPU: the highest sum of torch's tensors there.

    Args:
        tasks: name to a picklable function that prepares the work and returns a call that does
            it, made three times with one thread. A `functools.partial` will do.
        imports: picklable; called first, so that what it imports does not count.
    """
    fast = "forkserver" in get_all_start_methods()  # forks a server that has imported all already
    context = get_context("forkserver" if fast else "spawn")
    context.set_forkserver_preload(["torch", "pandas"])
    how = {"initializer": torch.set_num_threads, "initargs": (1,), "max_tasks_per_child": 1}
    with ProcessPoolExecutor(min(len(tasks), os.cpu_count() or 1), context, **how) as pool:
        peaks = list(pool.map(partial(_peak_of, imports), tasks.values()))
    return pd.Series(peaks, index=list(tasks), name="MB")


def _peak_of(imports: Callable | None, prepare: Callable[[], Callable[[], object]]) -> float:
    if imports:
        imports()
    torch.nn.Conv2d(8, 8, 3)(torch.zeros(1, 8, 8, 8)).sum().backward()
    before = _peak_resident()
    call = prepare()
    for _ in range(3):
        call()
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    return (_peak_resident() - before) / 1e6


def _peak_resident() -> int:
    """The highest resident memory of this process so far, in bytes."""
    if sys.platform == "linux":  # getrusage tells the parent's peak too: that survives exec
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
