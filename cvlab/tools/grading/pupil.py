"""Where a student's function lives: a process that has everything imported waits, and forks.

The judge, `home`, sends it one end of a pipe. The fork gives up its rights, runs the source of
one exercise and answers over the pipe: pickled questions come, only JSON goes back. It knows
neither the checks nor the secret, and nothing that it says is more than data.
"""

import gc
import io
import json
import os
import pickle
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, nn

from cvlab.tools.grading import limits
from cvlab.tools.grading.words import encode


class _Questions(pickle.Unpickler):
    """The judge's questions; what cannot travel is asked over the line."""

    def __init__(self, line: Connection):
        super().__init__(io.BytesIO(line.recv_bytes()))
        self.line = line

    def persistent_load(self, known: tuple) -> Any:
        kind, which = known
        return Path.cwd() / which if kind == "path" else _Distant(self.line, which)


class _Distant:
    """A function or an Optuna trial of the judge's."""

    def __init__(self, line: Connection, which: int):
        self._line, self._which = line, which

    def __call__(self, *arguments, **named):
        return self._ask("__call__", *arguments, **named)

    def __getattr__(self, method: str):
        return self._ask(method) if method == "params" else partial(self._ask, method)

    def _ask(self, method: str, *arguments, **named):
        named = {key: encode(one) for key, one in named.items()}
        asked = {"call": self._which, "method": method, "named": named}
        asked["arguments"] = [encode(one) for one in arguments]
        self._line.send_bytes(json.dumps(asked).encode())
        value, error = self._line.recv()
        if error:
            raise ValueError(error)
        return value


class _Run:
    """In place of a notebook's `run`: a cell may call it; nothing is checked here."""

    def use(self, answer, *_, **__):
        return answer

    def __getattr__(self, name: str):
        return lambda *_, **__: None


def _answer(line: Connection, names: dict, name: str, source: str) -> None:
    """Define the function, then answer questions until the judge hangs up."""
    problem = {}
    try:
        exec(compile(source, "<answer>", "exec"), names)
    except BaseException as error:
        problem = _problem(error, source)
    if answer := names.get(name):  # what comes after it in the cell may need the notebook
        problem = {}
    while True:
        arguments = _Questions(line).load()
        try:
            told = problem or _result(answer, arguments)
        except BaseException as error:
            told = _problem(error, source)
        line.send_bytes(json.dumps(told).encode())


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


def _live(line: Connection, spaces: dict, rules: int | None, memory: int) -> None:
    """A fork's life. It ends when the judge hangs up or has it killed."""
    os.setsid()
    for number in {int(name) for name in os.listdir("/dev/fd")} - {line.fileno(), rules}:
        with suppress(OSError):
            os.close(number)
    for standard in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), standard)
    notebook, name, source, seconds = line.recv()
    limits.limit(seconds, memory)
    limits.confine(rules)
    _answer(line, dict(spaces.get(notebook, {}), __name__="__main__"), name, source)


def _reaped(child: int, patience: float) -> int:
    """How it has ended, as `os.waitpid` tells; -1 if it had to be killed after so many seconds."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.002)
    for end in (os.killpg, os.kill):
        with suppress(OSError):
            end(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def _spaces(imports: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """What each notebook has imported, and everything that takes long for the first time."""
    spaces = {}
    for notebook, statements in imports.items():
        spaces[notebook] = {"torch": torch, "np": np, "pd": pd, "run": _Run()}
        for statement in statements:
            with suppress(Exception):  # a package of an extra
                exec(statement, spaces[notebook])
    torch.set_num_threads(1)
    if any("import onnx" in told for told in imports.values()):  # an export imports for seconds
        file = Path("warm.onnx")
        torch.onnx.export(nn.Linear(1, 1).eval(), (torch.ones(1, 1),), file, external_data=False)
        file.unlink()
    gc.freeze()  # else each fork's collections walk, and copy, all of it
    return spaces


def main() -> None:
    """Import what the notebooks import, then fork whenever the judge asks."""
    control = Connection(int(sys.argv[1]))
    spaces = _spaces(control.recv())
    memory = psutil.Process().memory_info().vms + limits.MEMORY
    rules = limits.rules(limits.readable(), [Path.cwd()])
    while True:
        line = Connection(recv_handle(control))
        child = os.fork()
        if not child:
            try:
                _live(line, spaces, rules, memory)
            finally:
                os._exit(1)
        line.close()
        control.send(child)
        patience = 0
        try:
            patience = control.recv()
        finally:  # even if the judge is gone
            status = _reaped(child, patience)
        control.send(status)


if __name__ == "__main__":
    with suppress(EOFError, OSError):  # the judge is gone
        main()
    shutil.rmtree(Path.cwd(), ignore_errors=True)
