"""Notebook content as HTML that can do nothing: no script, no request, no form, no new style.

Whoever reads a report did not run its notebooks: what they hold is data. What is markup in it
passes `clean`, an allowlist; everything else is text that the templates escape. The pages'
Content-Security-Policy forbids scripts and requests a second time.
"""

import base64
import html
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from io import BytesIO

import nh3
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
FORMS = [MIME, WIDGET, "image/png", "image/jpeg", "text/html", "text/markdown", "text/latex"]
FORMS += ["text/plain"]  # an output's, the richest first; records show nothing
MOST_PIXELS = 50_000_000  # a kilobyte of PNG can unpack to more than a browser's memory
CODE = HtmlFormatter(cssclass="source")  # its default colours have enough contrast
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

TAGS = (
    "a b blockquote br caption code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img kbd li "
    "ol p pre s small span strong sub summary sup table tbody td tfoot th thead tr u ul"
)
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
ATTRIBUTES = {tag: set(MATH_ATTRIBUTES.split()) for tag in MATH.split()} | {
    "*": {"style"},
    "a": {"href", "title"},
    "details": {"open"},
    "img": {"alt", "src"},
    "ol": {"start"},
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan"},
}
STYLES = "background background-color color font-style font-weight line-height text-align"
UNSEEN = "script style title template noscript noembed noframes iframe object textarea xmp svg"


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
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError):
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
    whole = markup.encode("utf-8", errors="replace").decode()  # JSON can hold half a character
    return Markup(NO_SOURCE.sub(r"\1", CLEANER.clean(whole)))


def _harmless(tag: str, name: str, value: str) -> str | None:
    """An allowed attribute's value, or None: it goes."""
    if name == "style":  # no url(...), not in disguise either
        return None if tag == "img" or {"(", "\\"} & set(value) else value
    if name == "src":
        found = picture(value.partition(";base64,")[2])
        return found.address if found else None
    if name == "href" and re.sub(r"[\x00-\x20]", "", value).lower().startswith("data:"):
        return None  # only images need data:
    return value


CLEANER = nh3.Cleaner(
    tags={*TAGS.split(), *MATH.split()},
    attributes=ATTRIBUTES,
    attribute_filter=_harmless,
    url_schemes={"http", "https", "mailto", "data"},
    filter_style_properties={*STYLES.split(), "text-decoration"},
    clean_content_tags=set(UNSEEN.split()),
)
# An image that the notebook does not hold gives way to its alternative text. In what the cleaner
# wrote, "<" only begins a tag: in texts and attributes it is &lt;.
NO_SOURCE = re.compile(r'<img(?: alt="([^"]*)")?>')


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


def cells(notebook: NotebookNode, names: Collection[str] = ()) -> Iterator[Cell]:
    """A notebook's cells, in order; `names` are the notebooks that they may link to."""
    for index, cell in enumerate(notebook.cells):
        which = str(cell.get("id", index))
        if cell.cell_type == "code":
            source = Markup(highlight(cell.source, PythonLexer(), CODE))
            yield Cell(which, "code", source, list(outputs(cell)))
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
    kind = next((kind for kind in FORMS if kind in data), MIME)
    if kind == WIDGET:
        yield Output("note", "(a widget: open the notebook to move it)")
    elif kind.startswith("image/"):
        title, shown = str(data.get("text/plain", "")), picture(data[kind])
        title = title.removeprefix("Figure:") if title.startswith("Figure:") else ""
        broken = Output("note", "(an image that cannot be shown: its data is damaged)")
        yield Output("picture", shown, " ".join(title.split())) if shown else broken
    elif kind == "text/html":
        yield Output("html", clean(str(data[kind])))
    elif kind in ("text/markdown", "text/latex"):
        yield Output("html", markdown(str(data[kind])))
    elif kind == "text/plain" and data[kind]:
        yield Output("text", plain(str(data[kind])))
