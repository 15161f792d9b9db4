"""`grade --execute NOTEBOOK`: a student's whole notebook, in smoke, where it can hurt nobody.

A kernel needs processes and sockets, so `limits` alone will not do: on Linux `unshare` gives
it a network that leads nowhere and a list of processes of its own, which all end with the first.
"""

import fcntl
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from cvlab import records
from cvlab.paths import data_folder, project_root
from cvlab.tools.grading import limits as limits
from cvlab.tools.grading.collect import MOST_BYTES, HandedIn
from cvlab.tools.runner import Task, choose, execute_one

SECONDS = 300  # a notebook takes 30 in smoke
MEMORY = 8 * 2**30  # bytes of addresses of each process
APART = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--mount-proc"]
APART += ["--fork", "--kill-child"]


def apart() -> list[str]:
    """The command that takes connections away, [] where the system has none."""
    try:
        tried = subprocess.run([*APART, "true"], capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [] if tried.returncode else APART


def execute(handed: list[HandedIn], asked: list[str], out: Path, jobs: int) -> Iterator[str]:
    """Execute these notebooks of all students; a line for each.

    What a notebook wrote, and itself, goes to `executed/STUDENT` of `out`.
    """
    away = apart()
    if not away:
        yield "Connections are NOT forbidden to executed notebooks here: this is no sandbox."
    plan = [(one, name) for one in handed for name in choose(asked) if name in one.notebooks]
    with ThreadPoolExecutor(jobs) as threads:
        yield from threads.map(lambda given: _one(*given, out, away), plan)


def _one(handed: HandedIn, name: str, out: Path, away: list[str]) -> str:
    with TemporaryDirectory(prefix="cvlab-grade-", ignore_cleanup_errors=True) as place:
        folder, made = Path(place), Path(place) / "out"
        shutil.copyfile(handed.notebooks[name], folder / f"{name}.ipynb", follow_symlinks=False)
        made.mkdir()
        own = {"PYTHONPATH": str(project_root()), "PATH": os.environ.get("PATH", "")}
        own |= dict.fromkeys(("HOME", "TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"), place)
        own |= {"CVLAB_DATA": str(data_folder()), "CVLAB_OUT": str(made), "MPLCONFIGDIR": place}
        command = [*away, sys.executable, "-m", "cvlab.tools.grading.execute", name, place]
        devnull, ended = subprocess.DEVNULL, ""
        process = subprocess.Popen(
            command,
            **{"cwd": place, "env": own, "start_new_session": True},
            **{"stdin": devnull, "stdout": devnull, "stderr": devnull},
        )
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            ended = f", stopped after {SECONDS} s"
        finally:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        kept = out / "executed" / handed.student
        _keep(made, kept)
        paths = [kept / f"{name}{ending}.ipynb" for ending in records.STATES]
        found = records.read(next((path for path in paths if path.is_file()), paths[0]))
        claims = f"{found.held} of {len(found.claims)} claims hold"
        return f"{handed.student}, {name}: {found.status}{ended}, {claims} {found.error}"[:200]


def _keep(made: Path, kept: Path) -> None:
    """Copy plain files that are not too large: notebooks, report, figures."""
    for path in sorted(made.rglob("*"))[:100]:
        about = path.lstat()
        plain = stat.S_ISREG(about.st_mode) and about.st_size <= MOST_BYTES
        if plain and path.suffix in (".ipynb", ".md", ".png"):
            target = kept / path.relative_to(made)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target, follow_symlinks=False)


def main(name: str, place: str) -> None:
    """In the new process: give up what can be given up, then run the notebook."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))  # the loopback is up
    read = [*limits.readable(), project_root() / "cvlab", project_root() / "notebooks"]
    read += [Path(where) for where in (os.environ["CVLAB_DATA"], "/proc", "/sys", "/dev", "/usr")]
    read += [Path(sys.prefix), Path(sys.base_prefix), Path("/bin"), Path("/etc")]
    found = limits.rules(read, [Path(place), Path("/dev/shm"), Path("/dev/null")], limits.EXECUTE)
    limits.limit(2 * SECONDS, MEMORY, files=1024)
    limits.confine(found, alone=False)
    task = Task(Path(place) / f"{name}.ipynb", {"PROFILE": "smoke"}, "smoke", Path(place) / "out")
    os.environ["CVLAB_PROFILE"] = "smoke"
    execute_one(task)


if __name__ == "__main__":
    main(*sys.argv[1:])
