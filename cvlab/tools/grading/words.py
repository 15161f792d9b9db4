"""The words between a student's process and the judge: results as JSON, arrays as bytes.

`decode` builds numbers, arrays, containers and convolutions; it calls and imports nothing.
"""

import base64
import re
import socket
import struct
from collections.abc import Iterator, KeysView, Mapping, ValuesView
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

MOST_ITEMS = 10_000  # of an iterator that is read
CONV = ("stride", "padding", "dilation", "groups", "padding_mode")


def send(line: socket.socket, content: bytes) -> None:
    """One message: its length, then it."""
    line.sendall(struct.pack("!I", len(content)) + content)


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
        told = {name: encode(getattr(value, name)) for name in (*CONV, "weight", "bias")}
        return {"kind": "conv"} | told
    if isinstance(value, pd.Series | pd.DataFrame | Mapping):
        pairs = [[encode(key), encode(one)] for key, one in value.items()]
        return {"kind": "dict", "items": pairs}
    for kind, types in {
        "tuple": tuple,
        "set": set | frozenset,
        "list": list | Iterator | KeysView | ValuesView | pd.Index,
    }.items():
        if isinstance(value, types):
            return {"kind": kind, "items": [encode(one) for one in islice(value, MOST_ITEMS)]}
    return {"kind": "object", "type": type(value).__name__}


def _array(kind: str, value: np.ndarray) -> dict:
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    return {"kind": kind, "dtype": value.dtype.name, "shape": list(value.shape), "data": data}


def decode(told: Any) -> Any:
    """The other way of `pupil.encode`; anything else is an error."""
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
    if kind in ("list", "tuple", "set"):
        kinds = {"list": list, "tuple": tuple, "set": set}
        return kinds[kind](decode(one) for one in told["items"])
    if kind == "conv":
        return _conv(**{name: decode(told[name]) for name in (*CONV, "weight", "bias")})
    return type(re.sub(r"\W", "", str(told["type"]))[:40] or "object", (), {})()


def _conv(weight, bias, padding_mode, **shape) -> nn.Conv2d:
    """A convolution as it was described; it computes as ours do, whatever its class was."""
    numbers = [n for one in shape.values() for n in (one if isinstance(one, tuple) else (one,))]
    if (
        weight.dim() != 4
        or padding_mode != "zeros"
        or not all(isinstance(n, int) and 0 <= n <= 16 for n in numbers)
    ):
        raise ValueError("a strange convolution")
    groups = shape["groups"]
    found = nn.utils.skip_init(nn.Conv2d, 1, 1, 1)
    found.weight = nn.Parameter(weight.detach())
    found.bias = None if bias is None else nn.Parameter(bias.detach())
    for name, one in shape.items():
        setattr(found, name, one)
    found.out_channels, found.in_channels = len(weight), weight.shape[1] * groups
    found.kernel_size = tuple(weight.shape[2:])
    return found
