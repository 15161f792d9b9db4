"""Send notebooks to the workers of a Dask cluster; what they made comes back as it is made.

A free worker gets one notebook, and the client says which. Dask's own choice and retry would not
do: it queues several at one worker, counts that worker's death against each of them, so that a
notebook which kills its workers fails others that never ran; and it does not know who fits.
"""

import asyncio
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator
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
from cvlab.tools.executed import Executed
from cvlab.tools.runner import Crew, Plan, Task, environment, execute_one, tell

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
    with connected(scheduler) as client:
        cluster = Cluster(client, plan)
        if not cluster.workers() and cluster.problems:
            raise ClusterError(f"No worker of {scheduler} can be used, for the reasons above.")
        yield cluster.execute


@contextmanager
def connected(scheduler: str) -> Iterator:
    """Dask's client of a scheduler.

    Raises:
        ClusterError: Dask is not installed, or no scheduler answers.
    """
    try:
        from distributed import Client

        asyncio.run(_greet(scheduler))
        client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except ImportError as error:
        raise ClusterError(
            f"--scheduler {scheduler} was given, but Dask is not installed here: "
            "pip install 'cvlab[tools]'"
        ) from error
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"No Dask scheduler answers at {scheduler} ({str(error) or 'no word in time'}). Give "
            "the address that `dask scheduler` has printed, tcp://HOST:PORT, and see that it runs."
        ) from error
    with client:
        yield client


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
        self.client, self.plan = client, plan
        self.problems: dict[str, str] = {}  # worker's address -> why it does not fit, "" if it does
        self.waiting: deque[Task] = deque()
        self.sent = {}  # future -> (task, worker's address)
        self.losses = Counter()  # of workers, by notebook

    def execute(self, tasks: list[Task]) -> Iterator[Executed]:
        """Execute tasks on the workers that are there or come; results in order of arrival.

        A result is told when all that its notebook wrote lies in the task's `out`.

        Raises:
            ClusterLost: the scheduler is gone.
        """
        from distributed import as_completed

        self.waiting.extend(tasks)
        arrivals = as_completed(loop=self.client.loop, with_results=True, raise_errors=False)
        told_to_wait, start = False, f"dask worker {self.client.scheduler.address} --nthreads 1"
        while self.waiting or self.sent:
            workers = self.workers()
            free = [worker for worker, is_free in workers.items() if is_free]
            idle = not free and not self.sent
            if idle and not told_to_wait:
                print(f"Waiting for workers; start one: {start}", flush=True)
            told_to_wait = idle
            for worker in free[: len(self.waiting)]:
                arrivals.add(self._send(worker, workers))
            time.sleep(LOOK_EVERY)
            for result in self._results(dict(arrivals.next_batch(block=False)), workers):
                tell(result)
                yield result

    def workers(self) -> dict[str, bool]:
        """The workers that fit, address -> is it free; of a new one that does not, it says why."""
        try:
            threads, busy = self.client.nthreads(), self.client.processing()
            new = [address for address in threads if address not in self.problems]
            ask = partial(self.client.run, metadata.version, "cvlab", on_error="return")
            versions = ask(workers=new) if new else {}
        except (OSError, AttributeError) as error:  # Dask's closed client has no scheduler
            raise ClusterLost("the scheduler has gone") from error
        for address, version in versions.items():
            if isinstance(version, OSError):
                continue  # gone again
            problem = self.problems[address] = _problem(threads[address], version)
            if problem:
                print(f"Worker {address} is left out: {problem}.", file=sys.stderr)
        # one that has gone is forgotten: another may come to its address
        self.problems = {one: why for one, why in self.problems.items() if one in threads}
        taken = {worker for _, worker in self.sent.values()}
        fit = [address for address, problem in self.problems.items() if not problem]
        return {address: not busy.get(address) and address not in taken for address in fit}

    def _send(self, worker: str, workers: Collection[str]):
        """Submit the first that waits to this worker alone; returns its future."""
        task = self.waiting.popleft()
        name, host = task.path.stem, urlsplit(worker).hostname
        share = sum(urlsplit(other).hostname == host for other in workers)
        future = self.client.submit(
            lambda *given: import_module("cvlab.tools.cluster").work(*given),  # travels by value
            *(name, task.path.read_bytes(), asdict(self.plan), task.parameters, share),
            key=f"{name}-{uuid4().hex}",  # else two runs at once would share a result
            workers=[worker],
        )
        self.sent[future] = task, worker
        print(f"{name}: sent to {worker} ({task.profile}) ...", flush=True)
        return future

    def _results(self, arrived: dict, workers: Collection[str]) -> Iterator[Executed]:
        """How those went that ended; the notebook of a lost worker waits again, a few times."""
        for future, (task, worker) in list(self.sent.items()):
            name = task.path.stem
            if future in arrived and future.status == "finished":
                yield _keep(task, *arrived[future])
            elif future in arrived and future.status == "error":
                kind, error, _ = arrived[future]
                problem = f"{kind.__name__} on worker {worker}: {error}"
                yield Executed(name, "failed", error=problem)
            elif worker in workers and future.status not in ("cancelled", "lost"):
                continue  # it runs
            else:
                self.client.cancel(future)
                self.losses[name] += 1
                print(f"{name}: worker {worker} was lost", flush=True)
                if self.losses[name] < MAX_LOSSES:
                    self.waiting.appendleft(task)
                else:
                    problem = f"{MAX_LOSSES} workers were lost while they ran it, the last one "
                    problem += f"{worker}; have they too little memory?"
                    yield Executed(name, "failed", error=problem)
            del self.sent[future]
            future.release()  # else in its __del__, where Python loses a Ctrl-C


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


def _keep(task: Task, result: dict, files: dict[str, bytes]) -> Executed:
    """Store what a notebook wrote; the notebook last, because it says that all is there."""
    kept = Executed(**result)
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

    The scheduler, which need not have this package, reads what is sent: `plan` comes as a
    dictionary. Its data folder is one of this worker; `share` workers share this machine's cores.

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
            closing = worker.status.name in ("closing", "closed", "failed")  # waits for us, 30 s
            if closing or state is None or state.state == "cancelled":
                for child in set(me.children()) - before:
                    child.kill()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
