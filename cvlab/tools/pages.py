"""Notebook content as HTML that can do nothing: no script, no request, no form, no new style.

Whoever reads a report did not run its notebooks: what they hold is data. What is markup in it
passes `clean`, an allowlist; everything else is text that the templates escape. The pages'
Content-Security-Policy forbids scripts and requests a second time.
"""

import base64
import html
import re
from binascii import Error as Base64Error
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from io import BytesIO

import bleach
from bleach.css_sanitizer import CSSSanitizer
from bleach.html5lib_shim import Filter
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert.filters import strip_ansi
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from cvlab.records import MIME

WIDGET = "application/vnd.jupyter.widget-view+json"


MOST_PIXELS = 50_000_000  # a kilobyte of PNG can unpack to more than a browser's memory


CODE = HtmlFormatter(cssclass="source")  # pygments' default colours have enough contrast


TAGS = (
    "a b blockquote br caption code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img kbd li "
    "ol p pre s small span strong sub summary sup table tbody td tfoot th thead tr u ul"
)


ATTRIBUTES = {
    "a": {"href", "title"},
    "details": {"open"},
    "img": {"alt", "src"},
    "ol": {"start"},
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan"},
}


# Neither annotation-xml, mglyph nor malignmark: with them markup can change its meaning when a
# browser reads it again.
MATH = (
    "math menclose mfrac mi mn mo mover mpadded mphantom mroot mrow mspace msqrt mstyle msub "
    "msubsup msup mtable mtd mtext mtr munder munderover"
)


MATH_ATTRIBUTES = (
    "accent columnalign columnspacing display displaystyle fence form linethickness lspace "
    "mathvariant maxsize minsize movablelimits notation rowspacing rspace scriptlevel separator "
    "stretchy width"
)


STYLES = {"background", "background-color", "color", "font-style", "font-weight", "line-height"}


STYLES |= {"text-align", "text-decoration"}


TAGS, MATH, MATH_ATTRIBUTES = (set(words.split()) for words in (TAGS, MATH, MATH_ATTRIBUTES))


UNSEEN = "script|style|title|template|noscript|noembed|noframes|iframe|object|textarea|xmp|svg"


