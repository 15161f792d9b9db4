"""The parts of `gpu-check`: training, clocks, memory, ONNX Runtime, `full` budgets, 09's record.

Lessons are imported by the part that needs them: a package that is missing costs no other part.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from torch import nn

from cvlab import store
from cvlab.bench import Call, compare, race, time_calls
from cvlab.data import ImageData
from cvlab.machine import hardware
from cvlab.models import SmallCNN
from cvlab.profiles import ParameterError
from cvlab.tools.gpu_budgets import budgets
from cvlab.tools.gpu_check import Context, Part, Row, holds, left_out, number, spread
from cvlab.train import PRECISIONS, History, Training, fit, predict

CLOSE = 0.05  # of the last loss, between two precisions
SAME = 1e-3  # nats, between the losses of a training and of the same resumed
NO_GPU = "no GPU here"


# --- training ------------------------------------------------------------------------------------


def training(given: Context) -> Iterator[Row]:
    """`fit` in every precision; then its network on the CPU, and a training that is resumed."""
    sizes, losses = given.sizes, {}
    data = given.data.take(n_train=sizes.images, n_val=sizes.batch)
    how = Training(lr=0.02, schedule="one-cycle", epochs=sizes.epochs, batch_size=sizes.batch)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for precision in PRECISIONS:
            if precision == "fp16" and given.device.type == "cpu":
                yield left_out("training in fp16", "a CPU takes minutes for a few steps")
                continue
            how, file = replace(how, precision=precision), folder / precision
            net, history = trained(data, how, given.device, file)
            images = len(history.batch_rows) // sizes.epochs * sizes.batch
            rates = [images / row["seconds"] for row in history.epoch_rows[1:]]
            yield spread(f"fit, {precision}", rates, "images/s", images=images, source=data.source)
            losses[precision] = history.epoch_rows[-1]["train_loss"]
            yield number(f"its last loss, {precision}", losses[precision], "nats")
            yield from scaled(file)
        apart = max(losses.values()) - min(losses.values())
        near = apart < CLOSE * max(losses.values())
        yield holds(f"{', '.join(losses)} end within {CLOSE:.0%} of each other", near)
        yield from on_the_cpu(net, data, given.device, folder)
        yield from resumed(data.take(8 * sizes.batch), how, given.device, folder)


def trained(
    data: ImageData,
    how: Training,
    device: torch.device,
    checkpoint: Path,
    watch: Callable | None = None,
) -> tuple[nn.Module, History]:
    """A `SmallCNN`, with the same first weights each time, trained by `fit`."""
    torch.manual_seed(0)
    net = SmallCNN(len(data.classes))
    return net, fit(net, data, how, device=device, checkpoint=checkpoint, watch=watch, what=None)


def scaled(checkpoint: Path) -> Iterator[Row]:
    """What a checkpoint says of its weights and, in fp16, of the scaling of the loss."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    weights = state["model"].values()
    yield holds("every weight is finite", all(value.isfinite().all() for value in weights))
    if scaler := state["scaler"]:  # empty in other precisions
        yield number("its scale of the loss", scaler["scale"], "times")
        yield number("its steps since a gradient overflowed", scaler["_growth_tracker"], "steps")
        yield holds("the last step was taken", scaler["_growth_tracker"] > 0)


def on_the_cpu(
    net: nn.Module, data: ImageData, device: torch.device, folder: Path
) -> Iterator[Row]:
    """Store a network that was trained on the device; the CPU reads the same, and says the same."""
    stored = store.load(store.save(net, folder / "net.pt", data)).model
    own = net.state_dict()
    same = all(torch.equal(own[name].cpu(), value) for name, value in stored.state_dict().items())
    yield holds("the CPU reads the weights that the device had", same)
    here, _ = predict(net, data.batches("val", 250, device=device), precision="fp32")
    there, _ = predict(stored, data.batches("val", 250), precision="fp32")
    yield number("logits on the CPU are off by at most", (here - there).abs().max(), "")
    agree = (here.argmax(1) == there.argmax(1)).double().mean().item()
    yield number("same answer on the CPU", agree, "fraction", n=len(data.val))
    yield holds("for 98 % of the images or more", agree >= 0.98)


class Stopped(Exception):
    """A training was interrupted on purpose."""


def stop(*_) -> None:
    """For `watch` of `fit`: ends a training after its first epoch."""
    raise Stopped


