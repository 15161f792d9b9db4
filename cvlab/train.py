"""Training and evaluation: one loop, every number of it kept."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from cvlab.data import Batches
from cvlab.machine import hardware
from cvlab.metrics import Score, score
from cvlab.paths import replace_atomically
from cvlab.show import progress

MOMENTUM = 0.9


OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "SGD": optim.SGD,
    "momentum": lambda p, **kw: optim.SGD(p, momentum=MOMENTUM, **kw),
    "Nesterov": lambda p, **kw: optim.SGD(p, momentum=MOMENTUM, nesterov=True, **kw),
    "Adagrad": optim.Adagrad,
    "RMSprop": optim.RMSprop,
    "Adam": optim.Adam,
    "AdamW": optim.AdamW,
}


class MuonAdamW(optim.Optimizer):
    """Muon for hidden weight matrices, AdamW for the rest, as Muon's author prescribes.

    `torch.optim.Muon` takes matrices only. A convolution's weight [out, in, h, w] is one too, seen
    as [out, in*h*w]; torch keeps a parameter's own shape, so here a convolution goes to AdamW
    and Muon gets the linear layers except the last. Updates are scaled to AdamW's size, so that
    one learning rate serves both. Source: Jordan et al., "Muon", 2024; Liu et al., 2025.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, **options):
        params = list(params)
        matrices = [p for p in params if p.ndim == 2][:-1]  # the last one makes the logits
        chosen = {id(p) for p in matrices}
        others = [p for p in params if id(p) not in chosen]
        self._parts = [optim.AdamW(others, lr=lr, **options)]
        if matrices:
            muon = optim.Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw", **options)
            self._parts.append(muon)
        super().__init__(params, {"lr": lr})
        # one list of groups, shared: a schedule that sets a group's rate sets the part's own
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        """One step of both parts."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict:
        """The parts' states."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the parts' states."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]


if hasattr(optim, "Muon"):  # torch 2.9 and later
    OPTIMIZERS["Muon"] = MuonAdamW


def make_optimizer(
    name: str, params: Iterable[Tensor], lr: float, weight_decay: float | None = None
) -> optim.Optimizer:
    """An optimizer by its name in `OPTIMIZERS`, with torch's defaults for all else.

    Args:
        name: key of `OPTIMIZERS`.
        params: the weights to train.
        lr: learning rate, > 0.
        weight_decay: None leaves torch's default: 0.01 for AdamW, 0.1 for Muon, else 0.

    Raises:
        ValueError: unknown name (the choices are listed), or a rate that is not positive.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"Optimizer {name!r} was given; choose one of {list(OPTIMIZERS)}.")
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr={lr} was given; a learning rate is a positive number.")
    options = {} if weight_decay is None else {"weight_decay": weight_decay}
    return OPTIMIZERS[name](params, lr=lr, **options)


SCHEDULES = ("constant", "one-cycle")


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


WARM_UP = 0.25  # share of a one-cycle run in which the rate climbs


class TrainingDiverged(FloatingPointError):
    """The loss became infinite or not a number. `history` holds everything up to that step."""

    def __init__(self, message: str, history: "History"):
        super().__init__(message)
        self.history = history


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used: damaged, or of another model or run."""


@contextmanager
def usable(path: Path, cure: str) -> Iterator[None]:
    """Turn whatever goes wrong with a stored file into one `CheckpointError` that names it."""
    try:
        yield
    except Exception as error:  # torch.load raises whatever the broken bytes lead to
        reason = str(error).partition("\n")[0].rstrip(".:")
        raise CheckpointError(f"The file {path} cannot be used: {reason}. {cure}") from error


@dataclass
class History:
    """What `fit` measured. Losses are means of the cross-entropy, accuracies fractions.

    `batch_rows`: step, epoch, loss, accuracy, lr. `epoch_rows`: epoch, train_loss,
    train_accuracy, val_loss, val_accuracy, seconds (of the epoch, its evaluation included).
    """

    batch_rows: list[dict] = field(default_factory=list)
    epoch_rows: list[dict] = field(default_factory=list)
    best_epoch: int | None = None  # the epoch whose weights the model has now
    stopped_early: bool = False

    @property
    def batches(self) -> pd.DataFrame:
        """One row a training step."""
        return pd.DataFrame(self.batch_rows)

    @property
    def epochs(self) -> pd.DataFrame:
        """One row an epoch."""
        return pd.DataFrame(self.epoch_rows)

    @property
    def seconds(self) -> float:
        """Wall time of all epochs, those before a resume included."""
        return sum(row["seconds"] for row in self.epoch_rows)


