"""Send notebooks to the workers of a Dask cluster; what they made comes back as it is made.

A free worker gets one notebook, and the client, not Dask, says which: so a notebook that kills
its worker takes no other down with it, and a worker that does not fit is left out.
"""

import asyncio
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from uuid import uuid4

import psutil

from cvlab.paths import replace_atomically
from cvlab.tools.runner import Crew, Plan, Result, Task, environment, execute_one, forget, tell

CONNECT_SECONDS = 10


LOOK_EVERY = 0.5  # seconds


MAX_LOSSES = 3  # of workers by one notebook: then it is no accident


class ClusterError(RuntimeError):
    """The cluster cannot be used; the message says what to do."""


class ClusterLost(BrokenExecutor):
    """The scheduler went away in mid-run."""


@contextmanager
def crew(scheduler: str, plan: Plan) -> Iterator[Crew]:
    """Connect to a scheduler; gives a function that executes tasks on its workers.

    On leaving, notebooks that still run there are stopped.

    Raises:
        ClusterError: Dask is not installed, no scheduler answers, or none of its workers fits.
    """
    with _connect(scheduler) as client:
        cluster = Cluster(client, plan)
        if not cluster.workers() and cluster.unfit:
            raise ClusterError(f"No worker of {scheduler} can be used, for the reasons above.")
        yield cluster.execute


def _connect(scheduler: str):
    try:
        from distributed import Client
    except ImportError as error:
        raise ClusterError(
            f"--scheduler {scheduler} was given, but Dask is not installed here: "
            "pip install 'cvlab[tools]'"
        ) from error
    try:
        asyncio.run(_greet(scheduler))
        return Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"No Dask scheduler answers at {scheduler} ({str(error) or 'no word in time'}). Give "
            "the address that `dask scheduler` has printed, tcp://HOST:PORT, and see that it runs."
        ) from error


async def _greet(scheduler: str) -> None:
    """See that it is one: Dask's client waits for ever when something else listens there."""
    from distributed.core import rpc
    from distributed.security import Security

    how = Security().get_connection_args("client")  # certificates for tls://, as configured
    async with rpc(scheduler, connection_args=how) as remote, asyncio.timeout(CONNECT_SECONDS):
        found = await remote.identity()
    if found["type"] != "Scheduler":
        raise ValueError(f"this is a {found['type']}")


class Cluster:
    """The workers of a scheduler, and who has which notebook."""

    def __init__(self, client, plan: Plan):
        from distributed import as_completed

        self.client, self.plan = client, plan
        self.arrivals = as_completed(loop=client.loop, with_results=True, raise_errors=False)
        self.waiting: deque[Task] = deque()
        self.sent = {}  # future -> (task, worker's address)
        self.losses = Counter()  # of workers, by notebook
        self.fit, self.unfit = set(), set()  # addresses of the workers looked at
        self.told_to_wait = False

    def execute(self, tasks: list[Task]) -> Iterator[Result]:
        """Execute tasks on the workers that are there or come; results in order of arrival.

        A result is told when all that its notebook wrote lies in the task's `out`.

        Raises:
            ClusterLost: the scheduler is gone.
        """
        self.waiting.extend(tasks)
        while self.waiting or self.sent:
            workers = self.workers()
            self._send(workers)
            time.sleep(LOOK_EVERY)
            for result in (*self._arrived(), *self._given_up(workers)):
                tell(result)
                yield result

    def workers(self) -> dict[str, bool]:
        """The workers that fit, address -> is it free; of a new one that does not, it says why."""
        try:
            threads, busy = self.client.nthreads(), self.client.processing()
            new = [address for address in threads if address not in self.fit | self.unfit]
            ask = partial(self.client.run, metadata.version, "cvlab", on_error="return")
            versions = ask(workers=new) if new else {}
        except (OSError, AttributeError) as error:  # Dask's closed client has no scheduler
            raise ClusterLost("the scheduler has gone") from error
        for address, version in versions.items():
            if isinstance(version, OSError):
                continue  # gone again
            problem = _problem(threads[address], version)
            (self.unfit if problem else self.fit).add(address)
            if problem:
                print(f"Worker {address} is left out: {problem}.", file=sys.stderr)
        self.fit, self.unfit = self.fit & threads.keys(), self.unfit & threads.keys()
        return {address: not busy.get(address) for address in threads if address in self.fit}

    def _send(self, workers: dict[str, bool]) -> None:
        taken = {worker for _, worker in self.sent.values()}
        free = [one for one, is_free in workers.items() if is_free and one not in taken]
        if self.waiting and not free and not self.sent and not self.told_to_wait:
            address = self.client.scheduler.address
            print(f"Waiting for workers; start one: dask worker {address} --nthreads 1", flush=True)
            self.told_to_wait = True
        hosts = Counter(urlsplit(one).hostname for one in workers)
        for worker in free[: len(self.waiting)]:
            task = self.waiting.popleft()
            name = task.path.stem
            forget(task)
            future = self.client.submit(
                lambda *given: import_module("cvlab.tools.cluster").work(
                    *given
                ),  # travels by value
                *(name, task.path.read_bytes(), asdict(self.plan), task.parameters),
                hosts[urlsplit(worker).hostname],
                key=f"{name}-{uuid4().hex}",  # else two runs at once would share a result
                workers=[worker],
            )
            self.sent[future] = task, worker
            self.arrivals.add(future)
            self.told_to_wait = False
            print(f"{name}: sent to {worker} ({task.profile}) ...", flush=True)

    def _arrived(self) -> Iterator[Result]:
        for future, outcome in self.arrivals.next_batch(block=False):
            if future not in self.sent or future.status not in ("finished", "error"):
                continue
            task, worker = self.sent.pop(future)
            if future.status == "finished":
                yield _keep(task, *outcome)
            else:
                kind, error, _ = outcome
                yield Result(
                    task.path.stem, "failed", error=f"{kind.__name__} on worker {worker}: {error}"
                )

    def _given_up(self, workers: dict[str, bool]) -> Iterator[Result]:
        """Queue the notebooks of lost workers again; gives results for those lost too often."""
        for future, (task, worker) in list(self.sent.items()):
            if worker in workers and future.status not in ("cancelled", "lost"):
                continue
            name = task.path.stem
            self.client.cancel(future)
            del self.sent[future]
            self.losses[name] += 1
            print(f"{name}: worker {worker} was lost", flush=True)
            if self.losses[name] < MAX_LOSSES:
                self.waiting.appendleft(task)
            else:
                yield Result(
                    name,
                    "failed",
                    error=f"{MAX_LOSSES} workers were lost while they ran it, the last one "
                    f"{worker}; have they too little memory?",
                )


