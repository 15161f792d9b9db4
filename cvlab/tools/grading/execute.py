"""`grade --execute NOTEBOOK`: a student's whole notebook, in smoke, where it can hurt nobody.

A kernel needs processes and sockets, so `limits` alone will not do: on Linux `unshare` gives it a
network that leads nowhere and a list of processes of its own, which all end with the first.
"""

import fcntl
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from cvlab.paths import data_folder, project_root, wants_stand_in
from cvlab.tools import executed
from cvlab.tools.grading import limits
from cvlab.tools.grading.collect import MOST_BYTES, HandedIn
from cvlab.tools.grading.words import overflows, plain
from cvlab.tools.runner import Task, choose, execute_one, forget

SECONDS = 300  # a notebook takes 30 in smoke
MEMORY = 8 * 2**30  # bytes: addresses of each process, and what all of them hold
PROCESSES = 64
FOLDER_BYTES = 2**29
APART = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--mount", "--mount-proc"]
APART += ["--fork", "--kill-child"]
SHARED = ["mount", "-t", "tmpfs", "-o", f"size={FOLDER_BYTES}", "tmpfs", "/dev/shm"]


def apart() -> list[str]:
    """The command that takes connections away, [] where the system has none."""
    with suppress(OSError, subprocess.TimeoutExpired):
        if not subprocess.run([*APART, *SHARED], capture_output=True, timeout=20).returncode:
            return APART
    return []


def execute(
    handed: list[HandedIn], asked: list[str], out: Path, jobs: int, unprotected: bool
) -> Iterator[str]:
    """Execute these notebooks of all students; a line for each.

    What a notebook wrote, and itself, goes to `executed/STUDENT` of `out`.
    """
    away = apart()
    if not away:
        yield "Connections cannot be forbidden here to executed notebooks: this is no sandbox."
    if not (away or unprotected):
        yield "None was executed; in a virtual machine that holds nothing else, --unprotected."
        return
    plan = [(one, name) for one in handed for name in choose(asked) if name in one.notebooks]
    with ThreadPoolExecutor(jobs) as threads:
        yield from threads.map(lambda given: _one(*given, out, away), plan)


def _one(handed: HandedIn, name: str, out: Path, away: list[str]) -> str:
    with TemporaryDirectory(prefix="cvlab-grade-", ignore_cleanup_errors=True) as place:
        made, kept = Path(place) / "out", out / "executed" / handed.student
        paths = forget(Task(Path(name), {}, "smoke", kept))  # what an earlier time has left
        made.mkdir()
        (Path(place) / f"{name}.ipynb").write_bytes(plain(handed.notebooks[name], MOST_BYTES))
        own = {"PYTHONPATH": str(project_root()), "PATH": os.environ.get("PATH", "")}
        data = "synthetic" if wants_stand_in("auto") else str(data_folder())
        own |= {"CVLAB_DATA": data, "CVLAB_OUT": str(made), "CVLAB_PROFILE": "smoke"}
        places = ("HOME", "TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR")
        process = subprocess.Popen(
            [*away, sys.executable, "-m", "cvlab.tools.grading.execute", name, place],
            **{"cwd": place, "env": own | dict.fromkeys(places, place)},
            **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL),
        )
        ended = _supervise(process, Path(place))
        for path in sorted(made.rglob("*"))[:100]:
            if path.suffix in (".ipynb", ".md", ".png"):
                with suppress(OSError):  # a link, or too large
                    content, target = plain(path, MOST_BYTES), kept / path.relative_to(made)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content)
    found = [executed.read(path) for path in paths]
    told = max(found, key=lambda one: one.status != executed.NOT_RUN)
    claims = f"{told.held} of {len(told.claims)} claims hold"
    line = f"{handed.student}, {name}: {told.status}{ended}, {claims} {told.error}"
    return "".join(letter for letter in line if letter.isprintable())[:200]


def _supervise(process: subprocess.Popen, folder: Path) -> str:
    """Wait until it ends, or kill it when it takes too much; returns why."""
    until, why = time.monotonic() + SECONDS, ""
    while process.poll() is None and not why:
        time.sleep(0.25)
        family = []
        with suppress(psutil.Error):
            family = psutil.Process(process.pid).children(recursive=True)
        if why := _too_much(family, folder, until):
            for one in [*family, process]:
                with suppress(psutil.Error):
                    one.kill()
    process.wait()
    return why


def _too_much(family: list[psutil.Process], folder: Path, until: float) -> str:
    """What of its limits these processes have passed, in words, or ""."""
    held = 0
    for one in family:
        with suppress(psutil.Error):
            held += one.memory_info().rss
    for what, passed in {
        f"{SECONDS} s": time.monotonic() > until,
        f"{PROCESSES} processes": len(family) > PROCESSES,
        f"{MEMORY // 2**30} GB of memory": held > MEMORY,
        f"{FOLDER_BYTES // 2**20} MB or a thousand files": overflows(folder, FOLDER_BYTES),
    }.items():
        if passed:
            return f", stopped: more than {what}"
    return ""


def main(name: str, place: str) -> None:
    """In the new process: give up what can be given up, then run the notebook."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))  # the loopback is up
    subprocess.run(SHARED, capture_output=True)  # shared memory of its own
    read = [*limits.readable(), project_root() / "cvlab", project_root() / "notebooks"]
    read += [Path(os.environ["CVLAB_DATA"]), Path(sys.prefix), Path(sys.base_prefix)]
    read += map(Path, ("/proc", "/sys", "/dev", "/usr", "/bin", "/etc"))
    own = [Path(place), Path("/dev/shm"), Path("/dev/null")]
    limits.limit(2 * SECONDS, MEMORY, files=1024)
    limits.confine(limits.rules(read, own, limits.EXECUTE), alone=False)
    path, out = Path(place) / f"{name}.ipynb", Path(place) / "out"
    execute_one(Task(path, {"PROFILE": "smoke"}, "smoke", out))


if __name__ == "__main__":
    main(*sys.argv[1:])
