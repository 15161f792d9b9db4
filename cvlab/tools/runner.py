"""Run notebooks headless with papermill: checked parameters, a table at the end, resumable.

They run in processes of this machine or, sent by `cvlab.cluster`, on a Dask cluster's workers.

An executed notebook is its own record, so a run's folder holds everything: the notebooks, their
figures and `run.json`, which says what was asked for.
"""

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nbformat

from cvlab import sources
from cvlab.machine import hardware, versions
from cvlab.paths import as_json, data_folder, project_root, store_text
from cvlab.profiles import ParameterError, check_parameters, profiles
from cvlab.records import STAND_IN_LABEL, stored_in

CELL_SECONDS = {"smoke": 600, "class": 3600, "full": None}  # a hung cell must not cost a night


@dataclass
class Plan:
    """What a run was asked to do; stored as `run.json`."""

    notebooks: list[str]  # names without .ipynb
    profile: str = "smoke"
    data: str = "auto"
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """How one notebook went."""

    notebook: str
    status: str  # "passed", "failed" or "not run"
    seconds: float = 0.0
    claims_held: int = 0
    claims: int = 0
    error: str = ""


@dataclass(frozen=True)
class Task:
    """One notebook to execute: its file, its checked parameters, the folder for what it gives."""

    path: Path
    parameters: dict[str, Any]
    profile: str
    out: Path


Crew = Callable[[list[Task]], Iterator[Result]]  # whatever executes tasks and tells how they went


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


def parameters_of(path: Path) -> list[str]:
    """Names assigned in a notebook's `parameters` cell."""
    import papermill

    return list(papermill.inspect_notebook(str(path)))


def check(plan: Plan) -> dict[str, dict[str, Any]]:
    """Check a plan before anything runs and say which parameters each notebook gets.

    A parameter that some of the notebooks have goes to these; one that none has is an error.

    Raises:
        ParameterError: an unknown name, a wrong value; the message lists what is possible.
    """
    paths, given = notebook_paths(), {name: {} for name in plan.notebooks}
    known = {name: parameters_of(paths[name]) for name in plan.notebooks}
    for key, value in plan.parameters.items():
        takers = [name for name in plan.notebooks if key in known[name]]
        if not takers:
            choices = sorted(set().union(*known.values()))
            raise ParameterError(
                f"No chosen notebook has a parameter {key!r}; they have {', '.join(choices)}."
            )
        for name in takers:
            given[name][key] = value
    for name, values in given.items():
        if name not in profiles():
            raise ParameterError(f"{name} has no budgets in notebooks/profiles.toml.")
        everything = {"profile": plan.profile, "data": plan.data}
        everything |= {key.lower(): value for key, value in values.items()}
        check_parameters(name, everything)
        for key, value in values.items():
            _look_up(key, value, profiles()[name]["limits"][key.lower()])
    return given


def _look_up(key: str, value: Any, limit: Any) -> None:
    """Is it among the choices that only a part of the package knows, before anything runs?

    `limit`, of profiles.toml, is then a text: "networks" of the zoo, "storage" of a study, or the
    name of a dataset for a list of its classes.
    """
    if not isinstance(limit, str) or value is None:
        return
    try:
        if limit == "networks":
            from cvlab import zoo  # torchvision and timm take seconds to import

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
) -> list[Result]:
    """Execute the plan's notebooks into `out`, those already finished there left out on resume.

    A failing notebook does not stop the others. Interrupted by Ctrl-C, it returns the results
    so far with the rest as "not run".

    Args:
        plan: what to run, and with which parameters.
        out: the folder for executed notebooks, figures and `run.json`.
        jobs: with more than 1, so many notebooks run side by side, each in a process of its own;
            their timings then disturb each other.
        resume: keep what has passed in `out`.
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
        try:
            for result in run_all(tasks):
                results[result.notebook] = result
        except (KeyboardInterrupt, BrokenExecutor) as error:
            why = str(error) or "interrupted"
            print(f"\nStopped: {why}. What has finished is kept; use --resume.")
            for name in (name for name in todo if results[name].status == "not run"):
                results[name] = read_result(out / f"{name}.ipynb")  # finished, but not yet told
    return list(results.values())


def _begin(plan: Plan, out: Path, resume: bool) -> dict[str, Result]:
    """Store the plan in `out`; every notebook's result so far."""
    out.mkdir(parents=True, exist_ok=True)
    store_text(as_json(asdict(plan) | {"about": _about()}), out / "run.json")
    earlier = {name: read_result(out / f"{name}.ipynb") for name in plan.notebooks if resume}
    results = {name: earlier.get(name, Result(name, "not run")) for name in plan.notebooks}
    for name in (name for name in results if results[name].status == "passed"):
        print(f"{name}: finished earlier, kept")
    return results


