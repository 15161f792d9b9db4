"""A student's function as the judge has it: an `Answer`, which asks the process where it lives.

Nothing of the student is executed or unpickled here: what comes back is JSON, see `words`.
"""

import io
import json
import os
import pickle
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.reduction import send_handle
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch

from cvlab.exercises.answers import Wrong
from cvlab.paths import PACKAGE
from cvlab.tools.grading.limits import FILE_BYTES, FOLDER_BYTES
from cvlab.tools.grading.words import MOST_ENTRIES, decode, overflows, plain

MOST_WORDS = 4 * 2**20  # bytes of an answer
TICK = 0.25  # seconds between two looks at it
METHODS = ("__call__", "suggest_float", "suggest_int", "suggest_categorical", "params")
RUN_FILE = """
def run_file(file, content, images):
    import onnxruntime
    file.write_bytes(content)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]
"""
PROBE = """
def probe(key, outside):
    import os, socket
    def start():
        if not os.fork():
            os._exit(0)
    tries = {
        "reading other files": lambda: open(key).close(),
        "writing elsewhere": lambda: open(outside, "w").close(),
        "connections": lambda: socket.socket().close(),
        "starting processes": start,
        "signals to others": lambda: os.kill(os.getppid(), 0),
        "more memory than 2 GB": lambda: bytearray(2**33),
        "files above 16 MB": lambda: open("large", "wb").write(bytes(2**25)),
    }
    free = []
    for name, attempt in tries.items():
        try:
            attempt()
            free.append(name)
        except (OSError, MemoryError):
            pass
    return [[*tries], free]
"""


class Home:
    """The process that forks students' processes, and the folder that they may write in."""

    def __init__(self, imports: dict[str, list[str]]):
        self.place = TemporaryDirectory(prefix="cvlab-grade-", ignore_cleanup_errors=True)
        self.folder, self.imports = Path(self.place.name), imports
        self.control, theirs = Pipe()
        own = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
        own |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        own |= dict.fromkeys(("HOME", "MPLCONFIGDIR"), self.place.name)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cvlab.tools.grading.pupil", str(theirs.fileno())],
                cwd=self.folder,
                env=own | {"PYTHONPATH": str(PACKAGE.parent), "MPLBACKEND": "agg"},
                pass_fds=[theirs.fileno()],
                **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL),
            )
        self.control.send(imports)
        self.tries, self.free = self._probe()

    def _probe(self) -> list[list[str]]:
        """What a student's code must not do, and what of it this system does not forbid."""
        answer = Answer(self, "", "probe", PROBE)
        try:
            return answer(__file__, f"{self.folder}.probe")
        finally:
            answer.close()

    def told(self) -> str:
        """The same in words."""
        forbidden = ", ".join(one for one in self.tries if one not in self.free)
        told = f"Forbidden to students' code, as tried on {platform.system()}: {forbidden}."
        return told + (f" NOT forbidden: {', '.join(self.free)}: no sandbox." if self.free else "")

    def close(self) -> None:
        """End the process, remove the folder."""
        self.process.kill()
        self.process.wait()
        self.control.close()
        self.place.cleanup()


