"""Our ways beside the usual ones, side by side in one run: what `make bench` measures."""

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
from torch import Tensor
from torch.nn import functional as F

from cvlab import export, runtime, store
from cvlab.bench import DISTURBED, Contestant, compare, race
from cvlab.data import ImageData
from cvlab.lessons.engines import calls
from cvlab.lessons.environment import BATCH, feed_rate, rates, torchvision_loader
from cvlab.lessons.int8 import openvino_int8, shrink
from cvlab.lessons.int8.ladder import FLOAT, first, in_memory, side_by_side, stacked
from cvlab.lessons.int8.quantize import OneBatch, Source
from cvlab.lessons.pretrained import finetune
from cvlab.models import SmallCNN
from cvlab.run import start
from cvlab.show import each
from cvlab.tools import executed, outside, quantize
from cvlab.tools.examine import examine, whole
from cvlab.train import Training, evaluate, fit


def training_speed(data: ImageData) -> pd.DataFrame:
    """Images a second of an epoch of `SmallCNN`, 6,400 images: the tutorial's loop against `fit`.

    The tutorial: fp32, NCHW, a DataLoader with 2 workers. Both use SGD with momentum, batches
    of 128, the same augmentation; `fit` also makes its batches, and evaluates, on 128 images.
    Columns as `feed_rate`.
    """
    data = data.take(n_train=6_400, n_val=BATCH)
    loader = torchvision_loader(data.train, BATCH, data.mean, data.std, workers=2)
    plain, model = SmallCNN(len(data.classes)), SmallCNN(len(data.classes))
    training = Training(optimizer="momentum", lr=0.01, batch_size=BATCH)
    calls = {
        "tutorial loop": lambda: _tutorial_epoch(plain, loader),
        "fit": lambda: fit(model, data, training, what=None),
    }
    timed = compare(calls, rounds=3, warmup=1)
    return rates(timed, len(data.train) // BATCH * BATCH)


def _tutorial_epoch(model: torch.nn.Module, loader) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def reference_training(data: ImageData) -> pd.DataFrame:
    """Train `SmallCNN` as well as minutes allow, read the test set once: accuracy and time.

    Returns:
        one row: `accuracy`, `low`, `high` (95 % interval), `n`, `seconds` (training and its
        evaluations), `epochs`.
    """
    torch.manual_seed(0)
    model = SmallCNN(len(data.classes))
    training = Training(
        optimizer="Nesterov",
        lr=0.15,
        weight_decay=5e-4,
        schedule="one-cycle",
        label_smoothing=0.1,
        epochs=9,
        batch_size=BATCH,
    )
    history = fit(model, data, training)
    score = evaluate(model, data.batches("test", 1000))
    return pd.DataFrame([score.row | {"seconds": history.seconds, "epochs": training.epochs}])


def inference(
    net: Path, model: Path, images: np.ndarray, threads: int, *, rounds: int = 12
) -> pd.DataFrame:
    """One network on every engine there is, a row each: one image, and a batch.

    Args:
        net: the network, see `cvlab.store`.
        model: the same as ONNX file.
        images: the batch, normalised float32 [N, 3, H, W].
        threads: for each engine.
        rounds: turns of each.

    Returns:
        columns of `cvlab.lessons.engines.calls.timed`: latency and speedup of one image, throughput
        of the batch.
    """
    plain = [f"ONNX Runtime, {level}" for level in ("none", "basic", "extended")]
    field = calls.contestants(net, model, images, threads)
    ways = {name: one.prepare for name, one in field.items() if name not in plain}
    single, batch = (
        calls.timed(ways, given, threads, rounds=rounds, what=f"inference, {len(given)}")
        for given in (images[:1], images)
    )
    return single.assign(throughput=batch["throughput"]).rename_axis("way")


def against_itself(model: Path, images: np.ndarray, threads: int, races: int = 100) -> pd.DataFrame:
    """Race one engine against itself: how often does the 95 % interval hold 1.00?

    Args:
        model: an ONNX file.
        images: one batch, normalised float32 [N, 3, H, W].
        threads: of the engine.
        races: of two contestants each.

    Returns:
        one row: `races`, how many intervals `held` 1.00, their median `width`, how many races were
        `disturbed`, and the median `ratio` with `least` and `greatest`.
    """
    one = Contestant(partial(calls.onnx, model), images, threads)
    turns = each([*range(races)], "an engine against itself", "race")
    tables = [race({"one": one, "the same": one}, rounds=12) for _ in turns]
    found = pd.DataFrame([table.loc["the same"] for table in tables])
    ratios = found["ratio"]
    row = {
        "races": races,
        "held": ((found["low"] <= 1) & (found["high"] >= 1)).sum(),
        "width": (found["high"] - found["low"]).median(),
        "disturbed": sum(sum(table.attrs.values()) > DISTURBED for table in tables),
    }
    row |= {"ratio": ratios.median(), "least": ratios.min(), "greatest": ratios.max()}
    return pd.DataFrame([row])


def int8(
    model: Path, calibration: Tensor, data: ImageData, folder: Path, threads: int
) -> pd.DataFrame:
    """Our INT8 model beside what the quantisers' own defaults make of the same file and images.

    Args:
        model: a float ONNX classifier.
        calibration: normalised float32 [N, 3, H, W] of training images.
        data: as the network sees it; who chooses does it on its validation images, all are judged
            on its test images.
        folder: where files are put.
        threads: of each engine.

    Returns:
        a row a way: `accuracy`, `low`, `high`, `n`, `drop_pp` with `drop_low` and `drop_high`,
        `size_mb`; `throughput` of batches of 32 in images a second, and `speedup` over float in
        ONNX Runtime. NNCF's model runs in OpenVINO, where both are installed.
    """
    source = Source(runtime.Model(model), calibration, folder)
    val = in_memory(data.batches("val", 25))
    found = shrink.search(source, val, what="ours")
    models = {FLOAT: source.float_model, "cvlab": found.model}
    for name, default in DEFAULTS.items():
        file = folder / f"{len(models)}.onnx"
        with runtime.quiet():
            default(model, file, source)
        models[name] = runtime.Model(file)
    test = in_memory(data.batches("test", 25))
    batch = stacked(first(test, 32))[:32].numpy()
    table = side_by_side(models, test, batch, threads)
    if openvino_int8.available():
        files = {"our int8": found.model.path}
        files["NNCF int8"] = openvino_int8.nncf_int8(model, source.images, folder / "nncf.xml")
        files["NNCF int8, accuracy kept"] = openvino_int8.nncf_int8(
            model, source.images, folder / "kept.xml", val
        )
        theirs = openvino_int8.table(source.float_model, files, test, threads)
        table = pd.concat([table, theirs.iloc[2:]])  # without fp32
    columns = ["accuracy", "low", "high", "n", "drop_pp", "drop_low", "drop_high"]
    columns += ["size_mb", "throughput", "speedup"]
    return table[columns].astype(float).rename_axis("way")


def _u8s8(reduce_range: bool, model: Path, path: Path, source: Source) -> None:
    """What ONNX Runtime's page on quantisation advises for x86, in one call."""
    quantize_static(
        source.prepared,
        path,
        OneBatch(source.feeds(len(source.images))[0]),
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
    )


DEFAULTS = {  # ONNX Runtime's own functions, called as its documentation does
    "ONNX Runtime's default, dynamic": lambda model, path, source: quantize_dynamic(
        model, path, weight_type=QuantType.QUInt8
    ),
    "ONNX Runtime's default, static": lambda model, path, source: quantize_static(
        source.prepared, path, OneBatch(source.feeds(len(source.images))[0])
    ),
    "ONNX Runtime, U8S8 per channel": partial(_u8s8, False),
    "ONNX Runtime, U8S8 per channel, reduce_range": partial(_u8s8, True),
}


def smoke_run() -> pd.DataFrame:
    """Every notebook in the smoke profile, once, in a process of its own.

    Returns:
        a row a notebook, `seconds` and `claims` that hold; `all` is the whole run, from the command
        line to the report.

    Raises:
        RuntimeError: a notebook did not pass; the run's own table has said which.
    """
    with TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "cvlab", "run", "--profile", "smoke", "--out", folder]
        if subprocess.run(command).returncode:
            raise RuntimeError("The smoke run did not pass, so its time says nothing; see above.")
        seconds = time.perf_counter() - began
        found = [executed.read(path) for path in sorted(Path(folder).glob("*.ipynb"))]
    rows = {one.name: {"seconds": one.seconds, "claims": one.held} for one in found}
    rows["all"] = {"seconds": seconds, "claims": sum(one.held for one in found)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("notebook")


def report(data: ImageData, where: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """All comparisons, each as (title, table) as soon as it is measured.

    Args:
        data: CIFAR-10, all of it.
        where: it came from, as `cvlab.run.start` takes it.
    """
    yield "the whole smoke run", smoke_run()
    yield "feeding augmented batches of 128, images a second", feed_rate(data)
    yield "training SmallCNN, images a second", training_speed(data)
    yield "SmallCNN on the test set", reference_training(data)
    run = start(finetune.NOTEBOOK, "class", where)
    run.load("cifar10")
    stored, threads = finetune.get_or_train(run), torch.get_num_threads()
    seen, side = stored.view(data), stored.size
    some = stacked(seen.batches(data.train.take(quantize.CALIBRATION), 25))
    with TemporaryDirectory() as name:
        folder = Path(name)
        net = store.save(stored.model, folder / "net.pt", seen)
        model = export.to_onnx(stored.model, folder / "fp32.onnx", (3, side, side))
        batch = some[:32].numpy()
        small = export.to_onnx(SmallCNN().eval(), folder / "small.onnx")
        some32 = next(iter(data.batches("val", 32)))[0].numpy()
        yield "SmallCNN against itself", against_itself(small, some32, threads)
        yield "inference of EfficientNet-Lite0", inference(net, model, batch, threads)
        yield "INT8 of EfficientNet-Lite0", int8(model, some, seen, folder, threads)
        for name in outside.NETWORKS:
            known = examine(outside.file(name, data), data, folder / name)
            view = known.view
            some = stacked(whole(known.model, view, view.train.take(quantize.CALIBRATION)))
            table = int8(known.model.path, some, view, folder / name, threads)
            yield f"INT8 of {name}", table