def _problem(threads: int, version: str | Exception) -> str:
    """Why a worker cannot be used; nothing for one that can."""
    own = metadata.version("cvlab")
    if isinstance(version, Exception):
        return f"it has no cvlab ({version}); install cvlab {own} there"
    if version != own:
        return f"it has cvlab {version}, and here is {own}; install the same"
    if threads != 1:
        return (
            f"it has {threads} threads, and notebooks run one at a time; start it with --nthreads 1"
        )
    return ""


def _keep(task: Task, result: dict, files: dict[str, bytes]) -> Result:
    """Store what a notebook wrote; the notebook last, because it says that all is there."""
    kept = Result(**result)
    try:
        for name in sorted(files, key=lambda name: name.endswith(".ipynb")):
            replace_atomically(partial(Path.write_bytes, data=files[name]), task.out / name)
    except OSError as error:  # a full disk costs this notebook, not the night
        kept.status, kept.error = "failed", f"It could not be stored here: {error}"
    return kept


def work(
    name: str, source: bytes, plan: dict, parameters: dict, share: int
) -> tuple[dict, dict[str, bytes]]:
    """On a worker: execute a notebook; returns its result and every file it wrote.

    Args:
        name: the notebook's, without `.ipynb`.
        source: the notebook as the client has it.
        plan: a `Plan` as a dictionary; its data folder is one of this worker.
        parameters: those of this notebook, checked.
        share: how many workers share this machine's cores.

    Raises:
        FileNotFoundError: the data folder is not here.
    """
    import dask
    from distributed import get_worker

    for variable, value in dask.config.get("distributed.nanny.pre-spawn-environ").items():
        if os.environ.get(variable) == str(value):
            del os.environ[variable]  # Dask's own: one thread, which a kernel would inherit
    worker = get_worker()
    with TemporaryDirectory(dir=worker.local_directory, ignore_cleanup_errors=True) as folder:
        path, out = Path(folder) / f"{name}.ipynb", Path(folder) / "out"
        path.write_bytes(source)
        out.mkdir()
        with environment(Plan(**plan), out, share), _stopped_when_cancelled(worker):
            result = execute_one(Task(path, parameters, plan["profile"], out))
        written = [file for file in out.rglob("*") if file.is_file()]
        return asdict(result), {f.relative_to(out).as_posix(): f.read_bytes() for f in written}


@contextmanager
def _stopped_when_cancelled(worker) -> Iterator[None]:
    """Meanwhile, end the kernel when the client wants the notebook no more; Dask itself cannot."""
    key, over, me = worker.get_current_task(), threading.Event(), psutil.Process()
    before = set(me.children())

    def watch() -> None:
        while not over.wait(LOOK_EVERY):
            state = worker.state.tasks.get(key)
            if state is None or state.state == "cancelled":
                for child in set(me.children()) - before:
                    child.kill()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
