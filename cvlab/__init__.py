"""Helpers of the CV optimisation workbook, in four wings; imports go down only.

The kit, `cvlab/*.py`, is what every notebook stands on. A notebook begins with
`run = cvlab.start(...)`: meet `run` first, then `data`, `models`, `train`, and the clock, `bench`.
`cvlab.lessons` has a room for each notebook: 00 environment, 01 optimizers, 02 pooling,
03 pretrained, 04 search, 05 engines, 06 int8, 07 capstone.
`cvlab.exercises` answers back: `judge` compares a learner's function with a reference.
`cvlab.tools` runs the course: a maintainer starts at `tools/cli.py`, what `python -m cvlab` calls.
"""

from cvlab.run import start
from cvlab.show import show_source, show_tables

__all__ = ["show_source", "show_tables", "start"]
