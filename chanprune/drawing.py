"""matplotlib as every picture takes it: into files, and texts as they are, not as mathematics.

Names of classes, folders and layers may hold what matplotlib would read as a formula.
"""

from __future__ import annotations

from typing import Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

mpl.use("Agg")
from matplotlib import pyplot as plt

mpl.rcParams["text.parse_math"] = False

__all__ = ["logarithmic", "plt"]


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with plain numbers at it."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(LogFormatter())
