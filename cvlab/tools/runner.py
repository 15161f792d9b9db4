"""Run notebooks headless with papermill: checked parameters, a table at the end, resumable.

They run in processes of this machine or, sent by `cluster`, on a Dask cluster's workers. A run's
folder holds the executed notebooks, each its own record, their figures and `run.json`, the plan.
"""

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import distributions
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cvlab import sources
from cvlab.machine import hardware, usable_cores, versions
from cvlab.paths import as_json, data_folder, project_root, store_text
from cvlab.profiles import ParameterError, check_parameters, profiles
from cvlab.tools import executed
from cvlab.tools.executed import NOT_RUN, STATES, Executed

STORED = "cvlab:"  # in papermill's eyes a kind of address, for which we do the writing
CELL_SECONDS = {"smoke": 600, "class": 3600, "full": None}  # a hung cell must not cost a night


@dataclass
class Plan:
    """What a run was asked to do; stored as `run.json`."""

    notebooks: list[str]  # names without .ipynb
    profile: str = "smoke"
    data: str = "auto"
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One notebook to execute: its file, its checked parameters, the folder for what it gives."""

    path: Path
    parameters: dict[str, Any]
    profile: str
    out: Path


Crew = Callable[[list[Task]], Iterator[Executed]]  # whatever executes tasks and tells how they went


def notebook_paths() -> dict[str, Path]:
    """Name -> path of every notebook of the workbook, in order."""
    return {path.stem: path for path in sorted((project_root() / "notebooks").glob("*.ipynb"))}


def choose(asked: list[str]) -> list[str]:
    """Notebook names for what a user typed: a name, a number ("01") or a path; all for nothing.

    Raises:
        ParameterError: nothing fits; the choices are listed.
    """
    known = list(notebook_paths())
    if not asked:
        return known
    chosen = []
    for word in asked:
        stem = Path(word).stem
        fits = [name for name in known if stem == name or stem == name.split("_")[0]]
        if not fits:
            raise ParameterError(f"There is no notebook {word!r}; choose from {', '.join(known)}.")
        chosen += fits
    return list(dict.fromkeys(chosen))


def check(plan: Plan) -> dict[str, dict[str, Any]]:
    """Check a plan before anything runs and say which parameters each notebook gets.

    A parameter that some of the notebooks have goes to these; one that none has is an error.

    Raises:
        ParameterError: an unknown name, a wrong value; the message lists what is possible.
    """
    import papermill

    paths, budgets = notebook_paths(), profiles()
    known = {name: papermill.inspect_notebook(str(paths[name])) for name in plan.notebooks}
    choices = sorted(set().union(*known.values()))
    for key in plan.parameters:
        if key not in choices:
            raise ParameterError(
                f"No chosen notebook has a parameter {key!r}; they have {', '.join(choices)}."
            )
    given = {}
    for name in plan.notebooks:
        if name not in budgets:
            raise ParameterError(f"{name} has no budgets in notebooks/profiles.toml.")
        given[name] = {key: plan.parameters[key] for key in plan.parameters if key in known[name]}
        lower = {key.lower(): value for key, value in given[name].items()}
        check_parameters(name, {"profile": plan.profile, "data": plan.data} | lower)
        for key, value in given[name].items():
            _look_up(key, value, budgets[name].get("limits", {}).get(key.lower()))
    return given


def _look_up(key: str, value: Any, limit: Any) -> None:
    """Is it among the choices that only a part of the package knows?

    `limit`, of profiles.toml, is then a text: "networks" of the zoo, "storage" of a study, or the
    name of a dataset for a list of its classes.
    """
    if not isinstance(limit, str) or value is None:
        return
    try:
        if limit == "networks":
            from cvlab.lessons.pretrained import zoo  # torchvision and timm take seconds to import

            zoo.check_names(value)
        elif limit == "storage":
            from cvlab.lessons.search import studies  # and Optuna one

            studies.check_storage(value)
        else:
            sources.check_classes(value, sources.class_names(limit), sources.TITLES[limit])
    except ValueError as error:
        raise ParameterError(f"{key}={value!r} was given. {error}") from error


def execute(
    plan: Plan,
    out: Path,
    *,
    jobs: int = 1,
    resume: bool = False,
    crew: AbstractContextManager[Crew] | None = None,
) -> list[Executed]:
    """Execute the plan's notebooks into the folder `out`; on resume, what has passed there is kept.

    A failing notebook does not stop the others. Interrupted by Ctrl-C, it returns the results
    so far with the rest as "not run".

    Args:
        jobs: with more than 1, so many notebooks run side by side, each in a process of its own;
            their timings then disturb each other.
        crew: who runs the notebooks, if not processes of this machine; see `cluster.crew`.

    Raises:
        ParameterError: the plan is wrong; nothing has run.
        FileNotFoundError: the data folder does not exist; nothing has run.
    """
    given, paths = check(plan), notebook_paths()
    with crew or _local_crew(plan, out, jobs) as run_all:
        results = _begin(plan, out, resume)
        todo = [name for name, result in results.items() if result.status != "passed"]
        tasks = [Task(paths[name], given[name], plan.profile, out) for name in todo]
        for task in tasks:
            forget(task)  # else, interrupted, what an earlier plan has left would count
        try:
            for result in run_all(tasks if jobs == 1 else tasks[::-1]):  # the last are the longest
                results[result.name] = result
        except (KeyboardInterrupt, BrokenExecutor) as error:
            why = str(error) or "interrupted"
            print(f"\nStopped: {why}. What has finished is kept; use --resume.")
            for name in (name for name in todo if results[name].status == NOT_RUN):
                results[name] = executed.read(out / f"{name}.ipynb")  # finished, but not yet told
    return list(results.values())


def _begin(plan: Plan, out: Path, resume: bool) -> dict[str, Executed]:
    """Store the plan in `out`, and where and when it began; every notebook's result so far."""
    out.mkdir(parents=True, exist_ok=True)
    machine = hardware()
    about = {
        "cpu": machine.name,
        "memory_gb": round(machine.memory_gb, 1),
        "gpu": machine.gpu,
        "versions": versions(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    stored = asdict(plan) | {"about": about, "packages": installed()}
    store_text(as_json(stored), out / "run.json")
    results = {name: Executed(name) for name in plan.notebooks}
    for name in plan.notebooks if resume else ():
        results[name] = executed.read(out / f"{name}.ipynb")
        if results[name].status == "passed":
            print(f"{name}: finished earlier, kept")
    return results


def read_plan(out: Path) -> Plan:
    """The plan in a run's folder; what else is in `run.json` is for the report."""
    content = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return Plan(**{one.name: content[one.name] for one in fields(Plan) if one.name in content})


def installed() -> dict[str, str]:
    """Name -> version of every package here, and of Python, for whoever asks what changed."""
    found = {d.name: d.version for d in distributions()}
    return {"python": platform.python_version()} | dict(sorted(found.items()))


@contextmanager
def _local_crew(plan: Plan, out: Path, jobs: int) -> Iterator[Crew]:
    with environment(plan, out, jobs):
        yield partial(_each, jobs=jobs)


def _each(tasks: list[Task], jobs: int) -> Iterator[Executed]:
    slots = [i % jobs for i in range(len(tasks))]
    if jobs == 1 or not tasks:
        yield from map(execute_one, tasks, slots)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(execute_one, tasks, slots)


@contextmanager
def environment(plan: Plan, out: Path, share: int) -> Iterator[None]:
    """Meanwhile this process, and so its kernels, have the plan in their environment.

    Profile and data travel like this, not as injected parameters: an executed notebook then has
    the same cells as its source.

    Args:
        out: the folder that notebooks put their figures in.
        share: how many notebooks share this machine's cores. Two processes that each want all
            cores slow each other down many times over.

    Raises:
        FileNotFoundError: the data folder does not exist.
    """
    values = {"CVLAB_PROFILE": plan.profile, "CVLAB_OUT": str(out.resolve())}
    if share > 1:
        values["OMP_NUM_THREADS"] = str(max(1, usable_cores() // share))
    if plan.data != "auto":
        named = plan.data == "synthetic"
        values["CVLAB_DATA"] = plan.data if named else str(data_folder(plan.data))
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})


def execute_one(task: Task, slot: int = 0) -> Executed:
    """Execute into `<name>.running.ipynb`, renamed to `<name>.ipynb` or `<name>.failed.ipynb`.

    So `<name>.ipynb` is there exactly if the notebook has passed: papermill's own marks call an
    interrupted notebook complete. `slot` is the line of its progress bar.
    """
    name, began, error = task.path.stem, time.perf_counter(), ""
    print(f"{name}: running ({task.profile}) ...", flush=True)
    target, failed, running = forget(task)
    try:
        _papermill(task, running, slot)
    except Exception as problem:  # a cell's error, or a kernel that died: papermill has many
        kind = getattr(problem, "ename", type(problem).__name__)
        error, target = f"{kind}: {getattr(problem, 'evalue', problem)}", failed
    if running.exists():
        running.replace(target)
    result = executed.read(target)
    if error:  # a kernel that died may have left no file
        result.status, result.error = "failed", error
    result.seconds = time.perf_counter() - began
    result.content = None  # a result travels between processes; the file stays
    tell(result)
    return result


def forget(task: Task) -> list[Path]:
    """Remove what an earlier run left; returns where a passed, failed, running one is to lie."""
    paths = [task.out / f"{task.path.stem}{ending}.ipynb" for ending in STATES]
    for path in paths:
        path.unlink(missing_ok=True)
    return paths


def tell(result: Executed) -> None:
    """Print how a notebook went, in one line."""
    how = f"{result.status}, {result.seconds or 0:.0f} s"
    print(f"{result.name}: {how}, {result.held} of {len(result.claims)} claims hold", flush=True)


class _Stored:
    """How papermill is to write: its own way leaves an empty file where a letter cannot be."""

    @staticmethod
    def write(text: str, path: str) -> None:
        store_text(text, Path(path.removeprefix(STORED)))

    @staticmethod
    def pretty_path(path: str) -> str:
        return path.removeprefix(STORED)


def _papermill(task: Task, target: Path, slot: int) -> None:
    import papermill
    from papermill.iorw import papermill_io

    papermill_io.register(STORED, _Stored)
    logging.getLogger("papermill").setLevel(logging.ERROR)  # the table says it better
    bar = {"desc": f"  {task.path.stem}", "position": slot, "leave": False}
    folder = project_root() / "notebooks"  # a worker with an installed cvlab has no such folder
    papermill.execute_notebook(
        str(task.path),
        STORED + str(target.absolute()),  # papermill changes the folder before it writes
        parameters=task.parameters,
        progress_bar=bar if sys.stderr.isatty() else False,
        cwd=str(folder if folder.is_dir() else project_root()),
        autosave_cell_every=5,
        start_timeout=180,
        execution_timeout=CELL_SECONDS[task.profile],
        extra_arguments=["--log-level=ERROR"],  # of the kernel, whose warnings help nobody
    )


def table(results: list[Executed]) -> str:
    """The results as aligned text, one line a notebook."""
    head = f"{'notebook':<20} {'status':<8} {'seconds':>8} {'claims':>7}  error"
    lines = [head, "-" * len(head)]
    for r in results:
        claims, seconds = f"{r.held}/{len(r.claims)}", r.seconds or 0
        error = r.error if len(r.error) < 160 else r.error[:157] + "..."
        line = f"{r.name:<20} {r.status:<8} {seconds:>8.1f} {claims:>7}  {error}"
        lines.append(line.replace("\n", " "))
    return "\n".join(lines)
