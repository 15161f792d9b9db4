"""No dead ends: links, pictures, badges, paths and commands lead where they say they do."""

import re
import shlex
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urlsplit

import mistune
import nbformat
import pytest
from bs4 import BeautifulSoup

from cvlab.tools import cli

ROOT = Path(__file__).parent.parent
COLAB = "https://colab.research.google.com/github/"
render = mistune.create_markdown(escape=False, plugins=["math", "table", "url"])


@pytest.fixture(scope="module")
def documents(tracked):
    """Every Markdown file and notebook as HTML: {path: soup}."""
    paths = [path for path in tracked if path.endswith((".md", ".ipynb"))]
    assert {"README.md", "notebooks/00_environment.ipynb"} <= set(paths)
    return {path: read(path) for path in paths}


def read(path):
    if path.endswith(".md"):
        return soup((ROOT / path).read_text(encoding="utf-8"))
    cells = nbformat.read(ROOT / path, as_version=4).cells
    return soup(*(cell.source for cell in cells if cell.cell_type == "markdown"))


def soup(*texts):
    made = BeautifulSoup("\n".join(map(render, texts)), "html.parser")
    for formula in made.select(".math"):
        formula.decompose()
    return made


def links(document):
    return [
        tag.get("href", tag.get("src", ""))
        for tag in document.find_all(["a", "img"])
        if not tag.get("name")
    ]


def is_web(link):
    return bool(urlsplit(link).scheme or urlsplit(link).netloc)


def anchors(document):
    """As GitHub makes them of headings, and those that are written as HTML."""
    found, seen = set(), Counter()
    for heading in document.find_all(re.compile("^h[1-6]$")):
        slug = re.sub(r"[^\w\- ]", "", heading.get_text().strip().lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    marks = document.find_all(id=True) + document.find_all("a", attrs={"name": True})
    return found | {mark.get("id", mark.get("name")) for mark in marks}


def dead_ends(documents, tracked):
    """What is not in git is not on GitHub, even if it lies on this disk."""
    there = {*tracked, *(str(folder) for path in tracked for folder in PurePosixPath(path).parents)}
    for path, document in documents.items():
        for link in links(document):
            address = urlsplit(link)
            if is_web(link):
                if address.scheme != "https":
                    yield f"{path}: {link} is not https"
                continue
            wanted = unquote(address.path)
            target = normpath(join(dirname(path), wanted)) if wanted else path
            if not link or target not in there:
                yield f"{path}: no file {link}"
            elif address.fragment:
                known = anchors(documents[target]) if target in documents else ()
                if unquote(address.fragment) not in known:
                    yield f"{path}: no heading {link}"
        yield from (f"{path}: no link {text}" for text in unmade(document))


def unmade(document):
    """What its author meant as a link, but Markdown reads as text."""
    texts = (text for text in document.find_all(string=True) if not text.find_parent("code"))
    return [text.strip() for text in texts if re.search(r"\]\s?[\[(]", text)]


def code(document):
    return [element.get_text() for element in document.find_all("code")]


# --- links ---------------------------------------------------------------------------------------


def test_no_link_or_picture_is_a_dead_end(documents, tracked):
    assert list(dead_ends(documents, tracked)) == []


def test_web_links_are_listed(documents, capsys):
    """Tests fetch nothing: whoever reads the log can try them."""
    where = defaultdict(list)
    for path, document in documents.items():
        for link in sorted(set(links(document))):
            if is_web(link):
                where[link].append(PurePosixPath(path).name)
    assert any(link.startswith(COLAB) for link in where)
    with capsys.disabled():
        print("\nWeb links, not fetched:")
        for link, names in sorted(where.items()):
            print(f"  {link}  ({names[0] if len(names) == 1 else f'{len(names)} files'})")


def test_every_notebook_has_a_colab_badge_of_its_own(documents):
    repositories = set()
    for path, document in documents.items():
        badges = [link for link in links(document) if link.startswith(COLAB)]
        repositories |= {link.partition("/blob/")[0] for link in badges}
        if path.endswith(".ipynb"):
            assert [link.partition("/blob/")[2] for link in badges] == [f"main/{path}"]
    assert len(repositories) == 1


# --- paths and commands --------------------------------------------------------------------------


def test_paths_and_notebooks_named_in_code_exist(documents, tracked):
    """`cvlab/run.py`, `data/results/`, `05_onnx`; what a run makes is no path of these."""
    pattern = r"(cvlab|figures|notebooks|tests|data/results)(/[\w.-]+)*/?"
    names = {PurePosixPath(path).stem for path in tracked}
    found = [(path, text) for path, document in documents.items() for text in code(document)]
    paths = [(path, text) for path, text in found if "/" in text and re.fullmatch(pattern, text)]
    numbered = [(path, text) for path, text in found if re.fullmatch(r"\d\d_\w+", text)]
    assert paths
    assert numbered
    assert [(path, text) for path, text in paths if not (ROOT / text).exists()] == []
    assert [(path, text) for path, text in numbered if text not in names] == []


def commands(elements):
    """What follows `python -m cvlab`, up to a comment or two spaces."""
    text = "\n".join(element.get_text() for element in elements)
    return re.findall(r"python -m cvlab\b *(.*?)(?= {2}|#|$)", text, re.MULTILINE)


def is_understood(command):
    try:
        cli._parser().parse_args(shlex.split(command))
    except SystemExit as done:
        return done.code == 0
    return True


def is_known(command):
    """The command and its options; a sentence may leave out what is given to them."""
    name, *rest = shlex.split(command)
    options = {word.partition("=")[0] for word in rest if word.startswith("-")}
    (commands,) = cli._parser()._subparsers._group_actions
    known = commands.choices.get(name)
    return bool(known) and options <= set(known._option_string_actions)


def test_every_command_shown_is_one_of_cvlab(documents):
    blocks = [(p, c) for p, d in documents.items() for c in commands(d.select("pre"))]
    inline = [(p, c) for p, d in documents.items() for c in commands(d.select(":not(pre) > code"))]
    assert len(blocks) >= 5
    assert len(inline) >= 3
    assert [found for found in blocks if not is_understood(found[1])] == []
    assert [found for found in inline if not is_known(found[1])] == []


def test_every_make_target_shown_exists(documents):
    texts = "\n".join(text for document in documents.values() for text in code(document))
    shown = re.findall(r"^make (\w+)", texts, re.MULTILINE)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"run", "test"} <= set(shown) <= set(targets)


