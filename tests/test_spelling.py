"""No known misspelling anywhere, and British English where we write prose."""

import subprocess
import sys
from pathlib import Path

import codespell_lib
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
AMERICAN = Path(codespell_lib.__file__).parent / "data" / "dictionary_en-GB_to_en-US.txt"
PICTURES = (".ipynb", ".png")  # notebooks hold them too, so their cells are taken out
SPANS = r"```.*?```|`[^`\n]*`|https?://\S+|\]\([^)]*\)"  # of Markdown: code and addresses
KEPT = "dialog,dialogs,license,licenses,meter,meters,optimizer,optimizers,program,programs"


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A file for each cell of each notebook, named so that a finding says where it is."""
    folder = tmp_path_factory.mktemp("cells")
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            kind = "md" if cell.cell_type == "markdown" else "py"
            name = folder / f"{path.stem}.{cell.id}.{kind}"
            name.write_text(cell.source, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def british(tmp_path_factory):
    """Options. Codespell's pairs go from British to American, so they are turned round."""
    pairs = (line.split("->") for line in AMERICAN.read_text(encoding="utf-8").splitlines())
    turned = [f"{word}->{good}" for good, words in pairs for word in words.strip(",").split(", ")]
    path = tmp_path_factory.mktemp("british") / "dictionary.txt"
    path.write_text("\n".join(turned), encoding="utf-8")
    return ["-D", path, "-L", KEPT, "--ignore-multiline-regex", SPANS]


def spell(*arguments):
    """What codespell finds with pyproject.toml's settings, as `file:line: bad ==> good`."""
    command = [sys.executable, "-m", "codespell_lib", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode in (0, 65), done.stderr  # 65: something was found
    return done.stdout.splitlines()


def test_nothing_is_misspelt(tracked, cells):
    texts = [path for path in tracked if not path.endswith(PICTURES)]
    assert spell(*texts, cells) == []


def test_prose_is_british(tracked, cells, british):
    prose = [path for path in tracked if path.endswith(".md")] + sorted(cells.glob("*.md"))
    assert spell(*british, *prose) == []


def test_both_would_be_found(tmp_path, british):
    bad = tmp_path / "bad.md"
    bad.write_text("teh center `color` [grey](gray.md)\n```\ncolor\n```\n")  # codespell:ignore
    assert [line.split()[1] for line in spell(bad)] == ["teh"]  # codespell:ignore
    assert [line.split()[1] for line in spell(*british, bad)] == ["center"]
