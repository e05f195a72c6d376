"""The picture of a benchmark: how long each way to a network's outputs takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from chanprune.show.drawing import plt

COLOURS = {"dense": "#9aa5b1", "masked": "#d5dbe3", "compact": "#2a6fbb"}
DUE = "#c8442f"
Bar = tuple[str, str, float, float, float]  # label, network, median, lower and upper quartile (s)


def times(panels: Mapping[str, Sequence[Bar]], due: Mapping[str, float], title: str) -> Figure:
    """Draw bars of medians with quartiles, a panel for each number of images and threads.

    Args:
        panels: Heading -> its bars.
        due: Heading -> the seconds that the compact network would take if time followed MACs;
            nothing where that is not known.
        title: Names the run.

    Returns:
        A figure of pyplot's, which whoever saves it closes.
    """
    most = max(len(bars) for bars in panels.values())
    height = 0.9 + len(panels) * (0.5 + 0.32 * most)
    figure, grid = plt.subplots(len(panels), 1, figsize=(7.5, height), squeeze=False)
    for axes, (heading, bars) in zip(grid[:, 0], panels.items(), strict=True):
        for place, (_, network, median, low, high) in enumerate(bars):
            spread = [[1000 * max(0.0, median - low)], [1000 * max(0.0, high - median)]]
            axes.barh(place, 1000 * median, color=COLOURS[network], height=0.7)
            axes.errorbar(1000 * median, place, xerr=spread, color="black", capsize=2, linewidth=1)
        if heading in due:
            label = "time of dense x share of MACs"
            axes.axvline(1000 * due[heading], color=DUE, linewidth=1, label=label)
            axes.legend(frameon=False, fontsize=8, loc="lower right")
        axes.set_yticks(range(len(bars)), [label for label, *_ in bars], fontsize=8)
        axes.invert_yaxis()
        axes.set_title(heading, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    grid[-1, 0].set_xlabel("ms, median and quartiles")
    figure.suptitle(title, fontsize=10)
    return figure