def resumed(data: ImageData, how: Training, device: torch.device, folder: Path) -> Iterator[Row]:
    """Interrupt a training after an epoch, go on; beside it the same without a break, twice."""
    torch.backends.cudnn.deterministic = True  # else two trainings may differ by themselves
    how, losses = replace(how, epochs=2), {}
    with suppress(Stopped):
        trained(data, how, device, folder / "resumed", stop)
    for name in ("once", "again", "resumed"):
        losses[name] = trained(data, how, device, folder / name)[1].batches["loss"]
    again, later = ((losses[name] - losses["once"]).abs().max() for name in ("again", "resumed"))
    yield number("losses of the same training again are off by", again, "nats")
    yield number("losses of a resumed training are off by", later, "nats")
    yield holds("a resumed training is the same one", later < max(SAME, 3 * again))


# --- time and memory -----------------------------------------------------------------------------


def timing(given: Context) -> Iterator[Row]:
    """A convolutional network by each clock; 05's asynchronous mistake; 05's race on a GPU."""
    from cvlab.lessons.engines import calls, mistakes

    sizes, threads, device = given.sizes, torch.get_num_threads(), given.device.type
    clocks = {"awaited": time_calls, "not awaited": mistakes.not_awaited}
    with TemporaryDirectory() as name:
        net, model = exported(given, Path(name))
        for batch in sizes.batches:
            call = calls.pytorch(net, noise(given, batch), threads, device=device)
            if device == "cuda":
                clocks["CUDA events"] = by_events
            yield from by_clocks(call, clocks, sizes.calls, f"batch {batch}")
        pair = mistakes.Pair(net, model, noise(given, 1), threads)
        for kind, row in mistakes.measure(pair, mistakes.by_name([]), sizes.tries).iterrows():
            ends = {"least": row["low"], "greatest": row["high"], "n": int(row["n"])}
            yield number(f"05, {kind}: PyTorch's time over ONNX's", row["ratio"], "times", **ends)
        if device == "cpu":
            yield left_out("CUDA events, the mistake itself, 05's race on a GPU", NO_GPU)
            return
        for batch in sizes.batches:
            field = calls.contestants(net, model, noise(given, batch), threads, device)
            found = race(field, rounds=sizes.rounds, warmup=20)
            yield from in_ms(found, f"05's race, batch {batch}")


def by_clocks(call: Call, clocks: Mapping[str, Callable], n: int, what: str) -> Iterator[Row]:
    """`n` calls by each clock in turns: what each says, and what comes of not waiting."""
    time_calls(call, n)
    turns = [{name: clock(call, 1)[0] for name, clock in clocks.items()} for _ in range(n)]
    ms = 1e3 * pd.DataFrame(turns)
    for name in clocks:
        yield spread(f"{what}, {name}", ms[name], "ms")
    ratio, (low, high) = ms.median() / ms["awaited"].median(), ms.quantile([0.1, 0.9]).to_numpy()
    yield number(f"{what}, made faster by not waiting", 1 / ratio["not awaited"], "times")
    if "CUDA events" in clocks:
        near = abs(ratio["CUDA events"] - 1) < 0.2
        yield holds(f"{what}: events and a clock that waits agree within 20 %", near)
    else:
        yield holds(f"{what}: on a CPU both are within their spread", low.max() <= high.min())


def by_events(call: Call, n: int) -> np.ndarray:
    """Seconds of each of `n` calls by the GPU's own clock: float [n]."""
    seconds = np.empty(n)
    for i in range(n):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        seconds[i] = begin.elapsed_time(end) / 1e3
    return seconds


def in_ms(table: pd.DataFrame, what: str) -> Iterator[Row]:
    """The times of a race or a comparison, see `cvlab.bench.summary`."""
    for name, row in table.iterrows():
        ends = {"p10": row["p10"], "p90": row["p90"], "n": int(row["n"])}
        yield number(f"{what}: {name}", row["ms"], "ms", **ends)


def noise(given: Context, batch: int) -> np.ndarray:
    """Images of noise: float32 [batch, 3, side, side]."""
    shape = (batch, 3, given.sizes.side, given.sizes.side)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def exported(given: Context, folder: Path) -> tuple[Path, Path]:
    """The network that is timed, with random weights: see `cvlab.store`, and as ONNX file."""
    from cvlab.export import to_onnx
    from cvlab.lessons.pretrained import zoo

    torch.manual_seed(0)
    net = zoo.build(given.sizes.network, len(given.data.classes))
    model = to_onnx(net, folder / "net.onnx", (3, given.sizes.side, given.sizes.side))
    return store.save(net, folder / "net.pt", given.data), model


