"""A learner's answer: asked for, and compared with a reference, by the checks."""

import random
import traceback
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import torch

SEED = ContextVar("SEED", default=0)  # of a check's random inputs, see `cases`


class Wrong(Exception):
    """The answer is not right; the message says what is wrong and where to look."""


class NotAttempted(Exception):
    """The stub is as it was: it returns nothing."""


def ask(answer: Callable, *arguments: Any) -> Any:
    """What the learner's function returns.

    Raises:
        NotAttempted: it returned None.
        Wrong: it stopped with an error; the message names its line.
    """
    try:
        result = answer(*arguments)
    except Wrong:  # of an answer that lives in another process: it says so itself
        raise
    except Exception as error:  # whatever a learner's code may raise
        own = [f for f in traceback.extract_tb(error.__traceback__) if f.name == answer.__name__]
        where = f" in `{own[-1].line}`" if own and own[-1].line else ""
        raise Wrong(f"your code stopped with {type(error).__name__}{where}: {error}") from error
    if result is None:
        raise NotAttempted
    return result


def cases(known: list, draw: Callable[[random.Random], Any], more: int = 4) -> list:
    """The known cases of a check; with a seed other than 0 also some that no learner has seen."""
    chance = random.Random(SEED.get())
    return known + [draw(chance) for _ in range(more if SEED.get() else 0)]


def several(result: Any, count: int) -> tuple:
    """An answer of `count` things; anything else is `Wrong`."""
    if not isinstance(result, tuple | list) or len(result) != count:
        raise Wrong(f"{count} things were expected, as in the stub's docstring.")
    return tuple(result)


def numbers(result: Any, given: str) -> torch.Tensor:
    """An answer's numbers in float64; what is none is `Wrong`. `given` says what was asked."""
    try:
        return torch.as_tensor(result, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        told = f"numbers were expected, {type(result).__name__} came."
        raise Wrong(f"{given}: {told}") from error


def expect(
    got: Any,
    right: Any,
    given: str,
    mistakes: Mapping[str, Any] | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Compare a number, an array or a tensor with the reference; `given` says what was asked.

    Args:
        mistakes: hint -> what one gets who makes that mistake.
        tolerance: relative, and absolute for values below 1.

    Raises:
        Wrong: they differ; a known mistake is named, else what came and what was expected.
    """
    right = torch.as_tensor(right, dtype=torch.float64)
    got = numbers(got, given)
    if got.shape != right.shape:
        raise Wrong(f"{given}: shape {[*right.shape]} was expected, {[*got.shape]} came.")
    if _close(got, right, tolerance):
        return
    for hint, value in (mistakes or {}).items():
        value = torch.as_tensor(value, dtype=torch.float64)
        if value.shape == got.shape and _close(got, value, tolerance):
            raise Wrong(f"{given}: {hint}")
    at = (got - right).abs().nan_to_num(torch.inf).flatten().argmax()
    place = f" at place {at.item()}" if right.numel() > 1 else ""
    here, there = (f"{value.flatten()[at].item():.6g}" for value in (right, got))
    raise Wrong(f"{given}: {here} was expected{place}, {there} came.")


def _close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance)