class Answer:
    """A student's function: called like one, it asks the process in which it lives."""

    def __init__(self, home: Home, notebook: str, name: str, source: str, seconds: int = 10):
        self.home, self.__name__, self.seconds = home, name, seconds
        self._begin(notebook, name, source)

    def _begin(self, notebook: str, name: str, source: str) -> None:
        self.status, self.why, self.asked, self.over = None, "", False, threading.Event()
        self.line, theirs = Pipe()
        with theirs:
            send_handle(self.home.control, theirs.fileno(), self.home.process.pid)
        self.pid = self.home.control.recv()
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()
        self.line.send((notebook, name, source, self.seconds))

    def __call__(self, *arguments: Any) -> Any:
        """Ask; whatever goes wrong over there is `Wrong`, in words."""
        question, self.asked = _Question(arguments), True
        try:
            self.line.send_bytes(question.content)
            while "call" in (told := json.loads(self.line.recv_bytes(MOST_WORDS))):
                self.line.send(_called(question.objects, told))
            if "error" in told:
                where = f" in `{told['line']}`" if told["line"] else ""
                raise Wrong(f"your code stopped with {told['error']}{where}: {told['text']}")
            result = _with_gradients(decode(told["result"]), told, arguments)
        except (OSError, EOFError) as error:
            raise Wrong(self._ended()) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise Wrong("what your code gave back is no answer that could be read.") from error
        finally:
            self.asked = False
        for path in question.paths:
            if path.is_absolute():  # a check's own: what was written comes to it
                for entry in sorted(self.home.folder.iterdir())[:8]:
                    (path.parent / entry.name).write_bytes(plain(entry, FILE_BYTES))
        return result

    def session(self, file: Path) -> SimpleNamespace:
        """For the check of `to_file`: an engine that reads the student's file elsewhere, too."""
        content = file.read_bytes()
        self.close()
        self._begin("", "run_file", RUN_FILE)
        return SimpleNamespace(
            get_inputs=lambda: [SimpleNamespace(name="images")],
            run=lambda _, given: [self(Path("given.onnx"), content, given["images"])],
        )

    def close(self) -> None:
        """End the process and what it has started; empty its folder."""
        if self.status is None:
            self._reap(patience=0)
        for entry in self.home.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink()

    def _reap(self, patience: float) -> None:
        self.over.set()
        self.watch.join()
        self.line.close()
        self.home.control.send(patience)
        self.status = self.home.control.recv()

    def _watch(self) -> None:
        """Hang up when its time is over or its folder overflows, and say why."""
        waited = 0.0
        while not self.why and not self.over.wait(TICK):
            waited += TICK * self.asked  # not while the check itself computes
            if waited - _queued(self.pid) > 2 * self.seconds:
                self.why = f"stopped after {2 * self.seconds} s: does it ever end?"
            elif overflows(self.home.folder, FOLDER_BYTES):
                self.why = f"more than {FOLDER_BYTES // 2**20} MB or {MOST_ENTRIES} files."
        if self.why:
            with socket.fromfd(self.line.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as line:
                line.shutdown(socket.SHUT_RDWR)

    def _ended(self) -> str:
        """Why it says no more, in words."""
        if not self.line.readable:
            return f"more than {MOST_WORDS // 2**20} MB came back."
        if self.status is None:
            self._reap(patience=0 if self.why else 1)
        if self.why or self.status < 0:
            return self.why or "your code hung up, and went on."
        code = os.waitstatus_to_exitcode(self.status)
        if code in (-signal.SIGXCPU, -signal.SIGKILL):
            return f"stopped after {self.seconds} s of computing: does it ever end?"
        if code < 0:
            return f"your code crashed its process ({signal.Signals(-code).name})."
        return f"your code ended its own process (exit code {code})."


class _Question(pickle.Pickler):
    """Arguments as bytes; functions, trials and paths stay here, and are named by a number."""

    def __init__(self, arguments: tuple):
        self.objects, self.paths = [], []
        stream = io.BytesIO()
        super().__init__(stream)
        self.dump(arguments)
        self.content = stream.getvalue()

    def persistent_id(self, one: Any) -> tuple | None:
        if isinstance(one, Path):
            self.paths.append(one)
            return "path", one.name
        trial = type(one).__module__.startswith("optuna.")  # importing it takes a while
        if trial or getattr(one, "__closure__", None):
            self.objects.append(one)
            return "object", len(self.objects) - 1
        return None


def _called(objects: list, told: dict) -> tuple[Any, str]:
    """What one of our own objects says to the student's process, or its error."""
    try:
        if told["method"] not in METHODS:
            raise ValueError(f"there is no {str(told['method'])[:40]} here")
        found = getattr(objects[told["call"]], told["method"])
        if not callable(found):
            return found, ""
        named = {key: decode(one) for key, one in told["named"].items()}
        return found(*(decode(one) for one in told["arguments"]), **named), ""
    except Exception as error:  # whatever such arguments lead to
        return None, f"{type(error).__name__}: {error}"[:300]


class _Carried(torch.autograd.Function):
    """A result whose gradients were computed where the student's function lives."""

    @staticmethod
    def forward(ctx, value, gradients, *leaves):
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx, _):
        return None, None, *ctx.gradients


def _with_gradients(result: Any, told: dict, arguments: tuple) -> Any:
    if "gradients" not in told:
        return result
    leaves = [one for one in arguments if isinstance(one, torch.Tensor) and one.requires_grad]
    gradients = [decode(one) for one in told["gradients"]]
    return _Carried.apply(result.detach(), gradients, *leaves)


def _queued(pid: int) -> float:
    """Seconds in which a process has waited for a core, where the system tells: not its fault."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="utf-8").split()[1]) / 1e9
    return 0.0
