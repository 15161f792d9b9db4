"""What comes back from students: results as JSON, arrays as bytes, plain files.

`decode` builds numbers, arrays, containers and convolutions; it calls and imports nothing.
"""

import base64
import os
import re
from collections.abc import Iterator, KeysView, Mapping, ValuesView
from contextlib import suppress
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

MOST_ENTRIES = 1000  # in a student's folder
MOST_ITEMS = 10_000  # of an iterator that is read
CONV = ("weight", "bias", "stride", "padding", "dilation", "groups", "padding_mode")
CONTAINERS = {
    "tuple": tuple,
    "set": set | frozenset,
    "list": list | Iterator | KeysView | ValuesView | pd.Index,
}


def plain(path: Path, most: int) -> bytes:
    """The content of a file that a student left; a link is not followed.

    Raises:
        OSError: it is no plain file, or larger than `most` bytes.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        about = os.fstat(file.fileno())
        if not S_ISREG(about.st_mode):
            raise OSError("it is no plain file")
        if about.st_size > most:
            told = f"{about.st_size / 2**20:,.0f} MB; {most / 2**20:g} are allowed"
            raise OSError(f"{told}. Clear its outputs, save and hand it in again")
        return file.read(most)


def overflows(folder: Path, most: int) -> bool:
    """Does a student's folder hold more bytes, or more files and folders, than it may?"""
    total = count = 0
    for place, inside, files in os.walk(folder):
        count += len(inside) + len(files)
        for name in files[:MOST_ENTRIES]:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
        if count > MOST_ENTRIES or total > most:
            return True
    return False


def encode(value: Any) -> Any:
    """A function's result as JSON can hold it; what is no number and no container loses itself."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        told = value.detach().cpu()
        told = told.float() if told.dtype in (torch.bfloat16, torch.float16) else told
        return _array("tensor", told.numpy()) | {"grad": value.requires_grad}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        return _array("array" if isinstance(value, np.ndarray) else "scalar", np.asarray(value))
    if isinstance(value, nn.Conv2d):
        return {"kind": "conv"} | {name: encode(getattr(value, name)) for name in CONV}
    if isinstance(value, pd.Series | pd.DataFrame | Mapping):
        pairs = [[encode(key), encode(one)] for key, one in value.items()]
        return {"kind": "dict", "items": pairs}
    for kind, types in CONTAINERS.items():
        if isinstance(value, types):
            return {"kind": kind, "items": [encode(one) for one in islice(value, MOST_ITEMS)]}
    return {"kind": "object", "type": type(value).__name__}


def _array(kind: str, value: np.ndarray) -> dict:
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    return {"kind": kind, "dtype": value.dtype.name, "shape": list(value.shape), "data": data}


def decode(told: Any) -> Any:
    """The other way of `encode`; anything else is an error."""
    if not isinstance(told, dict):
        if isinstance(told, list):
            raise ValueError("a list without a kind")
        return told
    kind = told["kind"]
    if kind in ("tensor", "array", "scalar"):
        dtype = np.dtype(str(told["dtype"]))
        if dtype.kind not in "biuf":
            raise ValueError(dtype)
        value = np.frombuffer(base64.b64decode(told["data"]), dtype).reshape(told["shape"]).copy()
        if kind == "tensor":
            return torch.from_numpy(value).requires_grad_(told["grad"] is True)
        return value if kind == "array" else value[()]
    if kind == "dict":
        return {decode(key): decode(one) for key, one in told["items"]}
    if kind in CONTAINERS:
        kinds = {"list": list, "tuple": tuple, "set": set}
        return kinds[kind](decode(one) for one in told["items"])
    if kind == "conv":
        return _conv(**{name: decode(told[name]) for name in CONV})
    return type(re.sub(r"\W", "", str(told["type"]))[:40] or "object", (), {})()


def _conv(weight, bias, padding_mode, **shape) -> nn.Conv2d:
    """A convolution as it was described; it computes as ours do, whatever its class was."""
    numbers = [n for one in shape.values() for n in (one if isinstance(one, tuple) else (one,))]
    small = all(isinstance(n, int) and 0 <= n <= 16 for n in numbers)
    if not small or padding_mode != "zeros" or weight.dim() != 4:
        raise ValueError("a strange convolution")
    (after, before, *kernel), groups = weight.shape, shape["groups"]
    sizes = {"kernel_size": kernel, "bias": bias is not None, "device": "meta"}
    found = nn.Conv2d(before * groups, after, **sizes, **shape)
    given = {"weight": weight.detach()} | ({} if bias is None else {"bias": bias.detach()})
    found.load_state_dict(given, assign=True)
    return found