# To the end where it is not closed, as browsers read it.
UNSEEN = re.compile(rf"<({UNSEEN})\b.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE)


CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class Picture:
    """An image that a browser can show, as a `data:` address; sizes in pixels."""

    address: str
    width: int
    height: int


@dataclass(frozen=True)
class Output:
    """What a cell left: `kind` is "text", "error", "html", "picture" or "note"."""

    kind: str
    content: str | Markup | Picture
    title: str = ""  # of a picture


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook: `kind` is "code", "markdown" or "raw", whose source is no markup."""

    id: str
    kind: str
    source: str | Markup
    outputs: list[Output] = field(default_factory=list)


def picture(data: str) -> Picture | None:
    """The image that a notebook stores as base64, or None: it is no PNG or JPEG, or damaged."""
    try:
        content = base64.b64decode(data)
        with Image.open(BytesIO(content), formats=["PNG", "JPEG"]) as image:
            kind, (width, height) = str(image.format).lower(), image.size
            image.verify()
    except (OSError, ValueError, TypeError, SyntaxError, Base64Error, Image.DecompressionBombError):
        return None
    if width * height > MOST_PIXELS:
        return None
    address = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(address, width, height)


def plain(text: str) -> str:
    """Text as a terminal would show it in the end: no colours, no overwritten progress bars."""
    lines = strip_ansi(text).split("\n")
    return CONTROLS.sub("", "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines))


def clean(markup: str) -> Markup:
    """What is harmless in HTML or MathML: text, tables, folded blocks, colours, stored images."""
    cleaner = bleach.Cleaner(
        tags=TAGS | MATH,
        attributes=_is_allowed,
        protocols={"http", "https", "mailto", "data"},
        strip=True,
        filters=[_Pictures],
        css_sanitizer=CSSSanitizer(allowed_css_properties=STYLES, allowed_svg_properties=()),
    )
    return Markup(cleaner.clean(UNSEEN.sub("", markup)))


def _is_allowed(tag: str, name: str, value: str) -> bool:
    if name == "style":
        return not {"(", "\\"} & set(value)  # no url(...), not in disguise either
    address = re.sub(r"[\s\x00-\x1f]", "", html.unescape(value)).lower()  # as browsers read it
    if name == "href" and address.startswith("data:"):
        return False  # only images need data:
    return name in (MATH_ATTRIBUTES if tag in MATH else ATTRIBUTES.get(tag, ()))


class _Pictures(Filter):
    """Shows an image that the notebook holds; of one elsewhere, its alternative text."""

    def __iter__(self) -> Iterator[dict]:
        for token in super().__iter__():
            if token.get("name") != "img":
                yield token
                continue
            given = {name: html.unescape(value) for (_, name), value in token["data"].items()}
            found = picture(given.get("src", "").partition(";base64,")[2])
            if found:
                data = {(None, "src"): found.address, (None, "alt"): given.get("alt", "")}
                yield token | {"data": data}
            else:
                yield {"type": "Characters", "data": given.get("alt", "")}


class _Renderer(IPythonRenderer):
    """Markdown to HTML with formulas as MathML; links to this report's other notebooks work."""

    def __init__(self, names: Collection[str]):
        super().__init__(escape=False, exclude_anchor_links=True)
        self.names = names

    def inline_math(self, body: str) -> str:
        return _mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return _mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return _mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return f'<img src="{html.escape(url)}" alt="{text}">'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if url.removesuffix(".ipynb") in self.names:
            url = url.removesuffix(".ipynb") + ".html"
        elif not re.match(r"https?://|mailto:", url):
            return text  # it would lead to nothing from here
        return super().link(text, url, title)


def _mathml(formula: str, display: str) -> str:
    """A TeX formula as MathML, or as its source where that is no TeX. Not safe before `clean`."""
    try:
        return convert(formula, display=display)
    except Exception:  # the converter raises what it happens to meet
        return f"<code>{html.escape(formula)}</code>"


def markdown(text: str, names: Collection[str] = ()) -> Markup:
    """A markdown cell as HTML; `names` are the notebooks that it may link to."""
    return clean(MarkdownWithMath(renderer=_Renderer(names)).render(text))


def code(text: str) -> Markup:
    """Python source, highlighted by classes; `CODE.get_style_defs()` gives their colours."""
    return Markup(highlight(text, PythonLexer(), CODE))


def cells(notebook: NotebookNode, names: Collection[str] = ()) -> Iterator[Cell]:
    """A notebook's cells, in order; `names` are the notebooks that they may link to."""
    for index, cell in enumerate(notebook.cells):
        which = str(cell.get("id", index))
        if cell.cell_type == "code":
            yield Cell(which, "code", code(cell.source), list(outputs(cell)))
        elif cell.cell_type == "markdown":
            yield Cell(which, "markdown", markdown(cell.source, names))
        else:
            yield Cell(which, "raw", cell.source)


def outputs(cell: NotebookNode) -> Iterator[Output]:
    """What a code cell shows, in order; records show nothing."""
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            yield Output("text", plain(output.text))
        elif output.output_type == "error":
            yield Output("error", plain("\n".join(output.traceback) or str(output.evalue)))
        else:
            yield from _rich(output.get("data", {}))


def _rich(data: dict) -> Iterator[Output]:
    """The richest of an output's forms that a page without scripts can show."""
    text = str(data.get("text/plain", ""))
    stored = next((data[kind] for kind in ("image/png", "image/jpeg") if kind in data), None)
    shown = picture(stored) if stored else None
    if MIME in data:
        return
    if WIDGET in data:
        yield Output("note", "(a widget: open the notebook to move it)")
    elif shown:
        title = text.removeprefix("Figure:") if text.startswith("Figure:") else ""
        yield Output("picture", shown, " ".join(title.split()))
    elif stored:
        yield Output("note", "(an image that cannot be shown: its data is damaged)")
    elif "text/html" in data:
        yield Output("html", clean(str(data["text/html"])))
    elif "text/markdown" in data or "text/latex" in data:
        yield Output("html", markdown(str(data.get("text/markdown", data.get("text/latex")))))
    elif text:
        yield Output("text", plain(text))