def test_no_file_is_large(tracked):
    """GitHub shows no notebook that is much larger, and everybody clones all of them."""
    assert [path for path in tracked if (ROOT / path).stat().st_size >= 2_000_000] == []


# --- the checker itself --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](b.md) ![c](<d e.png>) [f](b.md#two-words) [g](#h) [i](..)\n\n# h", []),
        ('<a name="j"></a>[k](#j) `[l](m)` $n[o](p)$ <https://q.example>', []),
        ("[a](gone.md)", ["docs/a.md: no file gone.md"]),
        ("![a](gone.png)", ["docs/a.md: no file gone.png"]),
        ('<img src="gone.png">', ["docs/a.md: no file gone.png"]),
        ("[a]()", ["docs/a.md: no file "]),
        ("[a](../docs/B.md)", ["docs/a.md: no file ../docs/B.md"]),
        ("[a](#gone)", ["docs/a.md: no heading #gone"]),
        ("[a](b.md#gone)", ["docs/a.md: no heading b.md#gone"]),
        ("[a](http://b.example)", ["docs/a.md: http://b.example is not https"]),
        ("see http://b.example", ["docs/a.md: http://b.example is not https"]),
        ("[a][gone]", ["docs/a.md: no link [a][gone]"]),
        ("[a](b c.md)", ["docs/a.md: no link [a](b c.md)"]),
    ],
)
def test_dead_ends_are_found(text, expected):
    documents = {"docs/a.md": soup(text), "docs/b.md": soup("# Two words")}
    assert list(dead_ends(documents, [*documents, "docs/d e.png"])) == expected


def test_anchors_are_those_of_github():
    found = anchors(soup("# A\n\n## `b.c`, d_e!\n\n# A\n\n## 1 · Über [x](y)"))
    assert found == {"a", "bc-d_e", "a-1", "1--über-x"}
