"""Where a student's function lives: a process that has everything imported waits, and forks.

The judge, `judge`, sends it one end of a socket. The fork gives up its rights, runs the
source of one exercise and answers over the socket: pickled questions come, only JSON goes back.
It knows neither the checks nor the secret, and nothing that it says is more than data.
"""

import io
import json
import os
import pickle
import signal
import socket
import struct
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, nn

from cvlab.tools.grading import limits as limits
from cvlab.tools.grading.words import encode, send


def _receive(line: socket.socket) -> bytes:
    def exactly(count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            piece = line.recv(count - len(found))
            if not piece:
                os._exit(0)  # the judge has heard enough
            found += piece
        return bytes(found)

    return exactly(*struct.unpack("!I", exactly(4)))


class _Questions(pickle.Unpickler):
    """The judge's questions; what cannot travel is called over the line."""

    def __init__(self, content: bytes, line: socket.socket):
        super().__init__(io.BytesIO(content))
        self.line = line

    def persistent_load(self, known: tuple) -> Any:
        kind, which = known
        if kind == "path":
            return Path.cwd() / which
        return _Distant(self.line, which)


class _Distant:
    """A function or an Optuna trial of the judge's."""

    def __init__(self, line: socket.socket, which: int):
        self._line, self._which = line, which

    def __call__(self, *arguments, **named):
        return self._ask("__call__", *arguments, **named)

    def __getattr__(self, method: str):
        if method in ("params", "number", "distributions"):
            return self._ask(method)
        return lambda *arguments, **named: self._ask(method, *arguments, **named)

    def _ask(self, method: str, *arguments, **named):
        named = {key: encode(one) for key, one in named.items()}
        asked = {"call": self._which, "method": method, "named": named}
        told = asked | {"arguments": [encode(one) for one in arguments]}
        send(self._line, json.dumps(told).encode())
        value, error = pickle.loads(_receive(self._line))
        if error:
            raise ValueError(error)
        return value


def _answer(line: socket.socket, names: dict, name: str, source: str) -> None:
    """Define the function, then answer questions until the judge hangs up."""
    problem = {}
    try:
        exec(compile(source, "<answer>", "exec"), names)
    except BaseException as error:
        problem = _problem(error, source)
    if answer := names.get(name):  # what comes after it in the cell may need the notebook
        problem = {}
    while True:
        arguments = _Questions(_receive(line), line).load()
        try:
            told = problem or _result(answer, arguments)
        except BaseException as error:
            told = _problem(error, source)
        send(line, json.dumps(told).encode())


def _result(answer, arguments: tuple) -> dict:
    result = answer(*arguments)
    told = {"result": encode(result)}
    leaves = [one for one in arguments if isinstance(one, Tensor) and one.requires_grad]
    if leaves and isinstance(result, Tensor) and result.requires_grad:
        result.sum().backward()  # here, where the graph is
        told["gradients"] = [encode(leaf.grad) for leaf in leaves]
    return told


def _problem(error: BaseException, source: str) -> dict:
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == "<answer>"]
    lines = source.splitlines()
    where = lines[own[-1].lineno - 1].strip() if own and own[-1].lineno <= len(lines) else ""
    return {"error": type(error).__name__, "line": where, "text": str(error)[:300]}


def _live(line: socket.socket, spaces: dict, found: int | None, memory: int) -> None:
    """A fork's life. It ends when the judge hangs up or kills it."""
    os.setsid()
    kept = sorted({line.fileno(), found if found is not None else line.fileno()})
    for low, high in zip([2, *kept], [*kept, 4096], strict=True):
        os.closerange(low + 1, high)
    for standard in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), standard)
    notebook, name, source, seconds = pickle.loads(_receive(line))
    limits.limit(seconds, memory)
    limits.confine(found)
    _answer(line, dict(spaces.get(notebook, {}), __name__="__main__"), name, source)


def _reaped(child: int, patience: float = 1) -> int:
    """How it has ended; one that hung up and goes on is killed after so many seconds."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


class _Ignored:
    """In place of `run`: a cell may call `run.check`, `run.use` and more; nothing happens."""

    def __getattr__(self, name: str) -> "_Ignored":
        return self

    def __call__(self, *_, **__) -> "_Ignored":
        return self


def main() -> None:
    """Import what the notebooks import, then fork whenever the judge asks."""
    control = socket.socket(fileno=int(sys.argv[1]))
    spaces = {}
    for notebook, statements in pickle.loads(_receive(control)).items():
        spaces[notebook] = {"torch": torch, "np": np, "pd": pd, "run": _Ignored()}
        for statement in statements:
            with suppress(Exception):  # a package of an extra
                exec(statement, spaces[notebook])
    torch.set_num_threads(1)
    file = Path("warm.onnx")  # what an export imports takes seconds
    torch.onnx.export(nn.Linear(1, 1).eval(), (torch.ones(1, 1),), file, external_data=False)
    file.unlink()
    memory = psutil.Process().memory_info().vms + limits.MEMORY
    found, child = limits.rules(limits.readable(), [Path.cwd()]), 0
    while True:
        wanted, ends, *_ = socket.recv_fds(control, 1, 1)
        if not wanted:
            _reaped(child, 0) if child else None
            return
        if wanted == b"f":
            child = os.fork()
            if not child:
                try:
                    _live(socket.socket(fileno=ends[0]), spaces, found, memory)
                finally:
                    os._exit(1)
            os.close(ends[0])
            control.sendall(struct.pack("!i", child))
        else:
            control.sendall(struct.pack("!i", _reaped(child)))


if __name__ == "__main__":
    main()
