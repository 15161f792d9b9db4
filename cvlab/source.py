"""Show a helper's source in a notebook, folded, so that thin never means hidden."""

import html
import inspect


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
