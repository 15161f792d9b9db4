"""Where this workbook lies on GitHub: named by every notebook's badge and bootstrap cell."""

import re
from dataclasses import dataclass
from pathlib import Path

from cvlab.paths import project_root, replace_atomically
from cvlab.tools.runner import notebook_paths

ADDRESS = r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+"


BADGE = re.compile(rf"(colab\.research\.google\.com/github/)({ADDRESS})(?=/blob/)")


CELL = re.compile(rf"(cvlab @ git\+https://github\.com/)({ADDRESS})")


OWNER = r"[A-Za-z0-9](?:-?[A-Za-z0-9])*"  # GitHub's rule: single hyphens, none at an end


class AddressError(ValueError):
    """No address, or none to replace; the message says what was given and what is expected."""


@dataclass(frozen=True)
class Place:
    """The addresses that one notebook names, in its badges and in its bootstrap cells."""

    notebook: str
    badges: tuple[str, ...]
    cells: tuple[str, ...]


def parse(text: str) -> str:
    """`owner/name` of what a user typed: that, or the URL of the repository.

    Raises:
        AddressError: it is neither.
    """
    short = text.removeprefix("https://github.com/").removesuffix("/").removesuffix(".git")
    owner, _, name = short.partition("/")
    rightly = len(owner) <= 39 and re.fullmatch(OWNER, owner)
    if not rightly or not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name) or name in (".", ".."):
        raise AddressError(
            f"{text!r} was given, expected OWNER/NAME of a repository on GitHub, as in "
            "somebody/their-fork, or https://github.com/OWNER/NAME."
        )
    return short


def places() -> list[Place]:
    """What each notebook names.

    Raises:
        AddressError: there is no notebook that installs the package.
    """
    found = []
    for name, path in notebook_paths().items():
        text = _read(path)
        both = (tuple(match[2] for match in kind.finditer(text)) for kind in (BADGE, CELL))
        found.append(Place(name, *both))
    if not any(place.cells for place in found):
        raise AddressError(
            f"No notebook in {project_root() / 'notebooks'} installs cvlab from GitHub, so there "
            "is no address here. Run this in a clone of the workbook."
        )
    return found


def state(found: list[Place]) -> tuple[str, bool]:
    """The present address in one line, and whether every badge and cell names it."""
    where = {}
    for place in found:
        for address in sorted({*place.badges, *place.cells}):
            where.setdefault(address, []).append(place.notebook)
    lacking = [place.notebook for place in found if not (place.badges and place.cells)]
    if len(where) == 1 and not lacking:
        return f"{where.popitem()[0]}: named by badge and cell of all {len(found)} notebooks", True
    problems = [f"no badge or no bootstrap cell in {', '.join(lacking)}"] if lacking else []
    if len(where) > 1:
        named = (f"{address} ({', '.join(names)})" for address, names in where.items())
        problems.append(f"badges and cells name {' and '.join(named)}")
    return f"{'; '.join(problems)}. One for all: python -m cvlab address OWNER/NAME", False


def change(new: str) -> list[Path]:
    """Write `new` for whatever addresses are named now; returns the files that changed.

    Only the addresses change, byte for byte. Texts come first: what they name is known from the
    notebooks, so that a stopped change can be made again.

    Raises:
        AddressError: see `places`; nothing is written then.
    """
    old = {address for place in places() for address in place.badges + place.cells}
    links = re.compile(rf"(github(?:\.com)?/)({'|'.join(map(re.escape, old))})(?![\w-])")
    root, changed = project_root(), []
    texts = [root / "README.md", root / "CONTRIBUTING.md", *(root / "notebooks").glob("*.md")]
    todo = [(path, (links,)) for path in texts if path.is_file()]
    todo += [(path, (BADGE, CELL)) for path in notebook_paths().values()]
    for path, kinds in todo:
        before = after = _read(path)
        for kind in kinds:
            after = kind.sub(rf"\g<1>{new}", after)
        if after != before:
            content = after.encode("utf-8")
            changed.append(replace_atomically(lambda it, data=content: it.write_bytes(data), path))
    return changed


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8")  # read_text would change a file's line ends
