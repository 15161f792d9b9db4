"""A made-up class: what 200 students might hand in, and what each must be told.

`python tests/handed_in.py FOLDER 200` makes one, with `expected.json` beside it;
`python tests/handed_in.py FOLDER MARKS` compares that with what `grade` wrote.
"""

import json
import re
import sys
import textwrap
from itertools import cycle
from pathlib import Path

from test_exercises import WRONG

from cvlab.tools.grading.collect import exercises

SOLUTIONS = {name: one.solution for name, one in exercises().items()}
RIGHT = textwrap.dedent(SOLUTIONS["output_size"].split("\n", 1)[1])
LIE = "class Lie(int):\n    def __eq__(self, other): {}\n    __hash__ = None\nreturn Lie(5)"
TRY = "try:\n    {}\nexcept Exception:\n    pass\n"
# A body of `output_size` -> (outcome, a part of what is said). Nothing of it may hurt the others.
HOSTILE = {
    "while True: pass": ("wrong", "stopped after"),
    "import time; time.sleep(1000)": ("wrong", "stopped after"),
    "import sys; sys.exit(0)": ("wrong", "SystemExit"),
    "import os; os._exit(3)": ("wrong", "exit code 3"),
    "for _ in range(100_000): print('x' * 10)\n" + RIGHT: ("solved", ""),
    "import os\nwhile True: os.fork()": ("wrong", "PermissionError"),
    "import subprocess; subprocess.run(['sleep', '9'])": ("wrong", "PermissionError"),
    "import threading, time\n"
    "for _ in range(5): threading.Thread(target=time.sleep, args=(99,)).start()\n" + RIGHT: (
        "solved",
        "",
    ),
    "torch.zeros(50 * 2**28); " + "return 1": ("wrong", "RuntimeError"),
    "return bytearray(50 * 2**30)": ("wrong", "MemoryError"),
    "import numpy; numpy.allclose = numpy.array_equal = lambda *a, **k: True\n"
    "torch.allclose = torch.equal = lambda *a, **k: True\nreturn 5": ("wrong", "was expected"),
    "run.check = lambda *a: None\nimport builtins; builtins.abs = lambda x: 0\nreturn 5": (
        "wrong",
        "was expected",
    ),
    "from cvlab.exercises import judge\njudge.CHECKS.clear()\nreturn 5": (
        "wrong",
        "PermissionError",
    ),
    "return open(KEY).read()": ("wrong", "PermissionError"),
    "return open(SOLUTION).read()": ("wrong", "PermissionError"),
    "open(OTHERS, 'w').write('x')\nreturn 5": ("wrong", "PermissionError"),
    "import os; os.chmod(OTHERS, 0)\nreturn 5": ("wrong", "PermissionError"),
    "import os; os.utime(KEY)\nreturn 5": ("wrong", "PermissionError"),
    "import os; os.symlink(KEY, 'key'); return 5": ("wrong", "PermissionError"),
    "import os; os.makedirs('a/' * 400); return 5": ("wrong", "was expected"),
    "import os; os.kill(os.getppid(), 9)": ("wrong", "PermissionError"),
    "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))": (
        "wrong",
        "PermissionError",
    ),
    "import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())": (
        "wrong",
        "PermissionError",
    ),
    "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)": ("wrong", "PermissionError"),
    "x = 0x" + "f" * 5000 + "; return 5": ("wrong", "was expected"),
    "return " + "1+" * 1500 + "1": ("wrong", ""),
    "import socket; socket.create_connection(('127.0.0.1', 80))": ("wrong", "PermissionError"),
    "open('large', 'wb').write(bytes(2**26)); return 5": ("wrong", "OSError"),
    "i = 0\nwhile True:\n    open(f'f{i}', 'wb').write(bytes(2**20)); i += 1": ("wrong", "files"),
    "return output_size(size, kernel, stride, padding)": ("wrong", "RecursionError"),
    LIE.format("return True"): ("wrong", "was expected"),
    LIE.format("raise SystemError"): ("wrong", "was expected"),
    "a = []; a.append(a); return a": ("wrong", "RecursionError"),
    "return 10**5000": ("wrong", ""),
    "return [[0] * 1000] * 100_000": ("wrong", ""),
    "import ctypes; return ctypes.string_at(0)": ("wrong", "SIGSEGV"),
    "import os\nfor i in range(3, 99):\n    try: os.write(i, b'{\"result\": 17}')\n"
    "    except OSError: pass\nreturn 5": ("wrong", ""),
    "import os, struct\nfor i in range(3, 99):\n"
    "    try: os.write(i, struct.pack('!iQ', -1, 2**63))\n"
    "    except OSError: pass\nreturn 5": ("wrong", "came back"),
    "import os, time\nos.closerange(3, 99); time.sleep(60)": ("wrong", "hung up"),
    "import gc, os, pickle\nraise type('E', (Exception,), {'__str__': lambda s: 1 / 0})()": (
        "wrong",
        "",
    ),
    "return {(33, 2, 2, 0): 16, (32, 3, 1, 1): 32, (32, 3, 2, 1): 16, (32, 5, 2, 0): 14, "
    "(31, 3, 2, 1): 16, (32, 7, 3, 2): 10}[size, kernel, stride, padding]": ("wrong", "KeyError"),
    "'\\x1b[2J<script>alert(1)</script>'; raise ValueError('=cmd()<script>\\x1b[2J')": (
        "wrong",
        "<script>",
    ),
}


