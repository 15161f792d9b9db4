"""Budgets: what each profile gives a notebook, and the limits of its parameters."""

import os
import tomllib
from typing import Any

from cvlab.paths import carried

PROFILES = ("smoke", "class", "full")


class ParameterError(ValueError):
    """A notebook parameter is unknown or out of range; the message lists what is possible."""


def profiles() -> dict:
    """The budgets: `notebooks/profiles.toml` as a dictionary, notebook -> profile -> knob."""
    return tomllib.loads(carried("notebooks/profiles.toml").read_text(encoding="utf-8"))


def check_parameters(name: str, parameters: dict[str, Any]) -> None:
    """Check a notebook's parameters (lower-case names) against its limits in profiles.toml.

    Raises:
        ParameterError: an unknown notebook, profile or knob, a wrong type, or out of range.
    """
    known = profiles()
    if name not in known:
        raise ParameterError(f"There is no notebook {name!r}; choose one of {sorted(known)}.")
    limits = known[name].get("limits", {})
    for key, value in parameters.items():
        if key == "profile":
            if value is not None and value not in PROFILES:
                raise ParameterError(f"PROFILE={value!r} was given; choose one of {PROFILES}.")
        elif key == "seed":
            _check_value("SEED", value, [0, 2**31 - 1])
        elif key == "data":
            if not isinstance(value, str | os.PathLike):
                raise ParameterError(f"DATA={value!r} was given; name a folder, or 'auto'.")
        elif key not in limits:
            raise ParameterError(
                f"{name} has no parameter {key.upper()}; it has "
                f"{', '.join(['PROFILE', 'DATA', 'SEED', *map(str.upper, limits)])}."
            )
        elif value is not None:
            _check_value(key.upper(), value, limits[key])


def _check_value(key: str, value: Any, limit: list | str) -> None:
    """`limit` is [low, high] for numbers, else a list of choices; a list is checked by element.

    A text as `limit` says who knows the choices: the notebook meets them where it uses the value,
    and `cvlab.tools.runner` asks before a run.
    """
    if isinstance(limit, str):
        return
    expected = f"a number from {limit[0]} to {limit[1]}"
    if isinstance(limit[0], str):
        expected = f"one of {limit}"
    elif isinstance(limit[0], int):
        expected = f"a whole number from {limit[0]} to {limit[1]}"
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise ParameterError(f"{key}=[] was given; expected at least one: {expected}.")
    if not all(_fits(one, limit) for one in values):
        raise ParameterError(f"{key}={value!r} was given; expected {expected}.")


def _fits(one: Any, limit: list) -> bool:
    if isinstance(limit[0], str):
        return one in limit
    kinds = int if isinstance(limit[0], int) else (int, float)
    return isinstance(one, kinds) and not isinstance(one, bool) and limit[0] <= one <= limit[1]
