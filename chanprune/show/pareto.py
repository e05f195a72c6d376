"""Accuracy against cost, as a rule MACs: what no other beats in both, and the picture of it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from chanprune.show.drawing import logarithmic, plt

WIDE_RANGE = 20  # of the cost; beyond, it is drawn on a logarithmic axis
Point = tuple[str, float, float]  # label, cost (MACs of one image), accuracy in [0, 1]
Axis = tuple[float, str]  # the unit of the cost, and its name
MACS: Axis = (1e6, "million MACs of one image")


def pareto(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in both cost and accuracy, by cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point[1], -point[2])):
        if not front or point[2] > front[-1][2]:
            front.append(point)
    return front


def _places(points: Sequence[Point], unit: float) -> tuple[list[float], list[float]]:
    return [point[1] / unit for point in points], [100 * point[2] for point in points]


def accuracy_over_cost(
    points: Sequence[Point],
    split: str,
    title: str = "",
    beside: Sequence[Point] = (),
    axis: Axis = MACS,
) -> Figure:
    """Draw all points, in a colour for each label, and a line through what no other beats.

    Args:
        points: What to draw.
        split: The split that the accuracies are of.
        title: Heading.
        beside: The same of the test set, which chooses nothing: drawn as rings.
        axis: Of the cost.

    Returns:
        A figure of pyplot's, which whoever saves it closes.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4.6))
    unit, name_of_cost = axis
    front = pareto(points)
    axes.plot(*_places(front, unit), color="#9aa5b1", zorder=1)
    for name in dict.fromkeys(point[0] for point in points):
        own = [point for point in points if point[0] == name]
        rings = [point for point in beside if point[0] == name]
        (dots,) = axes.plot(*_places(own, unit), "o", markersize=5, label=name)
        axes.plot(
            *_places(rings, unit), "o", markersize=5, fillstyle="none", color=dots.get_color()
        )
    costs = [point[1] for point in points]
    if max(costs, default=0) > WIDE_RANGE * min(costs, default=1):
        logarithmic(axes, "x")
    axes.set_xlabel(name_of_cost)
    axes.set_ylabel(f"{split} accuracy %")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.set_layout_engine("tight")
    return figure