def fit(
    model: nn.Module,
    train: Batches,
    val: Batches,
    *,
    epochs: int,
    optimizer: str = "Nesterov",
    lr: float = 0.15,
    weight_decay: float | None = None,
    schedule: str = "constant",
    label_smoothing: float = 0.0,
    precision: str = "auto",
    patience: int | None = None,
    checkpoint: Path | None = None,
    watch: Callable[[History, torch.optim.Optimizer], None] | None = None,
    what: str | None = "training",
) -> History:
    """Train `model` in place on the device of `train` and return what was measured.

    With `patience`, the weights of the best epoch are restored at the end, and training stops
    after so many epochs without a better validation accuracy. Layers whose parameters need no
    gradient stay as they are, BatchNorm's statistics too. With `checkpoint`, every finished epoch
    is stored, and a call that finds the file goes on after its last epoch: the
    final weights are those of an uninterrupted run on the same machine.

    Args:
        model: maps float [B, 3, H, W] to logits [B, classes].
        train: augmented batches; epoch e trains on `train.epoch(e)`.
        val: batches that judge, never trained on.
        epochs: passes over the training images.
        optimizer: a name in `cvlab.train.OPTIMIZERS`.
        lr: the learning rate, and the peak of a one-cycle schedule.
        weight_decay: None leaves the optimizer's default.
        schedule: "constant", or "one-cycle": linear up for a quarter of the steps, then down to 0
            (Smith and Topin, 2018).
        label_smoothing: of the training loss.
        precision: "fp32", "bf16", "fp16" or "auto", see `choose_precision`.
        patience: epochs; None trains to the end and keeps the last weights.
        checkpoint: file to store to and resume from.
        watch: called after every epoch with the history so far and the optimizer.
        what: label of the progress bar; None shows none.

    Raises:
        ValueError: an unknown name or a number out of range; the message lists the choices.
        TrainingDiverged: the loss is no longer finite; names step and rate, holds the history.
        CheckpointError: the checkpoint is damaged or belongs to other settings.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} was given; choose one of {SCHEDULES}.")
    if epochs < 1 or (patience is not None and patience < 1):
        raise ValueError(f"epochs={epochs}, patience={patience}: both must be at least 1.")
    device = train.device
    model.to(device, memory_format=torch.channels_last)
    run = _Training(
        model=model,
        optimizer=make_optimizer(optimizer, model.parameters(), lr, weight_decay),
        precision=choose_precision(device) if precision == "auto" else _known(precision),
        device=device,
        peak_lr=lr,
        schedule=schedule,
        steps=epochs * len(train),
        label_smoothing=label_smoothing,
    )
    settings = {
        "optimizer": optimizer,
        "lr": lr,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "epochs": epochs,
        "label_smoothing": label_smoothing,
        "precision": run.precision,
        "batch_size": train.batch_size,
        "seed": train.seed,
        "augment": train.augment,
        "parts": train.parts,
    }
    if checkpoint is not None:
        run.resume(checkpoint, settings)
    history = run.history
    with progress(epochs * len(train), what, "batch") as bar:
        bar.update(len(history.batch_rows))
        while len(history.epoch_rows) < epochs and not history.stopped_early:
            run.one_epoch(train, val, bar)
            run.judge(patience)
            if checkpoint is not None:
                run.store(checkpoint, settings)
            if watch:
                watch(history, run.optimizer)
    run.restore_best()
    return history


def predict(model: nn.Module, batches: Batches, *, precision: str = "auto") -> tuple:
    """What `model` says of all of `batches`, in eval mode; the mode is put back.

    Returns:
        (logits float32 [N, classes], labels int64 [N]), on the CPU, in the order of `batches`.
    """
    name = choose_precision(batches.device) if precision == "auto" else _known(precision)
    was_training, logits, labels = model.training, [], []
    model.to(batches.device).eval()
    with torch.inference_mode(), autocast(batches.device, name):
        for images, truth in batches.epoch():
            logits.append(model(images).float())
            labels.append(truth)
    model.train(was_training)
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()


def evaluate(model: nn.Module, batches: Batches, *, precision: str = "auto") -> Score:
    """Loss and accuracy of `model` on all of `batches`; see `predict`."""
    return score(*predict(model, batches, precision=precision))


def choose_precision(device: torch.device) -> str:
    """The fastest precision that trains well: bf16 where the hardware multiplies it, else
    fp16 on a GPU (with loss scaling), else fp32.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    pays = hardware().has("avx512_bf16") or hardware().has("amx_bf16")
    return "bf16" if pays else "fp32"


def autocast(device: torch.device, precision: str):
    """Context in which `device` computes in `precision` where that is safe; fp32 does nothing."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])


def one_cycle(step: int, steps: int) -> float:
    """Share of the peak rate at `step` of `steps`: up from 1/25 in a quarter, then down to 0."""
    up = max(1, round(WARM_UP * steps))
    if step < up:
        return 0.04 + 0.96 * step / up
    return (steps - step) / max(1, steps - up)


def train_mode(model: nn.Module) -> None:
    """Train mode, but eval mode for frozen layers: BatchNorm's statistics must not drift there."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


