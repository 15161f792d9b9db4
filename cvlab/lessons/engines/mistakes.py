"""Wrong ways to time PyTorch against ONNX Runtime, done on purpose: each makes one of them win.

A mistake is a function that times both on one image: it returns (PyTorch's, ONNX Runtime's)
seconds. `measure` runs each in a process of its own.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from cvlab.bench import Call, context, synchronise, time_calls
from cvlab.lessons.engines import calls
from cvlab.show import each

CALLS = 25


@dataclass(frozen=True)
class Pair:
    """A network in both formats, and one image."""

    net: Path  # see `cvlab.store`
    model: Path  # the ONNX file
    images: np.ndarray  # normalised float32 [1, 3, H, W]
    threads: int

    def pytorch(self) -> Call:
        """PyTorch as it should be called."""
        return calls.pytorch(self.net, self.images, self.threads)

    def onnx(self, threads: int | None = None) -> Call:
        """ONNX Runtime as it should be called."""
        return calls.onnx(self.model, self.images, threads or self.threads)


def median(call: Call) -> float:
    """Seconds of a call: the median of `CALLS` after a warm-up of the same number."""
    return float(np.median(time_calls(call, 2 * CALLS)[CALLS:]))


def no_mistake(pair: Pair) -> tuple[float, float]:
    """Both warm, the same threads, one after the other with ONNX Runtime last."""
    return median(pair.pytorch()), median(pair.onnx())


# --- ONNX Runtime looks faster ---------------------------------------------------------------


def first_call(pair: Pair) -> tuple[float, float]:
    """PyTorch is timed while it wakes up, ONNX Runtime afterwards."""
    return time_calls(pair.pytorch(), 1)[0], median(pair.onnx())


def with_gradients(pair: Pair) -> tuple[float, float]:
    """PyTorch keeps everything for a backward pass that never comes."""
    net, images = calls.network(pair.net, pair.threads), torch.from_numpy(pair.images)
    return median(lambda: net(images)), median(pair.onnx())


def one_thread(pair: Pair) -> tuple[float, float]:
    """PyTorch has one thread, ONNX Runtime takes what it finds: all cores."""
    return median(calls.pytorch(pair.net, pair.images, 1)), median(pair.onnx())


def with_preprocessing(pair: Pair) -> tuple[float, float]:
    """PyTorch's time begins at the picture, ONNX Runtime's at the finished tensor."""
    from cvlab.machine import import_torchvision

    import_torchvision()
    from torchvision import transforms

    side = pair.images.shape[-1]
    steps = [transforms.Resize(side), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    prepare, picture = transforms.Compose(steps), Image.effect_noise((32, 32), 60).convert("RGB")
    net = calls.network(pair.net, pair.threads)

    def call() -> None:
        with torch.inference_mode():
            net(prepare(picture)[None])

    return median(call), median(pair.onnx())


def spinning(pair: Pair) -> tuple[float, float]:
    """In turns in one process: ONNX Runtime's threads still spin when PyTorch's time begins."""
    pytorch, onnx = pair.pytorch(), pair.onnx()
    seconds = [(time_calls(onnx, 1)[0], time_calls(pytorch, 1)[0]) for _ in range(2 * CALLS)]
    there, here = np.median(seconds[CALLS:], axis=0)
    return here, there


# --- PyTorch looks faster --------------------------------------------------------------------


def new_session(pair: Pair) -> tuple[float, float]:
    """ONNX Runtime loads the model again for every image."""
    return median(pair.pytorch()), float(np.median(time_calls(lambda: pair.onnx()(), 10)))


def onnx_one_thread(pair: Pair) -> tuple[float, float]:
    """ONNX Runtime has one thread, PyTorch all."""
    return median(pair.pytorch()), median(pair.onnx(threads=1))


def batch_against_single(pair: Pair) -> tuple[float, float]:
    """PyTorch's time is that of a batch of 32 by 32, ONNX Runtime's that of a single image."""
    batch = np.repeat(pair.images, 32, axis=0)
    return median(calls.pytorch(pair.net, batch, pair.threads)) / 32, median(pair.onnx())


def batch_against_new_session(pair: Pair) -> tuple[float, float]:
    """The two before together: an evaluation loop in PyTorch, a helper for one file in ONNX."""
    return batch_against_single(pair)[0], new_session(pair)[1]


def unsynchronised(pair: Pair) -> tuple[float, float]:
    """On a GPU: PyTorch's call returns when the work is ordered, not when it is done."""
    call = calls.pytorch(pair.net, pair.images, 1, device="cuda")
    return float(np.median(not_awaited(call, 2 * CALLS)[CALLS:])), median(pair.onnx())


def not_awaited(call: Call, n: int) -> np.ndarray:
    """Seconds until each of `n` calls returns, float [n]: on a GPU its work is not done then."""
    seconds = np.empty(n)
    for i in range(n):
        synchronise()
        start = time.perf_counter()
        call()
        seconds[i] = time.perf_counter() - start
    return seconds


FOR_ONNX = (first_call, with_gradients, one_thread, with_preprocessing, spinning)
FOR_PYTORCH = (onnx_one_thread, batch_against_single, new_session, batch_against_new_session)


def by_name(names: Sequence[str]) -> list[Callable]:
    """`no_mistake`, then the mistakes of these names; on a GPU also `unsynchronised`."""
    gpu = [unsynchronised] if torch.cuda.is_available() else []
    return [no_mistake, *(kind for kind in FOR_ONNX + FOR_PYTORCH if kind.__name__ in names), *gpu]


def measure(pair: Pair, kinds: Sequence[Callable], times: int = 5) -> pd.DataFrame:
    """Make the mistakes in turns, `times` times each, each time in a fresh process.

    Returns:
        one row a mistake: `ratio`, the median of PyTorch's time over ONNX Runtime's, `low` and
        `high`, the least and greatest, `n` times; in milliseconds `PyTorch` and `ONNX Runtime`.
    """
    turns = each([*kinds] * times, "mistakes", "try")
    with ProcessPoolExecutor(1, context(), max_tasks_per_child=1) as pool:
        made = [pool.submit(kind, pair).result() for kind in turns]
    seconds = np.reshape(made, (times, len(kinds), 2))
    ratios, milliseconds = seconds[..., 0] / seconds[..., 1], 1e3 * np.median(seconds, axis=0)
    names = [kind.__name__.replace("_", " ") for kind in kinds]
    table = pd.DataFrame(milliseconds, pd.Index(names, name="mistake"), ["PyTorch", "ONNX Runtime"])
    ratio, low, high = np.median(ratios, axis=0), ratios.min(axis=0), ratios.max(axis=0)
    return table.assign(ratio=ratio, low=low, high=high, n=times)
