"""00: how fast images are fed, what a machine and a task take, and what the data look like."""

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import ipywidgets as widgets
import numpy as np
import onnx
import pandas as pd
import psutil
import torch
from matplotlib.figure import Figure
from onnx import TensorProto, helper, numpy_helper
from torch.utils.data import DataLoader, Dataset

from cvlab import runtime
from cvlab.bench import Call, compare, context
from cvlab.data import ImageData, Split
from cvlab.machine import hardware, import_torchvision, usable_cores
from cvlab.plots import COLOURS, canvas
from cvlab.show import interactive

BATCH = 128


def torchvision_loader(split: Split, batch_size: int, mean, std, *, workers: int = 2) -> DataLoader:
    """The same augmentation as every tutorial writes it, for comparison: one image at a time.

    Its batches are (float32 [B, 3, H, W], int64 [B]).
    """
    import_torchvision()
    from torchvision import transforms

    steps = [
        transforms.ToPILImage(),
        transforms.RandomCrop(split.images.shape[-1], padding=4, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ]
    return DataLoader(
        _Transformed(split, transforms.Compose(steps)),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


class _Transformed(Dataset):
    """A split as torch's map-style dataset: one transformed image at a time."""

    def __init__(self, split: Split, transform):
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int):
        return self.transform(self.split.images[index]), self.split.labels[index]


def feed_rate(data: ImageData, images: int = 20_000, rounds: int = 5, device="cpu") -> pd.DataFrame:
    """Images a second of one augmented pass (random crop, flip, normalise) over the training set.

    In one thread, besides the workers' own: feeding should leave the cores to the network, and
    where another program takes a core, two threads that wait for each other are far slower.

    Returns:
        one row a way to feed: `median`, `p10`, `p90` in images a second, `n` passes,
        and `times`, the speed relative to a DataLoader with 2 workers.
    """
    data, ways = data.take(n_train=images), {}
    for workers in (2, 0):
        loader = torchvision_loader(data.train, BATCH, data.mean, data.std, workers=workers)
        ways[f"DataLoader, {workers} workers"] = partial(_drain, loader)
    ours = data.batches("train", BATCH, device=device)
    ways["Batches"] = partial(_drain, ours)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        timed = compare(ways, rounds=rounds, warmup=1)
    finally:
        torch.set_num_threads(threads)
    return rates(timed, len(ours) * BATCH)


def _drain(batches) -> None:
    for _ in batches:
        pass


def rates(timed: pd.DataFrame, images: int) -> pd.DataFrame:
    """Milliseconds a pass to images a second; a low time is a high rate, so p10 and p90 swap."""
    per_second = images * 1e3 / timed[["ms", "p90", "p10"]]
    per_second.columns = ["median", "p10", "p90"]
    return per_second.assign(n=timed["n"], times=timed["ratio"]).rename_axis("way")


def peaks(size: int = 2048, megabytes: int = 256, calls: int = 12) -> pd.DataFrame:
    """What this machine does at best: products of square matrices, and copies within memory.

    Args:
        size: rows and columns; bf16 gets a quarter of them where the CPU has no instruction for it.
        megabytes: of the array that is copied; far more than the cache that this process gets.
        calls: of each, after a warm-up.

    Returns:
        index "fp32", "bf16", "INT8" and "memory": `median`, `p10`, `p90` in 10^9 operations a
        second, a multiplication and an addition being two; of memory GB/s, read and written.
    """
    small = size if hardware().has("avx512_bf16", "amx_bf16") else size // 4
    source = torch.ones(megabytes * 250_000)
    work = {  # one after the other: the engines' threads would get into each other's way
        "fp32": (2e-9 * size**3, _torch_product(size, torch.float32)),
        "bf16": (2e-9 * small**3, _torch_product(small, torch.bfloat16)),
        "INT8": (2e-9 * size**3, _int8_product(size)),
        "memory": (2e-9 * source.nbytes, partial(torch.empty_like(source).copy_, source)),
    }
    timed = [rates(compare({k: call}, rounds=calls), much) for k, (much, call) in work.items()]
    return pd.concat(timed).drop(columns="times")


def _torch_product(size: int, kind: torch.dtype) -> Call:
    left, right, out = (torch.ones(size, size, dtype=kind) for _ in range(3))
    return partial(torch.mm, left, right, out=out)


def _int8_product(size: int) -> Call:
    """ONNX Runtime's `MatMulInteger`: uint8 times constant int8, as in a quantised network."""
    numbers, shape = np.random.default_rng(0), [size, size]
    x, y = (
        helper.make_tensor_value_info(*v, shape)
        for v in (("x", TensorProto.UINT8), ("y", TensorProto.INT32))
    )
    weight = numpy_helper.from_array(numbers.integers(-64, 64, shape, dtype=np.int8), "weight")
    node = helper.make_node("MatMulInteger", ["x", "weight"], ["y"])
    graph = helper.make_graph([node], "product", [x], [y], [weight])
    with TemporaryDirectory() as folder:
        file = Path(folder) / "product.onnx"
        opset = helper.make_opsetid("", 17)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), file)
        session = runtime.session(file)
    return partial(session.run, None, {"x": numbers.integers(0, 255, shape, dtype=np.uint8)})