def _about() -> dict[str, Any]:
    """Where and when a run started, for its report."""
    machine = hardware()
    return {
        "cpu": machine.cpu,
        "cores": machine.cores,
        "memory_gb": round(machine.memory_gb, 1),
        "gpu": machine.gpu,
        "versions": versions(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read_plan(out: Path) -> Plan:
    """The plan in a run's folder; what else is in `run.json` is for the report."""
    content = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return Plan(**{key: value for key, value in content.items() if key != "about"})


@contextmanager
def _local_crew(plan: Plan, out: Path, jobs: int) -> Iterator[Crew]:
    with environment(plan, out, jobs):
        yield partial(_each, jobs=jobs)


def _each(tasks: list[Task], jobs: int) -> Iterator[Result]:
    slots = [i % jobs for i in range(len(tasks))]
    if jobs == 1 or not tasks:
        yield from map(execute_one, tasks, slots)
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        yield from pool.map(execute_one, tasks, slots)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def environment(plan: Plan, out: Path, share: int) -> Iterator[None]:
    """Meanwhile this process, and so its kernels, have the plan in their environment.

    Profile and data travel like this, not as injected parameters: an executed notebook then has
    the same cells as its source.

    Args:
        plan: whose profile and data it is.
        out: the folder that notebooks put their figures in.
        share: how many notebooks share this machine's cores. Two processes that each want all
            cores slow each other down many times over.

    Raises:
        FileNotFoundError: the data folder does not exist.
    """
    values = {"CVLAB_PROFILE": plan.profile, "CVLAB_OUT": str(out.resolve())}
    if share > 1:
        values["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // share))
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


def execute_one(task: Task, slot: int = 0) -> Result:
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
    result = read_result(target)
    if error:
        result.status, result.error = "failed", error
    result.notebook, result.seconds = name, time.perf_counter() - began
    tell(result)
    return result


def forget(task: Task) -> list[Path]:
    """Remove what an earlier run left; returns where a passed, failed, running one is to lie."""
    kinds = ("", ".failed", ".running")
    paths = [task.out / f"{task.path.stem}{kind}.ipynb" for kind in kinds]
    for path in paths:
        path.unlink(missing_ok=True)
    return paths


def tell(result: Result) -> None:
    """Print how a notebook went, in one line."""
    claims = f"{result.claims_held} of {result.claims} claims hold"
    print(f"{result.notebook}: {result.status}, {result.seconds:.0f} s, {claims}", flush=True)


def _papermill(task: Task, target: Path, slot: int) -> None:
    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)  # the table says it better
    bar = {"desc": f"  {task.path.stem}", "position": slot, "leave": False}
    folder = project_root() / "notebooks"  # a worker with an installed cvlab has no such folder
    papermill.execute_notebook(
        str(task.path),
        str(target),
        parameters=task.parameters,
        progress_bar=bar if sys.stderr.isatty() else False,
        cwd=str(folder if folder.is_dir() else project_root()),
        autosave_cell_every=5,
        start_timeout=180,
        execution_timeout=CELL_SECONDS[task.profile],
        extra_arguments=["--log-level=ERROR"],  # of the kernel, whose warnings help nobody
    )


def read_result(path: Path) -> Result:
    """The result that an executed notebook holds; "not run" for none or a damaged one."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception:  # absent, cut short, or no notebook: in each case it has to run
        return Result(path.stem, "not run")
    claims = [content["holds"] for content in stored_in(notebook) if "claim" in content]
    seconds = notebook.metadata.get("papermill", {}).get("duration") or 0.0
    return Result(path.stem, "passed", seconds, sum(claims), len(claims))


def table(results: list[Result]) -> str:
    """The results as aligned text, one line a notebook."""
    head = f"{'notebook':<20} {'status':<8} {'seconds':>8} {'claims':>7}  error"
    lines = [head, "-" * len(head)]
    for r in results:
        claims = f"{r.claims_held}/{r.claims}"
        error = r.error if len(r.error) < 160 else r.error[:157] + "..."
        lines.append(
            f"{r.notebook:<20} {r.status:<8} {r.seconds:>8.1f} {claims:>7}  "
            + error.replace("\n", " ")
        )
    return "\n".join(lines)


def publish(out: Path) -> list[str]:
    """Copy a class run's notebooks to `notebooks/`, its figures to `figures/`; returns names.

    Of a full run the records alone are kept, as `data/results/<notebook>_full.json`.

    Raises:
        ParameterError: it is a smoke run, a class run with extra parameters, did not pass, or the
            data was the stand-in; nothing is copied then.
    """
    plan = read_plan(out)
    if plan.profile == "smoke" or (plan.profile == "class" and plan.parameters):
        raise ParameterError(
            "Only a run with --profile class and no -p, or a full one, is published."
        )
    notebooks = {}
    for name in plan.notebooks:
        if read_result(out / f"{name}.ipynb").status != "passed":
            raise ParameterError(f"{name} did not pass in {out}; nothing was published.")
        notebooks[name] = nbformat.read(out / f"{name}.ipynb", as_version=4)
        if any(record.get("source") == STAND_IN_LABEL for record in stored_in(notebooks[name])):
            raise ParameterError(f"{name} ran on the stand-in, which is never published.")
    for name, notebook in notebooks.items():
        if plan.profile == "full":
            _store_records(name, plan, notebook)
        else:
            _copy_pages(name, out, notebook)
    return list(notebooks)


def _copy_pages(name: str, out: Path, notebook: nbformat.NotebookNode) -> None:
    for metadata in (notebook.metadata, *(cell.metadata for cell in notebook.cells)):
        metadata.pop("papermill", None)
        metadata.pop("execution", None)
    nbformat.write(notebook, notebook_paths()[name])
    for figure in sorted((out / "figures").glob(f"{name[:2]}_*.png")):
        shutil.copy(figure, project_root() / "figures" / figure.name)


def _store_records(name: str, plan: Plan, notebook: nbformat.NotebookNode) -> None:
    given = {k: v for k, v in plan.parameters.items() if k != "STORAGE"}  # may hold a password
    content = {"notebook": name, "parameters": given, "records": stored_in(notebook)}
    store_text(as_json(content), project_root() / "data" / "results" / f"{name}_full.json")
