"""Where this workbook lies on GitHub: named by every notebook's badge and bootstrap cell."""

import re
from functools import partial
from itertools import chain
from pathlib import Path

from cvlab.paths import project_root, replace_atomically
from cvlab.tools.runner import notebook_paths

BADGE = re.compile(r"colab\.research\.google\.com/github/([\w-]+/[\w.-]+)/blob/")
CELL = re.compile(r"cvlab @ git\+https://github\.com/([\w-]+/[\w.-]+)")
# What GitHub allows: an owner's single hyphens are inside, no name is "." or "..".
ALLOWED = re.compile(r"(?![^/]{40})[a-z\d]+(-[a-z\d]+)*/(?!\.\.?$)[\w.-]{1,100}", re.ASCII | re.I)


class AddressError(ValueError):
    """No address, or none to replace; the message says what was given and what is expected."""


def parse(text: str) -> str:
    """`owner/name` of what a user typed: that, or the URL of the repository.

    Raises:
        AddressError: it is neither.
    """
    short = text.removeprefix("https://github.com/").removesuffix("/").removesuffix(".git")
    if not ALLOWED.fullmatch(short):
        raise AddressError(
            f"{text!r} was given, expected OWNER/NAME of a repository on GitHub, as in "
            "somebody/their-fork, or https://github.com/OWNER/NAME."
        )
    return short


def places() -> dict[str, tuple[list[str], list[str]]]:
    """Notebook -> what its badges and what its bootstrap cells name.

    Raises:
        AddressError: there is no notebook that installs the package.
    """
    texts = {name: path.read_text(encoding="utf-8") for name, path in notebook_paths().items()}
    found = {name: (BADGE.findall(text), CELL.findall(text)) for name, text in texts.items()}
    if not any(cells for _, cells in found.values()):
        raise AddressError(
            f"No notebook in {project_root() / 'notebooks'} installs cvlab from GitHub, so there "
            "is no address here. Run this in a clone of the workbook."
        )
    return found


def state(found: dict[str, tuple[list[str], list[str]]]) -> tuple[str, bool]:
    """The present address in one line, and whether every badge and cell names it."""
    where = {}
    for notebook, named in found.items():
        for address in sorted(set(chain(*named))):
            where.setdefault(address, []).append(notebook)
    lacking = [notebook for notebook, named in found.items() if not all(named)]
    if len(where) == 1 and not lacking:
        return f"{where.popitem()[0]}: named by badge and cell of all {len(found)} notebooks", True
    problems = [f"no badge or no bootstrap cell in {', '.join(lacking)}"] if lacking else []
    if len(where) > 1:
        named = (f"{address} ({', '.join(names)})" for address, names in where.items())
        problems.append(f"badges and cells name {' and '.join(named)}")
    return f"{'; '.join(problems)}. One for all: python -m cvlab address OWNER/NAME", False


def change(new: str) -> list[Path]:
    """Write `new` for whatever addresses are named now; returns the files that changed.

    Only links to these change, byte for byte. Texts come first: what they name is known from the
    notebooks, so that a stopped change can be made again.

    Raises:
        AddressError: see `places`; nothing is written then.
    """
    named = {new, *(address for both in places().values() for address in chain(*both))}
    longest_first = sorted(named, key=len, reverse=True)  # one may begin as another does
    either = "|".join(map(re.escape, longest_first))
    link = re.compile(rf"(github(?:\.com)?/)(?:{either})(?![\w-])".encode())
    root, changed = project_root(), []
    texts = [root / "README.md", root / "CONTRIBUTING.md", *(root / "notebooks").glob("*.md")]
    for path in [*filter(Path.is_file, texts), *notebook_paths().values()]:
        before = path.read_bytes()  # as text, a file's line ends would change
        after = link.sub(rb"\g<1>" + new.encode(), before)
        if after != before:
            changed.append(replace_atomically(partial(Path.write_bytes, data=after), path))
    return changed
