"""Publish a run: its executed notebooks or records take the place of those in the repository."""

import shutil
from pathlib import Path

import nbformat

from cvlab.paths import as_json, project_root, store_text
from cvlab.profiles import ParameterError
from cvlab.records import STAND_IN_LABEL
from cvlab.tools import executed
from cvlab.tools.runner import Plan, notebook_paths, read_plan


def publish(out: Path) -> list[str]:
    """Copy a class run's notebooks to `notebooks/`, its figures to `figures/`; returns names.

    Of a full run the records alone are kept, as `data/results/<notebook>_full.json`.

    Raises:
        ParameterError: it is a smoke run, a class run with extra parameters, did not pass, or the
            data was the stand-in; nothing is copied then.
    """
    plan, contents = read_plan(out), {}
    if plan.profile == "smoke" or (plan.profile == "class" and plan.parameters):
        raise ParameterError(
            "Only a run with --profile class and no -p, or a full one, is published."
        )
    for name in plan.notebooks:
        found = executed.read(out / f"{name}.ipynb")
        if found.status != "passed":
            raise ParameterError(f"{name} did not pass in {out}; nothing was published.")
        contents[name] = found.content
        stored = executed.stored_in(found.content)
        if any(entry.get("source") == STAND_IN_LABEL for entry in stored):
            raise ParameterError(f"{name} ran on the stand-in, which is never published.")
    for name, content in contents.items():
        if plan.profile == "full":
            _store_records(name, plan, content)
        else:
            _copy_page(name, out, content)
    return list(contents)


def _copy_page(name: str, out: Path, notebook: nbformat.NotebookNode) -> None:
    for metadata in (notebook.metadata, *(cell.metadata for cell in notebook.cells)):
        metadata.pop("papermill", None)
        metadata.pop("execution", None)
    text = nbformat.writes(notebook).replace(f"{project_root().as_posix()}/", "")  # of this machine
    store_text(text.rstrip("\n") + "\n", notebook_paths()[name])
    for figure in sorted((out / "figures").glob(f"{name[:2]}_*.png")):
        shutil.copy(figure, project_root() / "figures" / figure.name)


def _store_records(name: str, plan: Plan, notebook: nbformat.NotebookNode) -> None:
    given = {k: v for k, v in plan.parameters.items() if k != "STORAGE"}  # may hold a password
    content = {"notebook": name, "parameters": given, "records": executed.stored_in(notebook)}
    store_text(as_json(content), project_root() / "data" / "results" / f"{name}_full.json")
