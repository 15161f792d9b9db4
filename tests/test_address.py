"""The repository's address is set by one command, and nothing else in a file changes."""

import json
import shutil
from pathlib import Path

import pytest

from cvlab.paths import project_root
from cvlab.tools import address
from cvlab.tools.cli import main

ROOT = Path(__file__).parent.parent
BADGE = "https://colab.research.google.com/github/{}/blob/main/notebooks/{}.ipynb)"
CELL = '"cvlab @ git+https://github.com/{}"'


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A copy of the notebooks, with texts that name the address too; returns (root, address)."""
    (tmp_path / "notebooks").mkdir()
    for path in (*(ROOT / "notebooks").glob("*.ipynb"), ROOT / "notebooks" / "profiles.toml"):
        shutil.copy(path, tmp_path / "notebooks")
    _, (now,) = address.places()["05_onnx"]
    text = f"git clone https://github.com/{now}.git\nhttps://github.com/{now}-2 {now}\n"
    for name in ("README.md", "CONTRIBUTING.md", "notebooks/more.md"):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("cvlab.paths.PACKAGE", tmp_path / "cvlab")
    assert project_root() == tmp_path, "or these tests would change the repository itself"
    return tmp_path, now


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_every_badge_and_cell_of_the_repository_names_one_address():
    line, agree = address.state(address.places())
    assert agree, line
    assert all(len(badges) == len(cells) == 1 for badges, cells in address.places().values())


def test_only_badges_and_cells_change_and_a_second_time_as_well(clone, capsys):
    root, now = clone
    before = files(root)
    for new in ("somebody/their-fork", "x/y.z"):
        assert main(["address", new]) == 0
        output = capsys.readouterr().out
        assert output.count("\n") == 1
        assert all(name in output for name in before if not name.endswith(".toml"))
        after = files(root)
        assert after.keys() == before.keys()
        for name in (name for name in before if name.endswith(".ipynb")):
            old, lines = before[name].decode().split("\n"), after[name].decode().split("\n")
            pairs = [pair for pair in zip(old, lines, strict=True) if pair[0] != pair[1]]
            assert len(pairs) == 2
            assert all(was.replace(now, new) == line for was, line in pairs)
            cells = json.loads(after[name])["cells"]
            assert BADGE.format(new, Path(name).stem) in cells[0]["source"][0]
            assert CELL.format(new) in cells[1]["source"][-1]


def test_in_texts_links_to_the_repository_change_and_nothing_like_them(clone):
    root, now = clone
    address.change("somebody/their-fork")
    for name in ("README.md", "CONTRIBUTING.md", "notebooks/more.md"):
        assert (root / name).read_text(encoding="utf-8") == (
            f"git clone https://github.com/somebody/their-fork.git\n"
            f"https://github.com/{now}-2 {now}\n"
        )


@pytest.mark.parametrize("after", [2, 6])  # in the texts, in the notebooks
def test_a_change_that_was_stopped_can_be_made_again(clone, monkeypatch, after):
    """Also to an address that begins as the old one does."""
    root, now = clone
    whole, written = address.replace_atomically, []

    def stop_in_mid_way(write, path):
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(path)
        return whole(write, path)

    monkeypatch.setattr(address, "replace_atomically", stop_in_mid_way)
    with pytest.raises(KeyboardInterrupt):
        address.change(f"{now}.new")
    monkeypatch.setattr(address, "replace_atomically", whole)
    address.change(f"{now}.new")
    line, agree = address.state(address.places())
    assert agree, line
    assert line.startswith(f"{now}.new: ")
    assert (
        (root / "README.md")
        .read_text(encoding="utf-8")
        .startswith(f"git clone https://github.com/{now}.new.git")
    )


def test_line_ends_stay_as_they_are(clone):
    root, _ = clone
    path = root / "notebooks" / "00_environment.ipynb"
    before = path.read_bytes().replace(b"\n", b"\r\n")
    path.write_bytes(before)
    address.change("somebody/their-fork")
    assert path.read_bytes().count(b"\r\n") == before.count(b"\n")


def test_the_same_address_again_writes_nothing(clone, capsys):
    root, now = clone
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert main(["address", now]) == 0
    assert capsys.readouterr().out == f"{now} is named already\n"
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_without_an_argument_it_shows_what_is_named_and_whether_all_agree(clone, capsys):
    root, now = clone
    assert main(["address"]) == 0
    assert capsys.readouterr().out.startswith(f"{now}: named by")
    path = root / "notebooks" / "05_onnx.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace(f"/github/{now}", "/github/other/one"))
    assert main(["address"]) == 1
    assert "other/one (05_onnx)" in capsys.readouterr().out
    assert main(["address", "x/y"]) == 0  # and one command makes them agree again
    assert main(["address"]) == 0


def test_a_notebook_without_a_badge_is_named(clone, capsys):
    root, _ = clone
    path = root / "notebooks" / "05_onnx.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace("/blob/main/", "/"))
    assert main(["address"]) == 1
    assert "no badge or no bootstrap cell in 05_onnx." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a/b", "a/b"),
        ("https://github.com/a-b/c_d.e", "a-b/c_d.e"),
        ("https://github.com/a/b.git", "a/b"),
        ("https://github.com/a/b/", "a/b"),
    ],
)
def test_an_address_may_be_a_url(given, expected):
    assert address.parse(given) == expected


@pytest.mark.parametrize(
    "given",
    [
        *(
            "",
            "a",
            "a/",
            "/b",
            "a/b/c",
            "a b/c",
            "a/b\n",
            "a/b\\g<1>",
            '"/b',
            "a/..",
            "-a/b",
            "a--b/c",
        ),
        *(
            "a" * 40 + "/b",
            "http://github.com/a/b",
            "https://gitlab.com/a/b",
            "a/é",
            "a/b/tree/main",
        ),
    ],
)
def test_a_wrong_address_is_refused_in_one_line_and_nothing_is_written(clone, capsys, given):
    root, _ = clone
    before = files(root)
    assert main(["address", "--", given]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {given!r} was given, expected OWNER/NAME")
    assert error.count("\n") == 1
    assert files(root) == before


def test_where_no_notebook_installs_the_package_there_is_no_address(workbook, capsys):
    assert main(["address", "a/b"]) == 2
    assert "Run this in a clone" in capsys.readouterr().err
