"""Our feeding and training beside what every tutorial does, side by side in one run."""

import pandas as pd
import torch
from torch.nn import functional as F

from cvlab.bench import compare
from cvlab.data import ImageData, torchvision_loader
from cvlab.models import SmallCNN
from cvlab.train import evaluate, fit

BATCH = 128


def feed_rate(data: ImageData, *, images: int = 20_000, rounds: int = 5, device="cpu"):
    """Images a second of one augmented pass (random crop, flip, normalise) over the training set.

    Returns:
        data frame, one row a way to feed: `median`, `p10`, `p90` in images a second, `n` passes,
        and `times`, the speed relative to a DataLoader with 2 workers.
    """
    data = data.take(n_train=images)
    ours = data.batches("train", BATCH, device=device)
    ways = {
        f"DataLoader, {workers} workers": torchvision_loader(
            data.train, BATCH, data.mean, data.std, workers=workers
        )
        for workers in (2, 0)
    }
    calls = {name: lambda loader=loader: _drain(loader) for name, loader in ways.items()}
    calls["Batches"] = lambda: _drain(ours.epoch())
    timed = compare(calls, rounds=rounds, warmup=1)
    return _rates(timed, len(ours) * BATCH)


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


def _drain(batches) -> None:
    for _ in batches:
        pass


def _tutorial_epoch(model: torch.nn.Module, loader) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def _rates(timed: pd.DataFrame, images: int) -> pd.DataFrame:
    """Milliseconds a pass to images a second; a low time is a high rate, so p10 and p90 swap."""
    per_second = images * 1e3 / timed[["ms", "p90", "p10"]]
    per_second.columns = ["median", "p10", "p90"]
    return per_second.assign(n=timed["n"], times=timed["ratio"]).rename_axis("way")


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


def report(data: ImageData) -> dict[str, pd.DataFrame]:
    """All comparisons, by title."""
    return {
        "feeding augmented batches of 128, images a second": feed_rate(data),
        "training SmallCNN, images a second": training_speed(data),
        "SmallCNN on the test set": reference_training(data),
    }
