"""Colab's environment rebuilt here, and the notebooks' first cell proven in it: `make colab`.

No part of the tests: it takes some ten minutes and 8 GB. It installs Colab's versions into a fresh
environment, runs the cell of `00_environment` twice in an IPython that takes itself for Colab's,
and compares all installed files. Then whole notebooks run there, in the smoke profile.

The cell installs from this checkout in place of GitHub, and git clones what is committed: changes
that are not are left out.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import nbformat
from packaging.version import Version

from cvlab.tools import executed
from cvlab.tools.address import CELL

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
FAKE = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n"
SNAPSHOT = """
import importlib.metadata as m, json, os
def files(dist):
    for file in dist.files or ():
        path = dist.locate_file(file)
        if file.suffix != ".pyc":
            found = os.stat(path) if os.path.exists(path) else None
            yield str(file), found and (found.st_size, found.st_mtime_ns)
print(json.dumps({
    d.name.lower().replace("_", "-"): [d.version, sorted(files(d))] for d in m.distributions()
}))
"""


class Failed(SystemExit):
    """A promise that the cell breaks; the message says which and how."""


# --- what Colab has ------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    """Name -> version of Colab's packages, from both files that record them."""
    lines = (TESTS / "colab_runtime.txt").read_text(encoding="utf-8").splitlines()
    around = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = tomllib.loads((TESTS / "colab_versions.toml").read_text(encoding="utf-8"))
    return around | versions["present"]


def nearest(wanted: str, available: Sequence[str]) -> str:
    """The wanted version, else the last before it, else the first after it."""
    known = sorted(map(Version, available))
    if not known:
        raise Failed("the index has no version of it at all")
    before = [version for version in known if version <= Version(wanted)]
    return str(before[-1] if before else known[0])


def build(python: str, folder: Path) -> Path:
    """A fresh environment with Colab's packages; returns its Python."""
    run([python, "-m", "venv", "--clear", str(folder / "env")])
    inside, wanted = folder / "env" / "bin" / "python", pins()
    run([inside, "-m", "pip", "install", "-qq", f"pip=={wanted.pop('pip')}"])
    install = [inside, "-m", "pip", "install", "-qq"]
    install += ["--only-binary", ":all:"]  # to compile pandas takes longer than all the rest
    while True:
        done = run([*install, *(f"{name}=={wanted[name]}" for name in wanted)], check=False)
        lacking = re.search(r"requirement ([\w.-]+)==\S+ \(from versions: (.*)\)", done.stderr)
        if not lacking:
            break
        name, known = lacking[1], [] if lacking[2] == "none" else lacking[2].split(", ")
        taken = nearest(wanted[name], known)
        print(f"  {name} {wanted[name]} is not to be had here, {taken} taken instead", flush=True)
        wanted[name] = taken
    expect(done.returncode == 0, done.stderr[-3000:])
    run([inside, "-m", "pip", "uninstall", "-qq", "-y", "jedi"])  # Colab's IPython has none
    return inside


def colab_like(named: str | None) -> str:
    """The Python to build with: the one named, else a 3.13 as on Colab, else this one."""
    for candidate in [named] if named else ["python3.13", sys.executable]:
        command = [candidate, "-c", "import sys; print(sys.version.split()[0])"]
        try:
            version = run(command).stdout.strip()
        except (OSError, Failed):
            continue
        print(
            f"Python {version}, {candidate}" + ("" if "3.13." in version else " (Colab has 3.13)")
        )
        return candidate
    raise Failed(f"{named!r} was given as Python, and does not run. Name one with --python.")


# --- the cell ------------------------------------------------------------------------------------


def from_checkout(text: str) -> str:
    """A notebook, or its first code cell, that installs from this checkout in place of GitHub."""
    changed, count = CELL.subn(f"cvlab @ git+file://{ROOT}", text)
    if count != 1:
        raise Failed(f"{count} bootstrap lines found in a notebook, expected one: {text[:200]}")
    return changed


def committed(name: str) -> str:
    """A notebook as it is in HEAD, for Colab opens what is on GitHub."""
    return run(["git", "-C", ROOT, "show", f"HEAD:notebooks/{name}.ipynb"]).stdout


def bootstrap() -> str:
    """The bootstrap cell's text."""
    cells = nbformat.reads(committed("00_environment"), as_version=4).cells
    return from_checkout(next(cell.source for cell in cells if cell.cell_type == "code"))


def changes(before: dict, after: dict) -> list[str]:
    """What became of the packages that were there before; added ones are none of these."""
    lines = []
    for name, (version, files) in before.items():
        now, files_now = after.get(name, ("removed", []))
        if now != version:
            lines.append(f"{name} {version} became {now}")
        elif files_now != files:
            changed = {file for file, _ in files} ^ {file for file, _ in files_now}
            changed |= {old[0] for old, new in zip(files, files_now, strict=False) if old != new}
            lines.append(f"{name} {version}: {len(changed)} files differ, as {min(changed)}")
    return lines


