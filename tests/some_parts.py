"""Parts of `gpu-check` for its tests; each runs in a process, which imports no more than this."""

import os
import time

from cvlab.tools import gpu_check


def works(given):
    yield gpu_check.number("seen", 3, "things", n=1)
    yield gpu_check.holds("it is true", True)


def is_wrong(given):
    yield gpu_check.holds("it is true", False)


def breaks(given):
    yield from works(given)
    raise ZeroDivisionError("by\nzero")


def dies(given):
    yield from works(given)
    os._exit(3)


def hangs(given):
    time.sleep(600)
    yield