def with_body(name: str, body: str) -> str:
    """The stub with another body, without what follows the function."""
    return exercises()[name].stub.split("    ...", 1)[0] + textwrap.indent(body, "    ")


def whole(name: str, source: str) -> str:
    """The cell as a student leaves it: the function, then `run.check` or `run.use` as it was."""
    return source.rstrip() + exercises()[name].stub.split("    ...", 1)[1]


def notebook(name: str, answers: dict[str, str], kept: bool = True) -> dict:
    """One of our notebooks with these sources in place of its stubs, in plain JSON."""
    content = json.loads((NOTEBOOK_FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    for cell in content["cells"]:
        stub = re.match(r"def (\w+)\(", "".join(cell["source"]))
        if stub and stub[1] in answers:
            cell["source"] = whole(stub[1], answers[stub[1]]).splitlines(keepends=True)
        if not kept:
            cell.pop("outputs", None)
    return content


NOTEBOOK_FOLDER = Path(__file__).parent.parent / "notebooks"
EVERY = sorted(path.stem for path in NOTEBOOK_FOLDER.glob("*.ipynb"))


def hand_in(folder: Path, answers: dict[str, str], saved: int = 0) -> None:
    """Write all notebooks of a student as one of several programs would save them."""
    folder.mkdir(parents=True)
    for name in EVERY:
        content = notebook(name, answers)
        if saved:  # 4.2 to 4.4 know no ids
            content["nbformat_minor"] = 1 + saved
            for cell in content["cells"]:
                cell.pop("id", None)
        if saved == 1:  # a text where others have lines, as VS Code may
            for cell in content["cells"]:
                cell["source"] = "".join(cell["source"])
        if saved == 2:  # Colab
            content["metadata"]["colab"] = {"provenance": []}
            for cell in content["cells"]:
                cell["metadata"]["id"] = "x"
        text = json.dumps(content, ensure_ascii=saved == 3)
        encoding = "utf-8-sig" if saved == 3 else "utf-8"
        file = folder / (f"Copy of {name} (1).ipynb" if saved == 2 else f"{name}.ipynb")
        file.write_text(text.replace("\\n", "\\r\\n") if saved == 3 else text, encoding=encoding)


def hostile(body: str, folder: Path) -> str:
    """A hostile `output_size`."""
    places = {
        "KEY": NOTEBOOK_FOLDER.parent / "cvlab" / "exercises" / "judge.py",
        "SOLUTION": NOTEBOOK_FOLDER / "02_pooling.ipynb",
        "OTHERS": folder / "student000" / "02_pooling.ipynb",
    }
    for name, place in places.items():
        body = body.replace(name, repr(str(place)))
    return with_body("output_size", body)


def make(folder: Path, students: int) -> dict[str, dict[str, tuple[str, str]]]:
    """A class in `folder`; student -> exercise -> (outcome, a part of what is said)."""
    expected, evil = {}, cycle(reversed(HOSTILE.items()))  # the first ones wait out their time
    for i in range(students):
        student, answers, told = f"student{i:03}", {}, {}
        for j, name in enumerate(SOLUTIONS):
            kind = (i + j) % 5
            if kind == 4:
                told[name] = ("not attempted", "")
            elif kind == 3:
                body, hint = WRONG[name][(i + j) // 5 % len(WRONG[name])]
                answers[name], told[name] = with_body(name, body), ("wrong", hint)
            else:
                answers[name], told[name] = SOLUTIONS[name], ("solved", "")
        if i % 4 == 1:
            body, said = next(evil)
            answers["output_size"], told["output_size"] = hostile(body, folder), said
        hand_in(folder / student, answers, saved=i % 4)
        expected[student] = told
    return expected


def differences(expected: dict, told: dict) -> list[str]:
    """Where marks.json is not as expected: a line each."""
    rows = {(row["student"], row["exercise"]): row for row in told["marks"]}
    found = []
    for student, told_of in expected.items():
        for name, (outcome, said) in told_of.items():
            row = rows.get((student, name), {"outcome": "no row", "said": ""})
            if row["outcome"] != outcome or said not in row["said"]:
                got = f"{row['outcome']} ({row['said']})"
                found.append(f"{student}, {name}: {outcome} ({said}) was expected, {got} came")
    return found


def main(folder: Path, what: str) -> None:
    """Make a class of so many, or compare."""
    beside = folder.parent / "expected.json"
    if what.isdigit():
        found = make(folder, int(what))
        beside.write_text(json.dumps(found))
        print(len(found), "students,", len(SOLUTIONS), "exercises")
        return
    expected = json.loads(beside.read_text())
    found = differences(expected, json.loads(Path(what, "marks.json").read_text()))
    told = sum(map(len, expected.values()))
    print(*found, f"{told - len(found)} of {told} exercises were marked as expected", sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