def _known(precision: str) -> str:
    if precision not in PRECISIONS:
        choices = ["auto", *PRECISIONS]
        raise ValueError(f"precision={precision!r} was given; choose one of {choices}.")
    return precision


@dataclass
class _Training:
    """The state of a run between two epochs, all that a checkpoint must hold."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    precision: str
    device: torch.device
    peak_lr: float
    schedule: str
    steps: int
    label_smoothing: float
    history: History = field(default_factory=History)
    best_weights: dict | None = None

    def __post_init__(self):
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def one_epoch(self, train: Batches, val: Batches, bar) -> None:
        """Train on one epoch, judge on `val`, append to the history."""
        start, epoch = time.perf_counter(), len(self.history.epoch_rows)
        train_mode(self.model)
        rows = []  # tensors stay on the device: reading one each step would stop a GPU each step
        for images, labels in train.epoch(epoch):
            rows.append(self._step(images, labels, len(self.history.batch_rows) + len(rows)))
            bar.update()
            if len(rows) % 20 == 0:
                self._check_finite(rows, epoch)
        self._check_finite(rows, epoch)
        self.history.batch_rows += [self._row(row, epoch) for row in rows]
        score = evaluate(self.model, val, precision=self.precision)
        done = self.history.batch_rows[-len(rows) :]
        self.history.epoch_rows.append(
            {
                "epoch": epoch + 1,
                "train_loss": sum(row["loss"] for row in done) / len(done),
                "train_accuracy": sum(row["accuracy"] for row in done) / len(done),
                "val_loss": score.loss,
                "val_accuracy": score.accuracy,
                "seconds": time.perf_counter() - start,
            }
        )
        bar.set_postfix_str(f"val {score.accuracy:.1%}")

    def _step(self, images: Tensor, labels: Tensor, step: int) -> dict:
        factor = one_cycle(step, self.steps) if self.schedule == "one-cycle" else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak_lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.precision):
            logits = self.model(images)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        return {
            "step": step,
            "loss": loss.detach(),
            "accuracy": accuracy,
            "lr": self.peak_lr * factor,
        }

    @staticmethod
    def _row(row: dict, epoch: int) -> dict:
        numbers = {"loss": row["loss"].item(), "accuracy": row["accuracy"].item()}
        return row | numbers | {"epoch": epoch + 1}

    def _check_finite(self, rows: list[dict], epoch: int) -> None:
        """Look at the latest 20 losses; rarely, because on a GPU each look waits for the step."""
        for index in range(max(0, len(rows) - 20), len(rows)):
            loss = rows[index]["loss"].item()
            if not math.isfinite(loss):
                self.history.batch_rows += [self._row(row, epoch) for row in rows[: index + 1]]
                raise TrainingDiverged(
                    f"The loss is {loss} at step {rows[index]['step']} (epoch {epoch + 1}) with "
                    f"learning rate {rows[index]['lr']:.3g}. Try a rate 3 to 10 times lower"
                    + (" or precision='fp32'." if self.precision == "fp16" else "."),
                    self.history,
                )

    def judge(self, patience: int | None) -> None:
        """Keep the weights of the best epoch; stop when none was better for `patience` epochs."""
        history = self.history
        latest = len(history.epoch_rows)
        best = history.epoch_rows[history.best_epoch - 1] if history.best_epoch else None
        if patience is None:
            history.best_epoch = latest
        elif best is None or history.epoch_rows[-1]["val_accuracy"] > best["val_accuracy"]:
            history.best_epoch, self.best_weights = latest, deepcopy(self.model.state_dict())
        else:
            history.stopped_early = latest - history.best_epoch >= patience

    def restore_best(self) -> None:
        """Give the model the weights of the best epoch, where they were kept."""
        if self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)

    def store(self, path: Path, settings: dict) -> None:
        """Write everything that the next epoch depends on, whole or not at all."""
        state = {
            "settings": settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best_weights": self.best_weights,
            "history": vars(self.history),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }
        replace_atomically(lambda temporary: torch.save(state, temporary), path)

    def resume(self, path: Path, settings: dict) -> None:
        """Take up the state in `path`; without the file, nothing happens."""
        if not path.exists():
            return
        with usable(path, "Delete it to train from the start, or name another file."):
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["settings"] != settings:
                raise ValueError(f"it was written with {state['settings']}, asked for {settings}")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
        self.best_weights, self.history = state["best_weights"], History(**state["history"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"]:
            torch.cuda.set_rng_state_all(state["cuda_random"])
