"""Optimizers by name, and what lets one watch them: steps, paths, costs."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn, optim

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


def adagrad_step_factor(optimizer: optim.Adagrad) -> float:
    """Median over all weights of what Adagrad multiplies a gradient with: lr / sqrt(sum of g^2).

    It can only shrink, because squares are added and nothing is ever forgotten.
    Source: Duchi, Hazan, Singer, "Adaptive subgradient methods", 2011.
    """
    factors = [
        group["lr"] / (optimizer.state[p]["sum"].sqrt() + group["eps"]).flatten()
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    return torch.cat(factors).median().item()


def ravine(x: Tensor, y: Tensor, angle: float = 0.0) -> Tensor:
    """A valley 100 times more curved across than along, turned by `angle` degrees; minimum at 0."""
    turn = math.radians(angle)
    along = math.cos(turn) * x + math.sin(turn) * y
    across = math.cos(turn) * y - math.sin(turn) * x
    return 0.5 * (along**2 + 100 * across**2)


def path(
    name: str, lr: float, *, angle: float = 0.0, steps: int = 60, momentum: float = MOMENTUM
) -> np.ndarray:
    """Let an optimizer walk down the ravine, from 4 along and 0.5 across.

    Args:
        name: key of `OPTIMIZERS`, not "Muon", which is made for matrices.
        lr: learning rate, > 0.
        angle: degrees by which ravine and start are turned.
        steps: how many.
        momentum: replaces 0.9 for "momentum" and "Nesterov".

    Returns:
        float [steps + 1, 2], the points visited; NaN after the walk has left for infinity.
    """
    turn = math.radians(angle)
    start = [-4 * math.cos(turn) - 0.5 * math.sin(turn), 0.5 * math.cos(turn) - 4 * math.sin(turn)]
    point = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = make_optimizer(name, [point], lr)
    for group in optimizer.param_groups:
        if group.get("momentum"):
            group["momentum"], group["nesterov"] = momentum, group["nesterov"] and momentum > 0
    points = [point.detach().clone()]
    for _ in range(steps):
        optimizer.zero_grad()
        ravine(*point, angle).backward()
        optimizer.step()
        points.append(point.detach().clone())
    walked = torch.stack(points).numpy()
    walked[~(np.abs(walked).max(1) < 1e6)] = np.nan
    return walked


def best_rate(name: str, *, angle: float = 0.0, steps: int = 60) -> float:
    """The rate of 25 between 0.001 and 10 whose walk ends nearest to the ravine's minimum."""
    rates = np.geomspace(1e-3, 10, 25)
    ends = [np.hypot(*path(name, lr, angle=angle, steps=steps)[-1]) for lr in rates]
    return float(rates[np.nanargmin(ends)])


def state_bytes(optimizer: optim.Optimizer) -> int:
    """Bytes of memory that an optimizer keeps between steps, beside the weights and gradients."""
    parts = getattr(optimizer, "_parts", [optimizer])
    states = [state for part in parts for state in part.state.values()]
    tensors = [v for state in states for v in state.values() if isinstance(v, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors if t.ndim)


def cost(model: nn.Module, names: Iterable[str], *, rounds: int = 30) -> pd.DataFrame:
    """Step time and memory of optimizers on copies of `model` with random gradients.

    Returns:
        one row an optimizer: `ms` a step (median), `p10`, `p90`, `bytes_per_weight`.
    """
    import copy

    from cvlab.bench import compare

    steps, optimizers = {}, {}
    for name in names:
        params = list(copy.deepcopy(model).parameters())
        for p in params:
            p.grad = torch.randn_like(p)
        optimizers[name] = make_optimizer(name, params, lr=1e-6)
        steps[name] = optimizers[name].step
    table = compare(steps, rounds=rounds)
    weights = sum(p.numel() for p in model.parameters())
    table["bytes_per_weight"] = [state_bytes(optimizers[n]) / weights for n in table.index]
    return table