def prove_cell(python: Path, folder: Path) -> None:
    """Run the cell twice and compare; raises `Failed` for what changed that must not."""
    (folder / "content" / "cell.ipy").write_text(bootstrap(), encoding="utf-8")
    first, broken = snapshot(python), unmet(python)
    seconds, states = [], [first]
    for _ in range(2):
        began = time.perf_counter()
        said = run([python, "-m", "IPython", "--no-term-title", "cell.ipy"], folder)
        expect("ERROR" not in said.stdout + said.stderr, f"pip said {said.stdout}{said.stderr}")
        seconds.append(time.perf_counter() - began)
        states.append(snapshot(python))
    added = sorted(set(states[1]) - set(first))
    names = ", ".join(f"{name} {states[1][name][0]}" for name in added)
    print(f"  first run: {seconds[0]:.1f} s, added {len(added)}: {names}")
    print(f"  second run: {seconds[1]:.1f} s")
    expect("cvlab" in added, "the cell did not install cvlab")
    expect(not changes(first, states[1]), f"the cell changed {changes(first, states[1])}")
    print(f"  none of the {len(first)} packages that were there changed, in no file")
    again = changes(states[1], states[2]) + sorted(set(states[2]) - set(states[1]))
    expect(not again, f"its second run changed {again}")
    print("  the second run changed nothing")
    expect(unmet(python) <= broken, f"requirements broken: {sorted(unmet(python) - broken)}")
    print(f"  pip check: nothing broken that was not before ({len(broken)})")


def snapshot(python: Path) -> dict[str, list]:
    """Name -> (version, files with size and time) of everything installed."""
    return json.loads(run([python, "-c", SNAPSHOT]).stdout)


def unmet(python: Path) -> set[str]:
    """What `pip check` complains of."""
    done = run([python, "-m", "pip", "check"], check=False)
    return set() if done.returncode == 0 else set(done.stdout.splitlines())


# --- the notebooks -------------------------------------------------------------------------------


def prove_notebook(python: Path, folder: Path, name: str) -> None:
    """Run one notebook as Colab would: alone in a folder, first cell and all.

    Claims on times fail where something else is busy, so these get a second chance.
    """
    source, target = (folder / "content" / f"{name}{kind}.ipynb" for kind in ("", ".done"))
    source.write_text(from_checkout(committed(name)), encoding="utf-8")
    # by nbconvert, which Colab has; papermill it has not
    options = ["-m", "nbconvert", "--execute", "--to", "notebook", "--output"]
    command = [python, *options, target, source]
    for last in (False, True):
        began = time.perf_counter()
        done = run(command, folder, check=False)
        said = done.stderr.strip().splitlines()[-1:]
        if last or "ClaimsFailed:" not in "".join(said):
            break
        print(f"  {name}, once more: {said[0]}")
    expect(done.returncode == 0, f"{name}: {done.stderr.strip()[-3000:]}")
    result = executed.read(target)
    told = f"{name}: {result.held} of {len(result.claims)} claims hold"
    expect(result.claims and result.held == len(result.claims), told)
    print(f"  {told}, {time.perf_counter() - began:.0f} s")


# --- all of it -----------------------------------------------------------------------------------


def run(command: Sequence, folder: Path | None = None, check: bool = True):
    """A command's result; with a folder of ours it runs as on Colab, in `content`.

    Raises:
        Failed: it ended with an error, and `check`.
    """
    values = {k: v for k, v in os.environ.items() if not k.startswith(("CVLAB_", "PYTHON"))}
    values["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    if folder:
        values |= {"IPYTHONDIR": str(folder / "ipython"), "CVLAB_PROFILE": "smoke"}
        values["PATH"] = f"{folder / 'env' / 'bin'}{os.pathsep}{values['PATH']}"
    where = folder / "content" if folder else None
    command = list(map(str, command))
    done = subprocess.run(command, cwd=where, env=values, capture_output=True, text=True)
    if check and done.returncode:
        said = (done.stdout + done.stderr).strip()[-3000:]
        raise Failed(f"{' '.join(command)[:200]} ended with {done.returncode}:\n{said}")
    return done


def expect(holds: object, message: str) -> None:
    """Stop if a promise does not hold."""
    if not holds:
        raise Failed(f"FAILED: {message}")


def main(options: argparse.Namespace, folder: Path) -> None:
    """Everything, in `folder`."""
    startup = folder / "ipython" / "profile_default" / "startup"
    for path in (startup, folder / "content"):
        path.mkdir(parents=True, exist_ok=True)
    (startup / "00_colab.py").write_text(FAKE, encoding="utf-8")
    head = run(["git", "-C", ROOT, "log", "-1", "--format=%h %s"]).stdout.strip()
    print(f"cvlab as committed: {head}")
    began = time.perf_counter()
    python = build(colab_like(options.python), folder)
    print(f"Colab's {len(pins())} packages are installed, {time.perf_counter() - began:.0f} s")
    prove_cell(python, folder)
    for name in options.notebooks:
        prove_notebook(python, folder, name)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("notebooks", nargs="*", default=["00_environment", "05_onnx", "06_int8"])
    made.add_argument("--python", help="default: python3.13, else the one that runs this")
    made.add_argument("--folder", type=Path, help="default: a temporary one, removed at the end")
    return made


if __name__ == "__main__":
    given = parser().parse_args()
    if given.folder:
        main(given, given.folder.resolve())
    else:
        with tempfile.TemporaryDirectory(prefix="colab-") as made:
            main(given, Path(made))
