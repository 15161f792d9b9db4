"""A progress bar that is one line everywhere: a terminal, a notebook, a headless run."""

import sys
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from cvlab.paths import in_notebook


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
