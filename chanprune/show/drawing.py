"""matplotlib as every picture takes it: into files, and texts as they are, not as mathematics.

Names of classes, folders and layers may hold what matplotlib would read as a formula.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO, Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

mpl.use("Agg")
from matplotlib import pyplot as plt

mpl.rcParams["text.parse_math"] = False
mpl.rcParams["svg.hashsalt"] = "chanprune"  # the same figure is the same file

__all__ = ["logarithmic", "plt", "render"]


def render(figure: Figure, target: Path | IO[str], **options: Any) -> None:
    """Write a figure and close it; a character that the font lacks is a box, without a word.

    Args:
        figure: One of pyplot's.
        target: The file.
        options: As `Figure.savefig` takes them.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(target, **options)
    finally:
        plt.close(figure)


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with plain numbers at it."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(LogFormatter())