def memory(given: Context) -> Iterator[Row]:
    """The highest memory of a training step by the size of its batch."""
    from cvlab.lessons.environment import peak_memory

    batches = {n: given.data.take(n, 1, 1) for n in given.sizes.memory_batches}
    peaks = peak_memory({n: partial(step, data, given.device) for n, data in batches.items()})
    of = "tensors on the GPU" if given.device.type == "cuda" else "the process"
    for n, peak in peaks.items():
        yield number(f"highest memory of {of}, batch {n}", peak, "MB")
    yield holds("a larger batch takes more", peaks.is_monotonic_increasing)


def step(data: ImageData, device: torch.device) -> Call:
    """A call that trains a `SmallCNN` for one step on all of `data`."""
    how = Training(lr=0.01, batch_size=len(data.train))
    return partial(fit, SmallCNN(len(data.classes)), data, how, device=device, what=None)


# --- ONNX Runtime --------------------------------------------------------------------------------


def onnx_runtime(given: Context) -> Iterator[Row]:
    """The CUDA provider against the CPU's; what binding input and output to memory brings."""
    from cvlab import runtime
    from cvlab.lessons.engines import calls

    device = given.device.type if runtime.has_cuda() else "cpu"
    if device == "cpu":
        missing = "onnxruntime-gpu is not installed" if given.device.type == "cuda" else NO_GPU
        yield left_out("ONNX Runtime on a GPU", missing)
    with TemporaryDirectory() as name:
        _, file = exported(given, Path(name))
        model, plain = runtime.Model(file, device=device, spin=True), runtime.Model(file)
        used = model.session.get_providers()[0]  # it falls back to the CPU without a word
        yield holds(f"ONNX Runtime computes on {device}", used.lower().startswith(device))
        for batch in given.sizes.batches:
            images = noise(given, batch)
            bound = calls.onnx_bound(file, images, torch.get_num_threads(), device)
            said = {"plain": model.run(images), "bound": bound()[0].numpy()}
            reference = plain.run(images)
            for way, logits in said.items():
                apart = np.abs(logits - reference).max() / np.abs(reference).max()
                yield number(f"{device}, {way}, batch {batch}: logits off by", 100 * apart, "%")
                yield holds("less than 1 % of the largest on the CPU", apart < 0.01)
            run = partial(model.session.run, None, {model.input.name: images})
            table = compare({"plain": run, "bound": bound}, rounds=given.sizes.calls)
            yield from in_ms(table, f"{device}, batch {batch}")


def record(given: Context) -> Iterator[Row]:
    """09's network in as many passes as its source gives it: the test images, and the seconds."""
    from cvlab.lessons.fast import record as fast

    data, sizes = fast.everything(given.data), given.sizes
    recipe = replace(fast.RECIPE, passes=sizes.record_passes)
    fast.once(data, replace(recipe, passes=0.02), 0, given.device)  # a GPU chooses its kernels
    found = [fast.once(data, recipe, seed, given.device) for seed in range(sizes.record_seeds)]
    right = sum(one["correct"] for one in found) / sum(one["n"] for one in found)
    yield number(f"09, {recipe.passes:g} passes, mean test accuracy", right, "fraction")
    seconds = [one["seconds"] for one in found]
    yield spread("its seconds, answers included", seconds, "s", source=data.source)
    if data.real and "H100" in (hardware().gpu or ""):
        yield holds("94 % in less than 5 seconds", right > 0.94 and max(seconds) < 5)


# --- all of them ---------------------------------------------------------------------------------


PARTS: dict[str, Part] = {
    "training": training,
    "timing": timing,
    "memory": memory,
    "onnxruntime": onnx_runtime,
    "budgets": budgets,
    "record": record,
}


def choose(names: Sequence[str]) -> dict[str, Part]:
    """The parts of these names; all for none.

    Raises:
        ParameterError: there is no such part; the choices are listed.
    """
    for name in names:
        if name not in PARTS:
            raise ParameterError(f"There is no part {name!r}; choose from {', '.join(PARTS)}.")
    return {name: PARTS[name] for name in names or PARTS}
