"""Folded things in a notebook: sources, so that thin never means hidden, and long tables."""

import html
import inspect
from collections.abc import Mapping

import pandas as pd


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


def show_tables(tables: Mapping[str, pd.DataFrame]) -> None:
    """Display data frames, title -> table, each of which unfolds on a click."""
    from IPython.display import HTML, display

    for title, table in tables.items():
        body = table.to_html(na_rep="", border=0, float_format="{:.4g}".format)
        display(HTML(f"<details><summary>{html.escape(title)}</summary>{body}</details>"))
