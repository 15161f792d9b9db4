"""Helpers of the CV optimisation workbook. Each module has one job; read them in any order.

A notebook begins with `run = cvlab.start(...)`; everything else is imported from its module.
"""

from cvlab.run import start
from cvlab.show import show_source, show_tables

__all__ = ["show_source", "show_tables", "start"]
