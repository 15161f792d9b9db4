"""What this project needs a GPU for, tried and timed: `python -m cvlab gpu-check`.

A part is a function of a `Context` that yields rows: what was measured, whether something holds, or
why it was left out. Each part runs in a process of its own, because nothing but a process's end
stops a kernel that hangs. On a CPU the same functions do what a CPU can do.
"""

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from cvlab import data as cvdata
from cvlab.bench import context
from cvlab.machine import hardware, limit_threads, versions
from cvlab.paths import as_json, store_text
from cvlab.profiles import ParameterError
from cvlab.records import in_words

Row = dict[str, Any]  # `what`, and `value`, `unit`, `tags`; or `holds`; or `left_out`, the reason
DONE = "done"


@dataclass(frozen=True)
class Sizes:
    """How much the parts do; the defaults are for a GPU."""

    images: int = 25_600  # that `training` trains on
    epochs: int = 4  # of it; the first one warms up
    batch: int = 256
    network: str = "resnet50"  # of 03's zoo, with random weights: what is timed
    side: int = 224  # pixels of its images
    batches: tuple[int, ...] = (1, 256)  # of its images
    calls: int = 50  # of each way to time
    rounds: int = 8  # of a race
    tries: int = 5  # of 05's mistake
    memory_batches: tuple[int, ...] = (128, 512, 2048)
    profile: str = "full"  # whose units are timed
    unit_images: int = 45_000  # of a unit, at most
    large_images: int = 45_000  # of 03's unit, which enlarges them
    unit_epochs: int = 3  # that a unit is timed for; the first one warms up
    record_passes: float = 8  # of 09's network, for 94 %
    record_seeds: int = 3


ON_CPU = Sizes(
    images=1280,
    epochs=3,
    batch=64,
    network="squeezenet1_1",
    batches=(1, 4),
    calls=10,
    tries=1,
    memory_batches=(64, 256),
    unit_images=1280,
    large_images=32,
    unit_epochs=2,
    record_passes=0.04,
    record_seeds=1,
)


@dataclass(frozen=True)
class Context:
    """What a part is given: where images are looked for (see `cvlab.data.load`), and its sizes."""

    where: str = "auto"
    sizes: Sizes = field(default_factory=lambda: Sizes() if hardware().gpu else ON_CPU)

    @property
    def device(self) -> torch.device:
        """The GPU, or where there is none the CPU."""
        return hardware().device

    @cached_property
    def data(self) -> cvdata.ImageData:
        """CIFAR-10, loaded when a part first asks for it."""
        return self.load("cifar10")

    def load(self, name: str, classes: Sequence[str] | None = None) -> cvdata.ImageData:
        """A dataset, or some of its classes."""
        return cvdata.load(name, self.where, classes=classes)


Part = Callable[[Context], Iterator[Row]]


def number(what: str, value: float, unit: str, **tags: Any) -> Row:
    """A row of something measured.

    Raises:
        ValueError: the value is not finite: it was not measured.
    """
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{what}: {value} was measured; expected a finite number.")
    return {"what": what, "value": value, "unit": unit, "tags": tags}


def spread(what: str, values: Sequence[float], unit: str, **tags: Any) -> Row:
    """A row of something measured several times: the median, with p10, p90 and n."""
    p10, median, p90 = map(float, np.percentile(values, [10, 50, 90]))
    ends = {"p10": p10, "p90": p90} if len(values) > 1 else {}
    return number(what, median, unit, n=len(values), **ends, **tags)


def holds(what: str, true: bool) -> Row:
    """A row of something that must be true, else the part has failed."""
    return {"what": what, "holds": bool(true)}


def left_out(what: str, why: str) -> Row:
    """A row of something that cannot be tried here."""
    return {"what": what, "left_out": why}


def told(row: Row) -> str:
    """A row in words, one line."""
    if "holds" in row:
        return f"{'✓' if row['holds'] else '✗'} {row['what']}"
    found = f"left out, {row['left_out']}" if "left_out" in row else in_words(row)
    return f"{row['what']}: {found}".rstrip()


