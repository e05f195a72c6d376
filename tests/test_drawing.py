"""Texts in pictures are what they are: no name is read as mathematics."""

import ast
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chanprune.show import charts
from chanprune.show.drawing import logarithmic, plt
from chanprune.show.pareto import accuracy_over_cost
from chanprune.show.pictures import draw
from chanprune.show.report_figures import Drawn, figures
from chanprune.show.report_page import _as_svg

ROOT = Path(__file__).parents[1]
NAMES = ["p$_$^{x", "$\\frac{1}$ \\$x$", "$$ a_b^c \N{CJK UNIFIED IDEOGRAPH-65E5}\a\n"]
RUN = {
    "macs": 1e6,
    "accuracy": 0.9,
    "test_accuracy": 0.8,
    "ratio": 0.5,
    "scores": {"a": [1e-3, 0.5]},
    "kept": {"a": 1},
}


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_drawn(name, tmp_path):
    level = {"fidelity": 1.0, "test_accuracy": 0.5, "macs": 1e6}
    kinds = {
        charts.KeptChannels: [{name: (1, 2)}],
        charts.SortedScores: [[1e-6, 0.1, 0.5], 1, 1e-6, name],
        charts.Profiles: [{name: {name: [0.1, 0.2]}}, name, name],
        charts.Levels: [{name: [level]}],
        charts.AccuracyByShare: [{name: {0.5: [0.9]}}],
        charts.SharesByEpoch: [[1, 2], (name, [0.5, 0.5]), {name: [0.5, 1.0]}, name],
        charts.NumbersByEpoch: [[1, 2], {name: {name: [0, 2]}}, name],
        charts.Kernels: [{name: np.eye(3, dtype=np.float32)}],
    }
    assert set(kinds) == set(charts.Chart.__subclasses__())
    for kind, values in kinds.items():
        drawn = draw(kind("x", name, *values), tmp_path, name)
        with Image.open(tmp_path / drawn) as picture:
            picture.load()
        (tmp_path / drawn).unlink()


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_reported(name):
    run = Drawn(name, name, name, weight=name, **RUN)
    drawn = [*(figure for figure, _ in figures([run]).values())]
    drawn.append(accuracy_over_cost([(name, 1e6, 0.5), (name, 1e9, 0.9)], name, name))
    for figure in drawn:
        assert "<svg" in _as_svg(figure)


@pytest.mark.parametrize("values", [(1e-6, 1.0), (0.4, 0.5), (3e6, 4e9)])
def test_a_logarithmic_axis_has_plain_numbers(values):
    figure, axes = plt.subplots()
    for which in ("x", "y"):
        logarithmic(axes, which)
    axes.plot(values, values)
    figure.canvas.draw()
    for axis in (axes.xaxis, axes.yaxis):
        texts = [label.get_text() for label in axis.get_ticklabels(which="both")]
        told = [float(text.replace("\N{MINUS SIGN}", "-")) for text in texts if text]
        assert told and min(told) <= values[1] and max(told) >= values[0]
    plt.close(figure)


def test_all_pictures_are_drawn_with_it():
    """Nothing else imports pyplot, in the package or the scripts."""
    for folder in ("chanprune", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(Path(path).read_text(encoding="utf-8"))
            named = {
                f"{node.module}.{alias.name}"
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            named |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            assert "matplotlib.pyplot" not in named or path.name == "drawing.py", path
