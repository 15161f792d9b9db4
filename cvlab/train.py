"""Training and evaluation: one loop, every number of it kept."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cvlab.data import Batches, ImageData
from cvlab.machine import hardware
from cvlab.metrics import Score, score
from cvlab.paths import replace_atomically
from cvlab.show import progress

MOMENTUM = 0.9
WARM_UP = 0.25  # share of a one-cycle run in which the rate climbs
SCHEDULES = ("constant", "one-cycle")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
        others = [p for p in params if not any(p is matrix for matrix in matrices)]
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


OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "SGD": optim.SGD,
    "momentum": lambda p, **kw: optim.SGD(p, momentum=MOMENTUM, **kw),
    "Nesterov": lambda p, **kw: optim.SGD(p, momentum=MOMENTUM, nesterov=True, **kw),
    "Adagrad": optim.Adagrad,
    "RMSprop": optim.RMSprop,
    "Adam": optim.Adam,
    "AdamW": optim.AdamW,
    "Muon": MuonAdamW,
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train: all that `fit` must know beside a network and images.

    With `patience`, training stops after so many epochs without a better validation accuracy, and
    the network gets the weights of the best epoch back; without, it keeps those of the last.
    An unknown name or a number out of range is a `ValueError` that lists the choices.
    """

    optimizer: str = "Nesterov"  # a name in `OPTIMIZERS`
    lr: float = 0.15  # the learning rate; of a one-cycle schedule the peak
    weight_decay: float | None = None  # None is torch's: 0.01 for AdamW, 0.1 for Muon, else 0
    schedule: str = "constant"  # or "one-cycle" (Smith and Topin, 2018), see `one_cycle`
    label_smoothing: float = 0.0  # of the training loss
    precision: str = "auto"  # or "fp32", "bf16", "fp16", see `choose_precision`
    epochs: int = 1
    patience: int | None = None  # in epochs
    batch_size: int = 128
    augment: bool = True  # crop and mirror training images at random
    parts: int = 1  # an epoch is such a part of a pass over the training images
    seed: int = 0  # of the order of images and of augmentation, not of the network's weights

    def __post_init__(self):
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("precision", self.precision, ("auto", *PRECISIONS))
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr={self.lr} was given; a learning rate is a positive number.")
        if self.epochs < 1 or (self.patience is not None and self.patience < 1):
            raise ValueError(f"epochs={self.epochs}, patience={self.patience}: at least 1 each.")

    def make_optimizer(self, params: Iterable[Tensor]) -> optim.Optimizer:
        """The optimizer for `params`, with torch's defaults for all that is not said here."""
        decay = {} if self.weight_decay is None else {"weight_decay": self.weight_decay}
        return OPTIMIZERS[self.optimizer](params, lr=self.lr, **decay)

    def budget(self, data: ImageData, rate: str, seeds: int, judged: str = "") -> str:
        """One line for above a comparison: what each contestant gets.

        `rate`: which, and why. `judged`: how, where not on the validation images.
        """
        seen = "cropped and mirrored" if self.augment else "as they are"
        pixels = data.size or data.train.images.shape[-1]
        return (
            f"Each gets {len(data.train):,} images of {pixels} px, {seen}; "
            f"passes: {self.epochs / self.parts:g}, {self.batch_size} a batch; rate {rate}; "
            f"seeds: {seeds}, for all the same; "
            f"judged {judged or f'on the same {len(data.val):,} validation images'}."
        )


def _one_of(name: str, given: str, choices: Iterable[str]) -> None:
    if given not in choices:
        raise ValueError(f"{name}={given!r} was given; choose one of {list(choices)}.")


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
    data: ImageData,
    training: Training,
    *,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    watch: Callable[[History, optim.Optimizer], None] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    what: str | None = "training",
) -> History:
    """Train `model` in place on `data.train`, judge it on `data.val`, return what was measured.

    Layers whose parameters need no gradient stay as they are, BatchNorm's statistics too. With
    `checkpoint`, every finished epoch is stored, and a call that finds the file goes on after its
    last epoch: the final weights are those of an uninterrupted run on the same machine.

    Args:
        model: maps float [B, 3, H, W] to logits [B, classes].
        data: trained on and judged by; its test images are not read.
        checkpoint: file to store to and resume from.
        watch: called after every epoch with the history so far and the optimizer.
        loss: of logits and labels, in place of the cross-entropy; then labels of `data.train` may
            also be float [N, 1 + K], the class first.
        what: label of the progress bar; None shows none.

    Raises:
        TrainingDiverged: the loss is no longer finite; names step and rate, holds the history.
        CheckpointError: the checkpoint is damaged or belongs to another training.
    """
    train = data.batches(
        "train",
        training.batch_size,
        augment=training.augment,
        parts=training.parts,
        seed=training.seed,
        device=device,
    )
    at_once = 25 if data.size else 250  # larger images leave the cache of a CPU sooner
    val = data.batches("val", at_once, device=device)
    state = _State(model, training, train.device, training.epochs * len(train), loss)
    if checkpoint and checkpoint.exists():
        state.resume(checkpoint)
    history = state.history
    with progress(state.steps, what, "batch") as bar:
        bar.update(len(history.batch_rows))
        while len(history.epoch_rows) < training.epochs and not history.stopped_early:
            state.one_epoch(train, val, bar)
            state.judge()
            if checkpoint:
                state.store(checkpoint)
            if watch:
                watch(history, state.optimizer)
    if state.best_weights is not None:
        model.load_state_dict(state.best_weights)
    return history


