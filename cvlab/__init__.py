"""Helpers of the CV optimisation workbook, in four wings; imports go down only.

The kit, `cvlab/*.py`, is what every notebook stands on. A notebook begins with
`run = cvlab.start(...)`: meet `run` first, then `data`, `models`, `train`, and the clock, `bench`.
`cvlab.lessons` has a room for each notebook: 00 environment, 01 optimizers, 02 pooling,
03 pretrained, 04 search, 05 engines, 06 int8, 07 capstone, 08 smaller, 09 fast.
`cvlab.exercises` answers back: `judge` compares a learner's function with a reference.
`cvlab.tools` runs the course: a maintainer starts at `tools/cli.py`, what `python -m cvlab` calls.

OpenMP's threads spin while they wait, which makes torch up to many times slower beside other busy
programs. As long as torch is not there yet, the import lets them sleep sooner, in this process and
those that it starts.
"""

import os
import sys
import warnings

if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # clang's and Intel's: sleep at once
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # gcc's: after some ten microseconds
elif "OMP_WAIT_POLICY" not in os.environ:
    warnings.warn(
        "torch was imported before cvlab, so its threads spin while they wait: beside another busy "
        "program all will be slow. Restart, and import cvlab first or set OMP_WAIT_POLICY=passive.",
        stacklevel=2,
    )

from cvlab.run import start
from cvlab.show import show_source, show_tables

__all__ = ["show_source", "show_tables", "start"]
