"""Our ways beside the usual ones, side by side in one run: what `make bench` measures."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
from torch import Tensor
from torch.nn import functional as F

from cvlab import export, runtime, store
from cvlab.bench import compare, race
from cvlab.data import ImageData
from cvlab.lessons.engines import rivals
from cvlab.lessons.environment import BATCH, _rates, feed_rate, torchvision_loader
from cvlab.lessons.int8 import openvino_int8, shrink
from cvlab.lessons.int8.ladder import FLOAT, compared, examples, speed
from cvlab.lessons.int8.quantize import OneBatch, Source
from cvlab.lessons.pretrained import finetune
from cvlab.models import SmallCNN
from cvlab.run import start
from cvlab.tools import quantize, runner
from cvlab.train import evaluate, fit


def training_speed(data: ImageData, *, images: int = 6_400, rounds: int = 3) -> pd.DataFrame:
    """Images a second of one epoch of `SmallCNN`: the tutorial's loop against `fit`.

    The tutorial: fp32, NCHW, a DataLoader with 2 workers. Both use SGD with momentum, batches
    of 128, the same augmentation; `fit` also evaluates, on 128 images. Columns as `feed_rate`.
    """
    data = data.take(n_train=images, n_val=BATCH)
    loader = torchvision_loader(data.train, BATCH, data.mean, data.std, workers=2)
    plain, model = SmallCNN(len(data.classes)), SmallCNN(len(data.classes))
    train, val = data.batches("train", BATCH), data.batches("val", BATCH)
    calls = {
        "tutorial loop": lambda: _tutorial_epoch(plain, loader),
        "fit": lambda: fit(model, train, val, epochs=1, optimizer="momentum", lr=0.01, what=None),
    }
    timed = compare(calls, rounds=rounds, warmup=1)
    return _rates(timed, len(train) * BATCH)


def _tutorial_epoch(model: torch.nn.Module, loader) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def reference_training(data: ImageData, *, epochs: int = 9, seed: int = 0) -> pd.DataFrame:
    """Train `SmallCNN` as well as minutes allow, read the test set once: accuracy and time.

    Returns:
        one row: `accuracy`, `low`, `high` (95 % interval), `n`, `seconds` (training and its
        evaluations), `epochs`.
    """
    torch.manual_seed(seed)
    model = SmallCNN(len(data.classes))
    train, val = data.batches("train", BATCH, seed=seed), data.batches("val", 1000)
    how = {"weight_decay": 5e-4, "label_smoothing": 0.1, "schedule": "one-cycle"}
    history = fit(model, train, val, epochs=epochs, optimizer="Nesterov", lr=0.15, **how)
    score = evaluate(model, data.batches("test", 1000))
    return pd.DataFrame([score.row | {"seconds": history.seconds, "epochs": epochs}])


def inference(
    net: Path, model: Path, images: np.ndarray, threads: int, *, rounds: int = 12
) -> pd.DataFrame:
    """One network on every engine there is, a row each: one image, and a batch.

    Args:
        net: the network, see `cvlab.store`.
        model: the same as ONNX file.
        images: the batch, normalised float32 [N, 3, H, W].
        threads: of each engine.
        rounds: of each race.

    Returns:
        `latency_ms` of one image with `p10` and `p90`, `speedup` over eager PyTorch with its 95 %
        interval `low` to `high`; `throughput` of the batch in images a second.
    """
    plain = [f"ONNX Runtime, {level}" for level in ("none", "basic", "extended")]
    single, batch = (
        race(
            {
                name: contestant
                for name, contestant in rivals.contestants(net, model, given, threads).items()
                if name not in plain
            },
            rounds=rounds,
            what=f"inference, {len(given)}",
        )
        for given in (images[:1], images)
    )
    names = {"ms": "latency_ms", "p10": "p10", "p90": "p90", "ratio": "speedup"}
    table = single[[*names, "low", "high"]].rename(columns=names)
    return table.assign(throughput=batch["images/s"]).rename_axis("way")


def int8(
    model: Path, calibration: Tensor, data: ImageData, folder: Path, threads: int
) -> pd.DataFrame:
    """Our INT8 model beside what the quantisers' own defaults make of the same file and images.

    Args:
        model: a float ONNX classifier.
        calibration: normalised float32 [N, 3, H, W] of training images.
        data: as the network sees it; ours chooses on its validation images, all are judged on its
            test images.
        folder: where files are put.
        threads: of each engine.

    Returns:
        a row a way: `accuracy`, `low`, `high`, `n`, `drop_pp` with `drop_low` and `drop_high`,
        `size_mb`; `throughput` of batches of 32 in images a second, and `speedup` over float in
        ONNX Runtime. NNCF's model runs in OpenVINO, where both are installed.
    """
    source = Source(model, calibration, folder)
    found = shrink.search(source, examples(data.batches("val", 25)), what="ours")
    files = {FLOAT: model, "cvlab": found.model}
    for name, default in DEFAULTS.items():
        files[name] = folder / f"{name.rpartition(' ')[2]}.onnx"
        with runtime.quiet():
            default(model, files[name], source)
    test = examples(data.batches("test", 25))
    answers = {name: runtime.predict(file, test, what=name) for name, file in files.items()}
    rows = {name: compared(answers[FLOAT][0], *pair) for name, pair in answers.items()}
    table = pd.DataFrame(rows).T
    table["size_mb"] = [file.stat().st_size / 1e6 for file in files.values()]
    times = speed(files, test.images[:32].numpy(), threads, what="INT8")
    table = table.join(times[["throughput", "speedup"]])
    if openvino_int8.available():
        xml = openvino_int8.nncf_int8(model, source.images, folder / "nncf.xml")
        theirs = openvino_int8.table(model, xml, test, threads).loc[["OpenVINO NNCF int8"]]
        size = xml.with_suffix(".bin").stat().st_size + xml.stat().st_size
        table = pd.concat([table, theirs.assign(size_mb=size / 1e6)])
    columns = ["accuracy", "low", "high", "n", "drop_pp", "drop_low", "drop_high"]
    columns += ["size_mb", "throughput", "speedup"]
    return table[columns].astype(float).rename_axis("way")


DEFAULTS = {  # ONNX Runtime's own functions, called as its documentation does first
    "ONNX Runtime's default, dynamic": lambda model, path, source: quantize_dynamic(
        model, path, weight_type=QuantType.QUInt8
    ),
    "ONNX Runtime's default, static": lambda model, path, source: quantize_static(
        source.model, path, OneBatch({"images": source.images})
    ),
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
        found = [runner.read_result(path) for path in sorted(Path(folder).glob("*.ipynb"))]
    rows = {r.notebook: {"seconds": r.seconds, "claims": r.claims_held} for r in found}
    rows["all"] = {"seconds": seconds, "claims": sum(r.claims_held for r in found)}
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
    some = examples(seen.batches(data.train.take(quantize.CALIBRATION), 25)).images
    with TemporaryDirectory() as name:
        folder = Path(name)
        net = store.save(stored.model, folder / "net.pt", seen)
        model = export.to_onnx(stored.model, folder / "fp32.onnx", (3, side, side))
        batch = some[:32].numpy()
        yield "inference of EfficientNet-Lite0", inference(net, model, batch, threads)
        yield "INT8 of EfficientNet-Lite0", int8(model, some, seen, folder, threads)
