"""Where things live. Everything else asks here, so that no other module guesses."""

import json
import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def project_root() -> Path:
    """The clone that this package belongs to, or the current folder where there is none (Colab)."""
    is_clone = (PACKAGE.parent / "notebooks" / "profiles.toml").is_file()
    return PACKAGE.parent if is_clone else Path.cwd()


def carried(file: str) -> Path:
    """A file of the clone, or where there is no clone the copy of it that the wheel carries."""
    in_clone = PACKAGE.parent / file
    return in_clone if in_clone.is_file() else PACKAGE / in_clone.name


def wants_stand_in(where: str | os.PathLike) -> bool:
    """Was the synthetic stand-in asked for, by `where` or, for "auto", by `$CVLAB_DATA`?"""
    return "synthetic" in (where, os.environ.get("CVLAB_DATA") if where == "auto" else None)


def data_folder(where: str | os.PathLike = "auto") -> Path:
    """The folder to look for data in: `where`, else `$CVLAB_DATA`, else `data/` of the project.

    A relative path is tried from the current folder first and then from the project's root,
    because Jupyter starts a kernel in the notebook's folder and a shell stands in the root.

    Raises:
        FileNotFoundError: a folder was named and is not there.
    """
    named = os.environ.get("CVLAB_DATA") if where == "auto" else where
    if not named:
        return project_root() / "data"
    given = Path(named).expanduser()
    candidates = [given] if given.is_absolute() else [Path.cwd() / given, project_root() / given]
    for folder in candidates:
        if folder.is_dir():
            return folder.resolve()
    tried = " nor ".join(str(folder) for folder in candidates)
    raise FileNotFoundError(
        f"The data folder {named!r} was given, but there is no folder {tried}. "
        "Name an existing one in CVLAB_DATA or DATA, or leave both unset to use data/."
    )


def output_folder() -> Path:
    """Where a notebook puts its figures: `$CVLAB_OUT`, else `runs/interactive` of the project."""
    return Path(os.environ.get("CVLAB_OUT") or project_root() / "runs" / "interactive")


def replace_atomically(write, target: Path) -> Path:
    """Call `write(path)` on a temporary neighbour of `target`, then rename it to `target`.

    A reader sees the old file or the whole new one, never half of it; when `write` fails
    (a full disk, a stopped kernel) the temporary file is removed and `target` is untouched.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def store_text(text: str, target: Path) -> Path:
    """Write a text file in UTF-8 by `replace_atomically`.

    In a C locale a path can hold bytes that are no letters: they are written as JSON writes them.
    """
    content = text.encode("utf-8", errors="backslashreplace")
    return replace_atomically(lambda path: path.write_bytes(content), target)


def as_json(content: dict) -> str:
    """The form in which results are stored: a line a value, letters as they are."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
