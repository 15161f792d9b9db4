"""Worker processes that add trials to one study; other machines may do so at the same time."""

import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import torch

from cvlab import data as cvdata
from cvlab.bench import context
from cvlab.lessons.search.studies import StudyError, claim, me, new_study, requeue_dead
from cvlab.lessons.search.tune import Objective, finished, so_far
from cvlab.machine import hardware, usable_cores
from cvlab.profiles import profiles
from cvlab.show import progress

MAX_DEATHS = 5  # of workers, before it is no accident
LOOK_EVERY = 0.5  # seconds


@dataclass(frozen=True)
class Job:
    """What a worker must know; it reads the objective from the study."""

    study: str
    storage: str
    data: str
    until: float | None  # of time.time(); no trial is started after that
    threads: int


def add(
    study: str,
    storage: str | Path,
    *,
    workers: int = 1,
    trials: int | None = None,
    seconds: float | None = None,
    profile: str = "class",
    data: str = "auto",
) -> optuna.Study:
    """Add trials to a study with some worker processes; returns the study when they are done.

    A worker that dies, say for lack of memory, is replaced; its trial is failed and its
    parameters are queued again. Interrupted, it keeps the finished trials; call it again to go on.

    Args:
        study: its name; a new one is made.
        storage: a journal file, for workers of one machine, or a PostgreSQL URL, for many.
        workers: processes; each gets its share of the cores and draws of its own.
        trials: exactly so many, by all of them together.
        seconds: no trial is started after that.
        profile: of the notebook 04_optuna, whose budget of a trial a new study takes.

    Raises:
        StudyError: the storage cannot be used by several, the study was measured in another way,
            or workers keep dying.
    """
    if str(storage).startswith("sqlite") and workers > 1:
        raise StudyError(
            "SQLite locks its whole file for every write, so workers wait for each other and may "
            "fail. Name a journal file, such as runs/search.journal, or a PostgreSQL server."
        )
    opened = new_study(study, storage, seed=None)
    loaded = cvdata.load("cifar10", data)
    claim(opened, _objective(opened, loaded, profile).settings)
    requeue_dead(opened)
    threads = max(1, usable_cores() // workers)
    job = Job(study, str(storage), data, seconds and time.time() + seconds, threads)
    total, unit = (trials, "trial") if trials else (int(seconds), "s")
    with progress(total, f"{workers} workers", unit) as bar:
        _supervise(job, opened, _shares(trials, workers), bar)
    return opened


def _objective(study: optuna.Study, data: cvdata.ImageData, profile: str) -> Objective:
    """The study's own objective, or for a new study that of the notebook in `profile`."""
    known, device = study.user_attrs.get("objective"), hardware().device
    if known:
        settings = {name: value for name, value in known.items() if name != "data"}
        return Objective(data, **settings, device=device)
    names = ("search_images", "search_epochs", "val_images", "search_parts")
    budget = (profiles()["04_optuna"][profile][name] for name in names)
    return Objective(data, "better", *budget, device=device)


def _shares(trials: int | None, workers: int) -> list[int | None]:
    """How many trials each worker does; those without any are not started."""
    if trials is None:
        return [None] * workers
    return [n for n in (trials // workers + (i < trials % workers) for i in range(workers)) if n]


def _supervise(job: Job, study: optuna.Study, shares: list[int | None], bar) -> None:
    """Start the workers, show their progress, replace those that die."""
    before, began, deaths = len(finished(study)), time.perf_counter(), 0
    crew = {_start(job, share): share for share in shares}
    try:
        while crew:
            next(iter(crew)).join(LOOK_EVERY)
            gone = time.perf_counter() - began
            now = len(finished(study)) - before if shares[0] else int(gone)
            bar.set_postfix_str(so_far(study), refresh=False)
            bar.update(min(now, bar.total) - bar.n)
            for worker in [one for one in crew if not one.is_alive()]:
                share = crew.pop(worker)
                if worker.exitcode > 0:
                    raise StudyError("A worker has stopped; its message is above.")
                if worker.exitcode < 0:
                    deaths += 1
                    _tell_death(worker, study, deaths)
                    left = share and share - _done_by(worker, study)
                    if left != 0:
                        crew[_start(job, left)] = left
    finally:
        for worker in crew:
            worker.terminate()
            worker.join()
        requeue_dead(study)


def _start(job: Job, share: int | None) -> BaseProcess:
    process = context().Process(target=_work, args=(job, share), daemon=True)
    process.start()
    return process


def _done_by(worker: BaseProcess, study: optuna.Study) -> int:
    name = me(worker.pid)
    return sum(trial.user_attrs.get("process") == name for trial in finished(study))


def _tell_death(worker: BaseProcess, study: optuna.Study, deaths: int) -> None:
    """Queue a dead worker's trial again and say so, or give up."""
    if deaths > MAX_DEATHS:
        raise StudyError(
            f"{deaths} workers were killed, the last by signal {-worker.exitcode}; too little "
            "memory? Try fewer. The finished trials are kept."
        )
    again = requeue_dead(study)
    print(
        f"\nWorker {worker.pid} was killed by signal {-worker.exitcode}; {again} unfinished "
        "trial(s) queued again, a new worker takes over.",
        file=sys.stderr,
    )


def _work(job: Job, share: int | None) -> None:
    """What a worker process does: open the study, load the data, run its share of trials."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its workers
    torch.set_num_threads(job.threads)
    study = new_study(job.study, job.storage, seed=None)
    data = cvdata.load("cifar10", job.data)
    seconds = None if job.until is None else max(0.0, job.until - time.time())
    study.optimize(_objective(study, data, "class"), share, seconds)
