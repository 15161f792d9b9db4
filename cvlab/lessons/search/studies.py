"""Where Optuna's studies live: in memory, in a journal file, in PostgreSQL; and who works on them.

A study in a file or a server outlives its process: it is opened again by name, and any number of
processes add trials to it. A trial whose process died is found, failed and queued again.
"""

import os
import platform
import warnings
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

SAMPLERS = {"random": optuna.samplers.RandomSampler, "TPE": optuna.samplers.TPESampler}
PRUNERS = {
    "none": optuna.pruners.NopPruner,
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(1, 2),
    "median": optuna.pruners.MedianPruner,
}
HEARTBEAT = 30  # seconds between a database worker's signs of life


class StudyError(RuntimeError):
    """A study or its storage cannot be used; the message says why and what to do."""


def check_storage(where: str) -> None:
    """Is `where` a place that a study can live in: a file's path, or a URL of PostgreSQL or SQLite?

    Raises:
        ValueError: it is not; the message lists the choices.
    """
    scheme = str(where).partition("://")[0] if "://" in str(where) else ""
    known = scheme.partition("+")[0] in ("", "postgresql", "sqlite")
    if not isinstance(where, str | Path) or not str(where).strip() or not known:
        raise ValueError(
            "Name a journal file such as runs/search.journal, or a database such as "
            "postgresql://user:password@host/name."
        )


def open_storage(where: str | Path | None) -> BaseStorage | None:
    """Optuna's storage for `where`: None (memory), a journal file's path, or a database's URL.

    Raises:
        ValueError: see `check_storage`.
        StudyError: the database does not answer, or its driver is missing.
    """
    if where is None:
        return None
    check_storage(where)
    if "://" not in str(where):
        return _journal(Path(where))
    url = str(where).replace("postgresql://", "postgresql+psycopg://", 1)  # one driver everywhere
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            retry = optuna.storages.RetryHeartbeatStaleTrialCallback()
            return RDBStorage(
                url, heartbeat_interval=HEARTBEAT, heartbeat_stale_trial_callback=retry
            )
    except ImportError as error:
        raise StudyError(
            "PostgreSQL's driver is missing; install it: pip install 'psycopg[binary]'"
        ) from error
    except Exception as error:  # SQLAlchemy raises what the driver raises
        reason = str(error).strip().partition("\n")[0]
        raise StudyError(f"The database of this study does not answer: {reason}") from error


def _journal(path: Path) -> JournalStorage:
    """A journal, without the half line that a full disk or a killed process may have left.

    Optuna reads over a half line at the end, but the next entry would be glued to it, and then
    the whole file could not be read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileOpenLock(str(path))
    if path.exists():
        lock.acquire()
        try:
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(path, whole)
        finally:
            lock.release()
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (ValueError, KeyError) as error:
        raise StudyError(
            f"The file {path} is not a journal of Optuna's, or damaged: {error}. It was left as it "
            "is; name another file."
        ) from error


def new_study(
    name: str,
    storage: str | Path | None = None,
    *,
    sampler: str = "TPE",
    pruner: str = "halving",
    seed: int | None = 0,
    directions: tuple[str, ...] = ("maximize",),
) -> optuna.Study:
    """Make a study, or open the one of this name in `storage`, see `open_storage`.

    `sampler` and `pruner` are keys of `SAMPLERS` and `PRUNERS`; `directions` say "maximize" or
    "minimize" for each value of the objective. The sampler is seeded by `seed` and the number of
    trials: else a resumed search would draw its first ones again. None, for workers that run
    side by side, takes a fresh seed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if sampler not in SAMPLERS or pruner not in PRUNERS:
        raise ValueError(
            f"sampler={sampler!r}, pruner={pruner!r} were given; choose one of {list(SAMPLERS)} "
            f"and one of {list(PRUNERS)}."
        )
    study = optuna.create_study(
        study_name=name,
        storage=open_storage(storage),
        pruner=PRUNERS[pruner](),
        directions=directions,
        load_if_exists=True,
    )
    known = len(study.get_trials(deepcopy=False))
    study.sampler = SAMPLERS[sampler](seed=None if seed is None else seed + 1_000_003 * known)
    return study


def claim(study: optuna.Study, settings: dict[str, Any]) -> None:
    """Write into the study how its trials are measured; workers on other machines read it.

    Raises:
        StudyError: its trials were measured in another way.
    """
    known = study.user_attrs.get("objective")
    if known is None:
        study.set_user_attr("objective", settings)
    elif known != settings:
        names = [name for name in settings if known.get(name) != settings[name]]
        was = ", ".join(f"{name}={known.get(name)!r}" for name in names)
        now = ", ".join(f"{name}={settings[name]!r}" for name in names)
        raise StudyError(
            f"The trials of study {study.study_name!r} were measured with {was}; asked for {now}. "
            "Scores of the two cannot be compared: choose another storage or study name."
        )


def me(pid: int | None = None) -> str:
    """This process, or another one here, as trials name who works on them: `host:pid`."""
    return f"{platform.node()}:{pid or os.getpid()}"


def requeue_dead(study: optuna.Study) -> int:
    """Fail the running trials whose process on this machine is gone, queue their parameters again.

    Returns how many. Call it before this process runs trials of its own.
    """
    dead = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, _, pid = trial.user_attrs.get("process", ":").partition(":")
        here = host == platform.node()
        if not here or (int(pid) != os.getpid() and psutil.pid_exists(int(pid))):
            continue
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
        dead += 1
    return dead
