"""Judge a student's functions, which live in other processes, by the checks of `exercises`."""

import ast
import hashlib
import hmac
import threading

from cvlab.exercises import judge
from cvlab.tools.grading.home import Answer, Home

MOST_SAID = 400  # characters that a student is told
TIMED = ("milliseconds",)  # a busy machine may spoil it, so it has three tries


class Unprotected(RuntimeError):
    """Students' code would not be harmless here; nothing of it has run."""


HERE = threading.local()  # a home for each thread of a worker


def form(source: str, name: str) -> str:
    """An answer without names, texts, comments and layout, "" if it is too short to tell."""
    names: dict[str, str] = {}
    try:
        (found,) = (n for n in ast.parse(source).body if getattr(n, "name", "") == name)
        for node in ast.walk(found):
            if key := {ast.Name: "id", ast.arg: "arg"}.get(type(node)):
                setattr(node, key, names.setdefault(getattr(node, key), f"v{len(names)}"))
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = ""
        told = ast.dump(found)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # also digits beyond counting
        return ""
    short = len(names) < 4 or len(told) < 900
    return "" if short else hashlib.sha256(told.encode()).hexdigest()[:16]


def judged(task: dict) -> dict[str, dict[str, str]]:
    """One student's exercises, name -> `outcome`, `said`, `form`; "" -> what was forbidden.

    Args:
        task: `student`, `secret`, `seconds` of computing for each, `imports` by notebook and
            `answers`: name -> (notebook, source). With `unprotected` it is judged in any case.

    Raises:
        Unprotected: this system cannot forbid all that it should.
        OSError, EOFError: the home has died; the next call makes another.
    """
    home = _home(task)
    if home.free and not task["unprotected"]:
        raise Unprotected(
            f"{home.told()} Grade on Linux 5.13 or newer; or, in a virtual machine that holds "
            "nothing else, with --unprotected."
        )
    found = {"": {"said": home.told()}}
    for name, (_, source) in task["answers"].items():
        key = f"{task['student']}\0{name}".encode()
        digest = hmac.digest(task["secret"].encode(), key, "sha256")
        seed = int.from_bytes(digest[:4]) >> 1 | 1
        for attempt in range(3 if name in TIMED else 1):
            outcome, said = _one(task, name, seed + attempt)
            if outcome != "wrong":
                break
        found[name] = {"outcome": outcome, "said": said, "form": form(source, name)}
    return found


def _home(task: dict) -> Home:
    if hasattr(HERE, "home") and not task["imports"].keys() <= HERE.home.imports.keys():
        HERE.home.close()
    if not hasattr(HERE, "home") or HERE.home.process.poll() is not None:
        HERE.home = Home(task["imports"])
    return HERE.home


def _one(task: dict, name: str, seed: int) -> tuple[str, str]:
    home = _home(task)
    answer = Answer(home, task["answers"][name][0], name, task["answers"][name][1], task["seconds"])
    try:
        outcome, said = judge.judge(answer, seed)
    except Exception as error:  # of a check that met what no learner would return
        outcome, said = "wrong", f"this could not be judged ({type(error).__name__}: {error})"
    answer.close()
    if any(home.folder.iterdir()):  # what cannot be removed: another home
        home.close()
    said = "".join(letter for letter in " ".join(said.split()) if letter.isprintable())
    return outcome, said[:MOST_SAID]
