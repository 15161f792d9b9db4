"""Measuring that can be believed: warm up, synchronise, take turns, repeat, report the spread."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection

import numpy as np
import pandas as pd
import psutil
import torch

from cvlab.show import progress

Call = Callable[[], object]

DISTURBED = 0.05  # of the processors' time, taken by others
ROUNDS = 4  # that a process runs at least, or it would hardly be worth its start


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
        raise ValueError(f"{len(contestants)} contestants, {rounds} rounds: need 1 or more.")
    calls = contestants.values()
    for call in calls:
        time_calls(call, warmup, clock=clock)
    turns = [[time_calls(call, 1, clock=clock) for call in calls] for _ in range(rounds)]
    return summary(list(contestants), np.array(turns))


def race(
    contestants: Mapping[str, Contestant],
    *,
    rounds: int = 20,
    calls: int = 2,
    warmup: int = 3,
    processes: int = 3,
    what: str | None = None,
) -> pd.DataFrame:
    """Time contestants in turns, each in a process of its own that is frozen between its turns.

    So no thread pool can take a core from another one: ONNX Runtime's threads go on spinning for
    a while after their work, torch's sleep. A turn is one call to wake up, then `calls` timed ones;
    the order is drawn anew in each round, always the same draw, so that a race can be repeated.
    Two processes that do the same differ, as their memory lies elsewhere: so each contestant gets
    `processes`, one after the other, that share the rounds, each after `warmup` calls; fewer if
    that left one less than `ROUNDS`.
    The first contestant is the reference of `ratio`. `what` labels a progress bar.

    Returns:
        one row a contestant, see `summary`, with `images/s` and `threads`. Its `attrs` say which
        shares of the processors' time `programs` other than the race and the `hypervisor` took,
        where the system tells; beyond `DISTURBED` a line is printed too.

    Raises:
        UnfairComparison: inputs or threads differ.
        ContestantFailed: one cannot be prepared, or dies.
    """
    if not contestants or rounds < 1 or calls < 1:
        raise ValueError(f"{len(contestants)} contestants, {rounds} rounds: need 1 or more.")
    _check_equal(contestants)
    processes = max(1, min(processes, rounds // ROUNDS))
    order, seconds, taken = np.random.default_rng(0), [], np.zeros(3)
    with progress(processes * len(contestants) + rounds, what, "step") as bar:
        for part in np.array_split(np.arange(rounds), processes):
            with _crew(contestants, warmup, bar.update) as rivals:
                before = _load(rivals)
                for _ in part:
                    turns = {i: rivals[i].turn(calls) for i in order.permutation(len(rivals))}
                    seconds.append([turns[i] for i in range(len(rivals))])
                    bar.update()
                taken += _load(rivals) - before
    table = summary(list(contestants), np.array(seconds), processes)
    table.attrs = _disturbance(*taken)
    first = next(iter(contestants.values()))  # all work on the same
    table["images/s"] = len(first.inputs) * 1e3 / table["ms"]
    table["threads"] = first.threads
    return table


def summary(names: list[str], seconds: np.ndarray, processes: int = 1) -> pd.DataFrame:
    """What the times of contestants say: float [rounds, contestants, calls], in seconds.

    Args:
        names: of the contestants.
        seconds: the rounds of the first process of each, then those of the second.
        processes: of each contestant, with about equally many rounds.

    Returns:
        one row a contestant: `ms` (median of all calls), `p10`, `p90` in milliseconds, `n` calls,
        and `ratio`, the first one's time over this one's (2: twice as fast), with its 95 % interval
        `low` to `high`, NaN for fewer than 6 rounds. Of one process `ratio` is the median over
        rounds, the interval from the binomial distribution of ranks. Rounds of one process are not
        independent: of several it is the geometric mean of their medians, the interval Student's,
        with as many values as processes. From 100 calls on also `p99`: of fewer it would be little
        else than the slowest.
    """
    times = 1e3 * seconds.transpose(1, 0, 2).reshape(len(names), -1)
    p10, median, p90 = np.percentile(times, [10, 50, 90], axis=1)
    per_round = np.log(np.median(seconds, axis=2))
    gains = per_round[:, :1] - per_round  # [rounds, contestants], logarithms of ratios
    found = [_interval(column, processes) for column in gains.T]
    columns = {"ms": median, "p10": p10, "p90": p90, "n": times.shape[1]}
    table = pd.DataFrame(columns, index=pd.Index(names, name="contestant"))
    table[["ratio", "low", "high"]] = np.exp(found)
    if times.shape[1] >= 100:
        table["p99"] = np.percentile(times, 99, axis=1)
    return table


def _interval(gains: np.ndarray, processes: int) -> tuple[float, float, float]:
    """The middle of logarithms, one a round, and its 95 % interval, see `summary`."""
    from scipy import stats

    if processes == 1:
        found = stats.quantile_test(gains).confidence_interval(0.95)
        return np.median(gains), found.low, found.high
    middles = [np.median(part) for part in np.array_split(gains, processes)]
    middle, error = np.mean(middles), stats.sem(middles) if len(gains) >= 6 else np.nan
    reach = stats.t.ppf(0.975, processes - 1) * error
    return middle, middle - reach, middle + reach


@contextmanager
def _crew(
    contestants: Mapping[str, Contestant], warmup: int, tell: Callable[[], object]
) -> "Iterator[list[_Rival]]":
    """A process for each contestant, warmed up and frozen; all end with the block."""
    rivals = []
    try:
        rivals += (_Rival(name, contestant) for name, contestant in contestants.items())
        for rival in rivals:
            rival.turn(warmup)
            tell()
        yield rivals
    finally:
        for rival in rivals:
            rival.close()


def _load(rivals: "list[_Rival]") -> np.ndarray:
    """Seconds so far on the cores that we may use: other programs', the hypervisor's, and all."""
    cores, me = psutil.cpu_times(percpu=True), psutil.Process()
    ours = me.cpu_affinity() if hasattr(me, "cpu_affinity") else []  # none on macOS
    if ours and max(ours) < len(cores):
        cores = [cores[i] for i in ours]

    def seconds(*names: str) -> float:
        return sum(getattr(core, name, 0) for core in cores for name in names)

    steal = seconds("steal")
    total = sum(map(sum, cores)) - seconds("guest", "guest_nice")  # those are in user and nice too
    times = [one.cpu_times() for one in (me, *(psutil.Process(r.process.pid) for r in rivals))]
    own = sum(one.user + one.system for one in times)
    return np.array([total - seconds("idle", "iowait") - steal - own, steal, total])


def _disturbance(programs: float, hypervisor: float, total: float) -> dict[str, float]:
    """The shares of `total` seconds that others took; printed if they are more than a little."""
    shares = {"programs": programs / max(total, 1), "hypervisor": hypervisor / max(total, 1)}
    if sum(shares.values()) > DISTURBED:
        print(
            "This race was disturbed: of the processors' time other programs took {programs:.0%}, "
            "the hypervisor {hypervisor:.0%}. Repeat it on a quiet machine.".format(**shares)
        )
    return shares


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
        try:
            process = psutil.Process(self.process.pid)
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
        pipe.poll(None)  # stay until asked


def context():
    """How to start processes that have torch already: forked from a server that imported it."""
    found = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    ours = [name for name in sys.modules if name.startswith("cvlab.")]  # seconds, once for all
    found.set_forkserver_preload(ours)
    return found


def synchronise() -> None:
    """Wait until the GPU has finished, where there is one: CUDA calls return before their work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
