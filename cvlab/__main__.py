"""`python -m cvlab`: see `cvlab.tools.cli`."""

import os
import sys

from cvlab.tools.cli import main


def _say_what_can_be_said() -> None:
    r"""No letter that a console does not know (cp1252, C) may cost a run its result.

    It is written as \u041a here, and in the processes that this one starts.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    encoding = os.environ.get("PYTHONIOENCODING", "").partition(":")[0]
    os.environ["PYTHONIOENCODING"] = f"{encoding}:backslashreplace"


if __name__ == "__main__":
    _say_what_can_be_said()
    sys.exit(main())