# --- running them --------------------------------------------------------------------------------


def check(parts: Mapping[str, Part], given: Context, out: Path, seconds: float) -> bool:
    """Run the parts one after the other, print and store what they find; did all succeed?

    `out` is written after every row. It holds a machine's name to each part's name to `outcome`,
    `seconds`, `versions` and `rows`; what other machines and other parts have found is kept.

    Args:
        seconds: that each part may take.

    Raises:
        ParameterError: `out` is there, and not a file of this command.
    """
    stored, machine = read(out), hardware()
    name = machine.on(machine.device)
    mine, installed = stored.setdefault(name, {}), f"{versions()} · CUDA {torch.version.cuda}"
    print(f"{name}\n{installed}")
    for part, function in parts.items():
        mine[part] = {"outcome": "not finished", "versions": installed, "rows": []}
        print(f"{part}: at most {seconds:.0f} s ...", flush=True)
        began = time.perf_counter()
        for found in _messages(function, given, seconds):
            if isinstance(found, str):
                mine[part]["outcome"] = _judged(found, mine[part]["rows"])
            else:
                mine[part]["rows"].append(found)
                print(f"  {told(found)}", flush=True)
            mine[part]["seconds"] = round(time.perf_counter() - began, 1)
            store_text(as_json(stored), out)
        print(f"{part}: {mine[part]['outcome']}, {mine[part]['seconds']} s", flush=True)
    return all(mine[part]["outcome"] == DONE for part in parts)


def read(out: Path) -> dict[str, dict[str, dict]]:
    """What is stored, nothing where there is no file: machine -> part -> what it found."""
    if not out.exists():
        return {}
    try:
        stored = json.loads(out.read_text(encoding="utf-8"))
        [row["rows"] for parts in stored.values() for row in parts.values()]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ParameterError(
            f"{out} was not written by gpu-check; name another file with --out."
        ) from error
    return stored


def _judged(outcome: str, rows: Sequence[Row]) -> str:
    """A part's outcome, which is not done where something does not hold."""
    wrong = [row["what"] for row in rows if not row.get("holds", True)]
    failed = f"failed: it does not hold that {'; '.join(wrong)}"
    return failed if wrong and outcome == DONE else outcome


def _messages(part: Part, given: Context, seconds: float) -> Iterator[Row | str]:
    """The rows of a part as they are found, then its outcome: done, failed, over time."""
    start_method = context()
    here, there = start_method.Pipe(duplex=False)
    process = start_method.Process(target=_work, args=(there, part, given))
    process.start()
    there.close()  # so that a dead process is an end of file, not a wait for ever
    until, found = time.monotonic() + seconds, None
    try:
        while not isinstance(found, str):
            found = f"over time: stopped after {seconds:.0f} s"
            if here.poll(max(0.0, until - time.monotonic())):
                found = here.recv()
            yield found
    except (EOFError, ConnectionError):
        process.join(10)
        yield f"failed: its process died, exit code {process.exitcode}"
    finally:
        _end(process, 0 if time.monotonic() >= until else 2)


def _work(pipe: Connection, part: Part, given: Context) -> None:
    """What a part's process does."""
    limit_threads()
    try:
        for row in part(given):
            pipe.send(row)
        pipe.send(DONE)
    except Exception as error:  # whatever it is, the parent shall tell it
        traceback.print_exc()
        pipe.send(f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def _end(process: BaseProcess, patience: float) -> None:
    """Let a part's process end in so many seconds, else kill it with all that it has started."""
    process.join(patience)
    family = []
    with suppress(psutil.NoSuchProcess):
        whole = psutil.Process(process.pid)
        family = [*whole.children(recursive=True), whole]
    for one in family:
        with suppress(psutil.NoSuchProcess):  # one that ended by itself spares no other
            one.kill()
    process.join(10)  # not for ever: a GPU's driver may keep it
