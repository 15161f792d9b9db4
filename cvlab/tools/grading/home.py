"""A student's function as the judge has it: an `Answer`, which asks the process where it lives.

Nothing of the student is executed or unpickled here: what comes back is JSON, see `words`.
"""

import io
import json
import os
import pickle
import platform
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import types
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import torch

from cvlab.exercises.answers import Wrong
from cvlab.paths import PACKAGE
from cvlab.tools.grading import limits as limits
from cvlab.tools.grading.words import decode, send

MOST_BYTES = 16 * 2**20  # of a file that comes with an answer
MOST_WORDS = 4 * 2**20  # bytes of an answer
MOST_ENTRIES = 1000  # in a student's folder
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
        self.folder = Path(self.place.name)
        self.control, theirs = socket.socketpair()
        kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
        ours = PACKAGE.parent
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        own = {"PYTHONPATH": str(ours), "HOME": str(self.folder), "MPLBACKEND": "agg"}
        command = [sys.executable, "-m", "cvlab.tools.grading.pupil", str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=kept | threads | own | {"MPLCONFIGDIR": str(self.folder)},
                pass_fds=[theirs.fileno()],
                **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL),
            )
        send(self.control, pickle.dumps(imports))
        self.tries, self.free = self._probe()

    def _probe(self) -> list[list[str]]:
        """What a student's code must not do, and what of it this system does not forbid."""
        answer = Answer(self, "", "probe", PROBE)
        try:
            return answer(__file__, str(self.folder.parent / f"{self.folder.name}.probe"))
        finally:
            answer.close()

    def told(self) -> str:
        """The same in words."""
        forbidden = ", ".join(one for one in self.tries if one not in self.free)
        told = f"Forbidden to students' code, as tried on {platform.system()}: {forbidden}."
        return told + (f" NOT forbidden: {', '.join(self.free)}: no sandbox." if self.free else "")

    def fork(self) -> tuple[int, socket.socket]:
        """A new process: its number, and the line to it."""
        line, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.control, [b"f"], [theirs.fileno()])
        return struct.unpack("!i", self.control.recv(4))[0], line

    def reap(self) -> int:
        """How the last one has ended, as `os.waitpid` tells."""
        self.control.sendall(b"r")
        return struct.unpack("!i", self.control.recv(4))[0]

    def close(self) -> None:
        """End the process, remove the folder."""
        self.process.kill()
        self.process.wait()
        self.control.close()
        self.place.cleanup()


class Answer:
    """A student's function: called like one, it asks the process in which it lives."""

    def __init__(self, home: Home, notebook: str, name: str, source: str, seconds: int = 10):
        self.home, self.__name__, self.status, self.seconds = home, name, None, seconds
        self.pid, self.line = home.fork()
        self.line.settimeout(2 * seconds)  # it may read nothing
        self.until = time.monotonic() + 2 * seconds
        send(self.line, pickle.dumps((notebook, name, source, seconds)))

    def __call__(self, *arguments: Any) -> Any:
        """Ask; whatever goes wrong over there is `Wrong`, in words."""
        question = _Question(arguments)
        try:
            send(self.line, question.content)
            told = json.loads(self._hear())
            while "call" in told:
                send(self.line, pickle.dumps(_called(question.objects, told)))
                told = json.loads(self._hear())
            if "error" in told:
                where = f" in `{told['line']}`" if told["line"] else ""
                raise Wrong(f"your code stopped with {told['error']}{where}: {told['text']}")
            result = _with_gradients(decode(told["result"]), told, arguments)
        except (OSError, EOFError) as error:
            raise Wrong(self._ended()) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise Wrong("what your code gave back is no answer that could be read.") from error
        for path in question.paths:
            if path.is_absolute():  # a check's own
                self._fetch(path.parent)
        return result

    def session(self, file: Path) -> "_Session":
        """For the check of `to_file`: an engine that reads the student's file elsewhere, too."""
        self.close()
        return _Session(Answer(self.home, "", "run_file", RUN_FILE), file)

    def close(self) -> None:
        """Kill the process and what it has started; empty its folder."""
        self.line.close()
        for end in (os.killpg, os.kill) if self.status is None else ():
            with suppress(OSError):
                end(self.pid, signal.SIGKILL)
        self.status = self.home.reap() if self.status is None else self.status
        for entry in self.home.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink()

    def _hear(self) -> bytes:
        """One message, if it comes in time, is not too long, and the folder does not overflow."""
        found, wanted = bytearray(), 4
        while len(found) < wanted:
            if time.monotonic() > self.until:
                raise Wrong(f"stopped after {2 * self.seconds} s: does it ever end?")
            if not select.select([self.line], [], [], 0.25)[0]:
                _weigh(self.home.folder)
                continue
            piece = self.line.recv(min(2**16, wanted - len(found)))
            if not piece:
                raise EOFError
            found += piece
            if len(found) == wanted == 4:
                wanted += struct.unpack("!I", found)[0]
                if wanted > MOST_WORDS:
                    raise Wrong(f"more than {MOST_WORDS // 2**20} MB came back.")
        return bytes(found[4:])

    def _ended(self) -> str:
        """Why the process is no more, in words."""
        self.status = self.home.reap()
        code = os.waitstatus_to_exitcode(self.status)
        if code in (-signal.SIGXCPU, -signal.SIGKILL):
            return f"stopped after {self.seconds} s of computing: does it ever end?"
        if code < 0:
            return f"your code crashed its process ({signal.Signals(-code).name})."
        return f"your code ended its own process (exit code {code})."

    def _fetch(self, folder: Path) -> None:
        """Copy the plain files that the student's process has written to a folder of the check."""
        for entry in sorted(self.home.folder.iterdir())[:8]:
            place = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            plain = S_ISREG(os.fstat(place).st_mode)
            content = os.read(place, MOST_BYTES) if plain else b""
            os.close(place)
            if plain:
                (folder / entry.name).write_bytes(content)


class _Session:
    """As much of ONNX Runtime's session as a check uses."""

    def __init__(self, answer: Answer, file: Path):
        self.answer, self.content = answer, file.read_bytes()

    def get_inputs(self) -> list:
        return [types.SimpleNamespace(name="images")]

    def run(self, _, given: dict) -> list:
        return [self.answer(Path("given.onnx"), self.content, given["images"])]


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
        if isinstance(one, optuna.Trial) or getattr(one, "__closure__", None):
            self.objects.append(one)
            return "object", len(self.objects) - 1
        return None


def _called(objects: list, told: dict) -> tuple[Any, str]:
    """What one of our own objects says to the student's process, or its error."""
    try:
        if told["method"] not in METHODS:
            raise ValueError(f"there is no {str(told['method'])[:40]} here")
        found = getattr(objects[told["call"]], told["method"])
        if told["method"] == "params":
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


def _weigh(folder: Path) -> None:
    """See that a student's folder holds no more than it may."""
    total = count = 0
    for place, inside, files in os.walk(folder):
        count += len(inside) + len(files)
        for name in files[:MOST_ENTRIES]:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
        if count > MOST_ENTRIES or total > limits.FOLDER_BYTES:
            raise Wrong(f"more than {limits.FOLDER_BYTES // 2**20} MB or {MOST_ENTRIES} files.")