def plot_class_balance(counts: pd.DataFrame, title: str) -> Figure:
    """Horizontal bars: index the classes, one column a split."""
    figure, axis = canvas(title, size=(7.5, 0.3 * len(counts) + 1.2))
    left = np.zeros(len(counts))
    for colour, part in zip(COLOURS, counts.columns, strict=False):
        axis.barh(counts.index, counts[part], left=left, color=colour, label=part, height=0.7)
        left += counts[part].to_numpy()
    axis.invert_yaxis()
    axis.set_xlabel("images")
    axis.grid(visible=False, axis="y")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def plot_intervals(table: pd.DataFrame, title: str, xlabel: str) -> Figure:
    """Medians as points with p10-p90 as bars: columns `median`, `p10`, `p90`, index the names."""
    figure, axis = canvas(title, size=(7.5, 0.5 * len(table) + 1.4))
    low, high = table["median"] - table["p10"], table["p90"] - table["median"]
    places = np.arange(len(table))
    axis.errorbar(table["median"], places, xerr=[low, high], fmt="o", color=COLOURS[0], capsize=4)
    for place, (value, end) in enumerate(zip(table["median"], table["p90"], strict=True)):
        text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        axis.annotate(text, (end, place), (8, -4), textcoords="offset points")
    axis.set_yticks(places, table.index)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set(xlabel=xlabel, xlim=(0, table["p90"].max() * 1.2), ylim=(-0.6, len(table) - 0.4))
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    return figure


def explore(data: ImageData) -> widgets.Widget:
    """Pick a class and a page, see its images."""
    name = widgets.Dropdown(options=data.classes, description="class")
    page = widgets.IntSlider(min=1, max=50, description="page", continuous_update=False)

    def draw(name: str, page: int):
        members = np.flatnonzero(data.train.labels.numpy() == data.classes.index(name))
        chosen = np.roll(members, -24 * (page - 1))[:24]
        figure, axes = canvas(name, 8, 3, (7, 2.9), bare=True)
        for axis, index in zip(axes.flat, chosen, strict=False):
            axis.imshow(data.train.images[index].permute(1, 2, 0).numpy())
        return figure

    return interactive(draw, {"name": name, "page": page})


def first_calls(seconds: np.ndarray, title: str) -> Figure:
    """Milliseconds of every call in order, with the median of those after the fifth."""
    ms = np.asarray(seconds) * 1e3
    steady = np.median(ms[5:])
    figure, axis = canvas(title, size=(7.5, 3.6))
    axis.plot(1, ms[0], "D", color=COLOURS[1], markersize=8, label=f"first call: {ms[0]:.3g} ms")
    axis.plot(np.arange(2, len(ms) + 1), ms[1:], "o", color=COLOURS[0], markersize=4)
    label = f"median after the fifth: {steady:.3g} ms"
    axis.axhline(steady, color=COLOURS[6], linestyle="--", linewidth=1, label=label)
    axis.set(xlabel="call", ylabel="time of the call, ms", ylim=(0, ms.max() * 1.3))
    axis.legend(loc="upper right", ncols=2)  # in the room above all points
    return figure


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
    workers = min(len(tasks), usable_cores())
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
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
