"""GitHub's workflows: they are well-formed, may do little, and run only commands that we have."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cvlab.tools import cli

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PARSED = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in FILES}
JOBS = [(name, job) for name, parsed in PARSED.items() for job in parsed["jobs"].values()]
STEPS = [step for _, job in JOBS for step in job["steps"]]
COMMANDS = sorted({line for s in STEPS for line in s.get("run", "").splitlines()})


def actionlint(*files):
    """Its exit code and what it found. `make test` installs it beside Python."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = shutil.which("actionlint", path=beside)
    assert found, "actionlint is missing: pip install -e '.[dev]'"
    done = subprocess.run([found, "-no-color", *files], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_actionlint_finds_nothing_to_say():
    assert actionlint(*FILES) == (0, "")


def test_actionlint_would_see_a_workflow_that_broke(tmp_path):
    """A context that is not there, for one: GitHub would take it for an empty text and go on."""
    broken = tmp_path / "broken.yml"
    text = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    broken.write_text(text.replace("matrix.python", "matrix.nothing"), encoding="utf-8")
    code, said = actionlint(broken)
    assert code
    assert "nothing" in said


def test_a_checkout_on_windows_has_our_line_ends(tracked):
    """Git for Windows makes CRLF of them where nothing is said: a shell trips over it."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "--eol"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for line in lines.splitlines():
        stored, _, *attributes = line.partition("\t")[0].split()
        text = stored not in ("i/-text", "i/none")
        assert not text or (stored, attributes[-1]) == ("i/lf", "eol=lf"), line


def test_actions_are_pinned_to_one_commit_each():
    """A tag can be moved to other code; the comment names the version for the reader."""
    text = "".join(file.read_text(encoding="utf-8") for file in FILES)
    lines = re.findall(r"uses: (.*)", text)
    assert len(lines) == sum("uses" in step for step in STEPS)
    assert all(
        re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line) for line in lines
    )
    assert len(set(lines)) == len({line.split("@")[0] for line in lines})


def test_workflows_may_only_read_and_end_by_themselves():
    for parsed in PARSED.values():
        assert parsed["permissions"] == {"contents": "read"}
        assert parsed["concurrency"]
    for _, job in JOBS:
        assert set(job.get("permissions", {}).values()) <= {"read"}
        assert job["timeout-minutes"] <= 240
    kept = [step.get("with", {}) for step in STEPS if "checkout" in step.get("uses", "")]
    assert all(given["persist-credentials"] is False for given in kept)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_workflow_runs_what_anybody_can_run(command):
    """Targets of the Makefile, commands of `python -m cvlab`, README's lines for Windows."""
    if command.startswith("make "):
        words = shlex.split(command)
        made = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        named = re.findall(
            r"^(\w+) \?=|\$\(if \$\((\w+)\)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M
        )
        assert words[1] in made
        assert {word.split("=")[0] for word in words[2:]} <= {
            name for pair in named for name in pair
        }
    elif "-m cvlab " in command:
        words = shlex.split(command.split(" -m cvlab ")[1].split(" >> ")[0])
        assert cli._parser().parse_args(words).do
    elif "python" in command:
        assert command in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    else:  # GitHub's own: what an earlier run left
        assert command.startswith("gh run download --name ")
        names = {s["with"]["name"] for s in STEPS if "upload-artifact" in s.get("uses", "")}
        assert shlex.split(command)[4] in names
