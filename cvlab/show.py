"""What a notebook shows beside its figures: progress bars, folded sources and tables, widgets."""

import html
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:  # `import cvlab` shall wait for torch alone
    import pandas as pd
    from ipywidgets import VBox, Widget


def in_notebook() -> bool:
    """True inside a Jupyter kernel (also a headless one), False in a terminal or a script."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and getattr(shell, "kernel", None) is not None


class _NotebookLine:
    """A file for tqdm to write to, shown as one notebook output that is overwritten in place.

    tqdm's own notebook bar is a widget: in a saved notebook it stays behind as `0%| | 0/10`.
    """

    def __init__(self):
        from IPython.display import display

        self._handle = display({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            self._handle.update({"text/plain": line}, raw=True)

    def flush(self) -> None:
        pass


def progress(total: int | None, what: str | None, unit: str = "it") -> tqdm:
    """Make a tqdm bar of `total` steps with rate and time left; use it in a `with` statement.

    Without a label (`what` is None) nothing is shown. In a terminal it goes to stderr, and only
    when that is a terminal, so logs stay short.
    """
    notebook = in_notebook() and what is not None
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        file=_NotebookLine() if notebook else sys.stderr,
        disable=(what is None) or (False if notebook else None),
        ncols=100,
        mininterval=0.5,
        dynamic_ncols=False,
    )


def each(items: Sequence, what: str | None, unit: str = "it") -> Iterator:
    """Yield the items one by one under a bar that shows the time left."""
    with progress(len(items), what, unit) as bar:
        for item in items:
            yield item
            bar.update()


def png(figure) -> bytes:
    """The figure as a PNG file's content, the same bytes for the same drawing."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def show_source(*things) -> None:
    """Display the source of functions or classes as highlighted code that unfolds on a click."""
    from IPython.display import HTML, display
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    for thing in things:
        code = inspect.getsource(thing)
        name = html.escape(f"{thing.__module__}.{thing.__qualname__}")
        body = highlight(code, PythonLexer(), HtmlFormatter(noclasses=True, style="friendly"))
        lines = len(code.splitlines())
        display(HTML(f"<details><summary>{name} ({lines} lines)</summary>{body}</details>"))


def show_tables(tables: Mapping[str, "pd.DataFrame"]) -> None:
    """Display data frames, title -> table, each of which unfolds on a click."""
    from IPython.display import HTML, display

    for title, table in tables.items():
        body = table.to_html(na_rep="", border=0, float_format="{:.4g}".format)
        display(HTML(f"<details><summary>{html.escape(title)}</summary>{body}</details>"))


def interactive(draw: Callable, controls: dict[str, "Widget"]) -> "VBox":
    """Controls over a picture that `draw` makes anew whenever one of them moves.

    The picture is an Image widget: an Output widget, as `interactive_output` uses, can make a
    headless run wait for ever, because nbclient takes part in filling it.
    """
    import matplotlib.pyplot as plt
    from ipywidgets import Image, VBox

    natural = {"align_self": "flex-start", "max_width": "100%"}  # a VBox would stretch it
    picture = Image(format="png", layout=natural)

    def redraw(change=None) -> None:
        figure = draw(**{name: control.value for name, control in controls.items()})
        picture.value = png(figure)
        plt.close(figure)

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    return VBox([*controls.values(), picture])
