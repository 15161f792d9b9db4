"""Measuring that can be believed: warm up, synchronise, take turns, repeat, report the spread."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch

from cvlab.show import progress

Call = Callable[[], object]


class UnfairComparison(ValueError):
    """Contestants were given different work; the message says what differs."""


class ContestantFailed(RuntimeError):
    """A contestant could not be prepared or died; the message names it and says why."""


@dataclass(frozen=True)
class Contestant:
    """Work for a process of its own: `prepare(inputs, threads)`, picklable, returns the call.

    `inputs` is one batch, [N, ...]; `threads` are the library's that does the work.
    """

    prepare: Callable[[np.ndarray, int], Call]
    inputs: np.ndarray
    threads: int


def time_calls(call: Call, n: int, *, clock=time.perf_counter) -> np.ndarray:
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
    contestants: Mapping[str, Call], *, rounds: int = 20, warmup: int = 3, clock=time.perf_counter
) -> pd.DataFrame:
    """Time calls of this process in turns: one each a round, so that a slow moment hits all alike.

    For contestants of one library. Two thread pools in one process get into each other's way:
    see `race`. The first contestant is the reference of `ratio`, see `summary`.
    """
    if not contestants or rounds < 1:
        raise ValueError(
            f"{len(contestants)} contestants, {rounds} rounds: need 1 or more of both."
        )
    calls = contestants.values()
    for call in calls:
        time_calls(call, warmup, clock=clock)
    turns = [[time_calls(call, 1, clock=clock) for call in calls] for _ in range(rounds)]
    return summary(list(contestants), np.array(turns))


def race(
    contestants: Mapping[str, Contestant],
    *,
    rounds: int = 20,
    calls: int = 3,
    warmup: int = 10,
    what: str | None = None,
) -> pd.DataFrame:
    """Time contestants in turns, each in a process of its own that is frozen between its turns.

    So no thread pool can take a core from another one: ONNX Runtime's threads go on spinning for
    a while after their work, torch's sleep. A turn is one call to wake up, then `calls` timed ones.
    The first contestant is the reference of `ratio`. `what` labels a progress bar.

    Returns:
        one row a contestant, see `summary`, with `images/s` and `threads`.

    Raises:
        UnfairComparison: inputs or threads differ.
        ContestantFailed: one cannot be prepared, or dies.
    """
    if not contestants or rounds < 1 or calls < 1:
        raise ValueError(f"{len(contestants)} contestants, {rounds} rounds: need 1 or more.")
    _check_equal(contestants)
    rivals, seconds = [], []
    try:
        with progress(len(contestants) + rounds, what, "step") as bar:
            for name, contestant in contestants.items():  # one after the other, the rest is frozen
                rivals.append(_Rival(name, contestant))
                rivals[-1].turn(warmup)
                bar.update()
            for _ in range(rounds):
                seconds.append([rival.turn(calls) for rival in rivals])
                bar.update()
    finally:
        for rival in rivals:
            rival.close()
    table = summary(list(contestants), np.array(seconds))
    first = next(iter(contestants.values()))  # all work on the same
    table["images/s"] = len(first.inputs) * 1e3 / table["ms"]
    table["threads"] = first.threads
    return table


def summary(names: list[str], seconds: np.ndarray) -> pd.DataFrame:
    """What the times of contestants say: float [rounds, contestants, calls], in seconds.

    Returns:
        one row a contestant: `ms` (median of all calls), `p10`, `p90` in milliseconds, `n` calls,
        and `ratio`, the median over rounds of the first one's time over this one's (2: twice as
        fast), with its 95 % interval `low` to `high`, from the binomial distribution of ranks
        (NaN for fewer than 6 rounds). From 100 calls on also `p99`: of fewer it would be little
        else than the slowest.
    """
    from scipy.stats import quantile_test

    times = 1e3 * seconds.transpose(1, 0, 2).reshape(len(names), -1)
    p10, median, p90 = np.percentile(times, [10, 50, 90], axis=1)
    per_round = np.median(seconds, axis=2)
    ratios = per_round[:, :1] / per_round  # [rounds, contestants]
    intervals = [quantile_test(column).confidence_interval(0.95) for column in ratios.T]
    columns = {"ms": median, "p10": p10, "p90": p90, "n": times.shape[1]}
    table = pd.DataFrame(columns, index=pd.Index(names, name="contestant"))
    table["ratio"] = np.median(ratios, axis=0)
    table["low"] = [interval.low for interval in intervals]
    table["high"] = [interval.high for interval in intervals]
    if times.shape[1] >= 100:
        table["p99"] = np.percentile(times, 99, axis=1)
    return table


def _check_equal(contestants: Mapping[str, Contestant]) -> None:
    (first, one), *others = contestants.items()
    for name, other in others:
        here, there = (f"{each.inputs.dtype} {[*each.inputs.shape]}" for each in (one, other))
        if here != there:
            problem = f"{first!r} works on {here}, {name!r} on {there}"
        elif not np.array_equal(one.inputs, other.inputs):
            problem = f"{first!r} and {name!r} work on different values of {here}"
        elif one.threads != other.threads:
            problem = f"{first!r} has {one.threads} threads, {name!r} has {other.threads}"
        else:
            continue
        raise UnfairComparison(f"{problem}: the faster one proves nothing. Give them the same.")


class _Rival:
    """A contestant in a process of its own, frozen whenever it is not its turn."""

    def __init__(self, name: str, contestant: Contestant):
        self.name, start_method = name, context()
        self.pipe, theirs = start_method.Pipe()
        self.process = start_method.Process(target=_compete, args=(theirs, contestant), daemon=True)
        self.process.start()
        theirs.close()  # so that a dead process is an end of file, not a wait for ever

    def turn(self, calls: int) -> np.ndarray:
        """Wake the process, let it work, freeze it again: seconds [calls]."""
        process = psutil.Process(self.process.pid)
        try:
            process.resume()
            self.pipe.send(calls)
            answer = self.pipe.recv()
            process.suspend()
        except (EOFError, OSError, psutil.NoSuchProcess) as error:
            raise ContestantFailed(
                f"{self.name!r} died while it was timed; too little memory, or a library that is "
                "not made for this CPU? Leave it out, or give it less to do."
            ) from error
        if isinstance(answer, str):
            raise ContestantFailed(f"{self.name!r} cannot take part: {answer}")
        return answer

    def close(self) -> None:
        """Let the process end by itself, with what it may have started; kill it if it does not."""
        self.pipe.close()
        if self.process.is_alive():
            psutil.Process(self.process.pid).resume()
            self.process.join(5)
            self.process.kill()
        self.process.join()


def _compete(pipe: Connection, contestant: Contestant) -> None:
    """What a contestant's process does: prepare, then time calls whenever it is told to."""
    try:
        call = contestant.prepare(contestant.inputs, contestant.threads)
        while True:
            calls = pipe.recv()
            call()
            pipe.send(time_calls(call, calls))
    except EOFError:
        pass
    except Exception as error:  # whatever it is, the parent shall tell it
        pipe.send(f"{type(error).__name__}: {error}")


def context():
    """How to start processes that have torch already: forked from a server that imported it."""
    found = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    found.set_forkserver_preload(["onnxruntime", "cvlab.zoo"])
    return found


def synchronise() -> None:
    """Wait until the GPU has finished, where there is one: CUDA calls return before their work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(tasks: Mapping[str, Callable[[], Call]]) -> pd.Series:
    """Memory that work needs at its worst moment, each task in a fresh process: MB (10^6 bytes).

    On a CPU: how far the highest resident memory of the process rises above what Python, torch and
    one small convolution need, so it counts weights, gradients, optimizer state, activations
    and the libraries' work space. On a GPU: the highest sum of torch's tensors there.

    Args:
        tasks: name to a picklable function (a `functools.partial` will do) that prepares the
            work and returns a call that does it, made three times with one thread. What its
            module imports does not count.
    """
    workers = min(len(tasks), os.cpu_count() or 1)
    with ProcessPoolExecutor(
        workers, context(), initializer=torch.set_num_threads, initargs=(1,), max_tasks_per_child=1
    ) as pool:
        peaks = list(pool.map(_peak_of, tasks.values()))
    return pd.Series(peaks, index=list(tasks), name="MB")


def _peak_of(prepare: Callable[[], Call]) -> float:
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
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