def predict(model: nn.Module, batches: Batches, *, precision: str = "auto") -> tuple:
    """What `model` says of all of `batches`, in eval mode; the mode is put back.

    Returns:
        (logits float32 [N, classes], labels int64 [N]), on the CPU, in the order of `batches`.
    """
    precision = choose_precision(batches.device, precision)
    was_training, logits, labels = model.training, [], []
    model.to(batches.device).eval()
    with torch.inference_mode(), autocast(batches.device, precision):
        for images, truth in batches.epoch():
            logits.append(model(images).float())
            labels.append(truth)
    model.train(was_training)
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()


def evaluate(model: nn.Module, batches: Batches, *, precision: str = "auto") -> Score:
    """Loss and accuracy of `model` on all of `batches`; see `predict`."""
    return score(*predict(model, batches, precision=precision))


def choose_precision(device: torch.device, asked: str = "auto") -> str:
    """What is asked for; for "auto" the fastest that trains well: bf16 where the hardware
    multiplies it, else fp16 on a GPU (with loss scaling), else fp32.
    """
    _one_of("precision", asked, ("auto", *PRECISIONS))
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if hardware().has("avx512_bf16", "amx_bf16") else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Context in which `device` computes in `precision` where that pays; fp32 does nothing."""
    contexts = ExitStack()
    if precision != "fp32":
        contexts.enter_context(torch.autocast(device.type, PRECISIONS[precision]))
    if (device.type, precision) == ("cpu", "bf16") and torch.is_grad_enabled():
        contexts.enter_context(_DepthwiseInFloat())
    return contexts


class _DepthwiseInFloat(TorchFunctionMode):
    """Train depthwise convolutions in fp32: their bf16 gradients take up to 23 times as long.

    Measured with torch 2.13, two cores, AMX; a step of Lite0 takes 1.6 times as long without this.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.conv2d and args[1].shape[1] == 1:
            with torch.autocast("cpu", enabled=False):
                return function(args[0].float(), *args[1:], **(kwargs or {})).bfloat16()
        return function(*args, **(kwargs or {}))


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


class _State:
    """A training between two epochs: all that a checkpoint must hold."""

    def __init__(self, model: nn.Module, training: Training, device: torch.device, steps, loss):
        precision = choose_precision(device, training.precision)
        self.training = replace(training, precision=precision)
        self.device, self.steps = device, steps
        self.loss = loss or partial(F.cross_entropy, label_smoothing=training.label_smoothing)
        self.model = model.to(device, memory_format=torch.channels_last)
        self.optimizer = training.make_optimizer(model.parameters())
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.history = History()
        self.best_weights: dict | None = None

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
        score = evaluate(self.model, val, precision=self.training.precision)
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
        how = self.training
        lr = how.lr * (one_cycle(step, self.steps) if how.schedule == "one-cycle" else 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, how.precision):
            logits = self.model(images)
        logits = logits.float()
        loss = self.loss(logits, labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        classes = labels if labels.ndim == 1 else labels[:, 0]
        accuracy = (logits.detach().argmax(1) == classes).float().mean()
        return {"step": step, "loss": loss.detach(), "accuracy": accuracy, "lr": lr}

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
                    + (" or precision='fp32'." if self.training.precision == "fp16" else "."),
                    self.history,
                )

    def judge(self) -> None:
        """Keep the weights of the best epoch; stop when none was better for `patience` epochs."""
        history, patience = self.history, self.training.patience
        latest = len(history.epoch_rows)
        best = history.epoch_rows[history.best_epoch - 1] if history.best_epoch else None
        if patience is None:
            history.best_epoch = latest
        elif best is None or history.epoch_rows[-1]["val_accuracy"] > best["val_accuracy"]:
            history.best_epoch, self.best_weights = latest, deepcopy(self.model.state_dict())
        else:
            history.stopped_early = latest - history.best_epoch >= patience

    def store(self, path: Path) -> None:
        """Write everything that the next epoch depends on, whole or not at all."""
        state = {
            "settings": asdict(self.training),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best_weights": self.best_weights,
            "history": vars(self.history),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }
        replace_atomically(lambda temporary: torch.save(state, temporary), path)

    def resume(self, path: Path) -> None:
        """Take up the state in `path`, if it is of the same training."""
        with usable(path, "Delete it to train from the start, or name another file."):
            state = torch.load(path, map_location="cpu", weights_only=True)
            known, asked = state["settings"], asdict(self.training)
            others = [
                f"{n}={known.get(n)!r}, not {asked[n]!r}" for n in asked if known.get(n) != asked[n]
            ]
            if others:
                raise ValueError(f"it was written with {'; '.join(others)}")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
        self.best_weights, self.history = state["best_weights"], History(**state["history"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"]:
            torch.cuda.set_rng_state_all(state["cuda_random"])
