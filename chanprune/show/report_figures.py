"""Figures over many runs: accuracy over MACs and over the prune ratio, scales, kept channels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chanprune.show.drawing import logarithmic, plt
from chanprune.show.pareto import accuracy_over_cost

SMALLEST_SCALE = 1e-6
MOST_CURVES, MOST_PANELS = 8, 6


@dataclass(frozen=True)
class Drawn:
    """What the figures show of a run.

    Attributes:
        label: The row that it belongs to.
        network: Data set and network.
        method: Name of the method.
        macs: Multiply-accumulates of one image.
        accuracy: On the held-out part of the training set, in [0, 1].
        test_accuracy: On the test set, in [0, 1].
        weight: Sparsity weight or travel, in words; "" of a method without, and where a budget
            decided how many channels went.
        ratio: Share of the channels that went.
        scores: Channel group -> what its channels were chosen by; empty if nothing was pruned.
        kept: Channel group -> number of channels that stayed.
        by_scale: Whether the scores are batch-norm scales.
        is_control: Whether it shows what another run would have come to by simpler means.
    """

    label: str
    network: str
    method: str
    macs: float
    accuracy: float
    test_accuracy: float
    weight: str = ""
    ratio: float = 0.0
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)
    by_scale: bool = True
    is_control: bool = False


def figures(runs: Sequence[Drawn]) -> dict[str, tuple[Figure, str]]:
    """Draw what there is to draw; return file name -> figure and caption. Close the figures."""
    drawn = {
        "accuracy_over_macs": (
            accuracy_over_cost(
                [(run.method, run.macs, run.accuracy) for run in runs],
                "validation",
                beside=[(run.method, run.macs, run.test_accuracy) for run in runs],
            ),
            "Validation accuracy over multiply-accumulates of one image; the line joins the runs "
            "that no other beats in both. Rings: the same on the test set.",
        )
    }
    sparse = [run for run in runs if run.weight]
    swept = _panels(sparse, lambda own: len({run.ratio for run in own}) > 1)
    if swept:
        drawn["accuracy_over_ratio"] = (
            accuracy_over_ratio(swept),
            "Validation accuracy over the share of the channels that went; a line through the "
            "means over seeds for each sparsity weight. Rings: the same on the test set.",
        )
    scored = _panels([run for run in sparse if run.scores and run.by_scale], bool)
    if scored:
        drawn["scales"] = (
            scale_histograms(scored),
            "Batch-norm scales at the end of training, for each sparsity weight: useful weights "
            f"leave a gap. Below {SMALLEST_SCALE:g} all count as the smallest.",
        )
    pruned = _panels([run for run in runs if run.kept], bool)
    if pruned:
        drawn["kept_channels"] = (
            kept_channels(pruned),
            "Channels kept of each channel group, from the network's input to its output; one run "
            f"for each configuration, at most {MOST_CURVES}, but no control of its widths.",
        )
    return drawn


def _panels(runs: Iterable[Drawn], wanted: object) -> dict[str, list[Drawn]]:
    """Sort runs by network, for the first networks of which something is wanted."""
    panels: dict[str, list[Drawn]] = {}
    for run in runs:
        panels.setdefault(run.network, []).append(run)
    assert callable(wanted)
    return dict([item for item in panels.items() if wanted(item[1])][:MOST_PANELS])


def accuracy_over_ratio(panels: Mapping[str, Sequence[Drawn]]) -> Figure:
    """Draw accuracy over the prune ratio, a panel for each network, a curve for each weight."""
    figure, grid = _grid(panels)
    for axes, runs in zip(grid, panels.values(), strict=False):
        for weight in sorted({run.weight for run in runs}):
            own = [run for run in runs if run.weight == weight]
            by_ratio: dict[float, list[float]] = {}
            for run in own:
                by_ratio.setdefault(run.ratio, []).append(100 * run.accuracy)
            ratios = sorted(by_ratio)
            means = [float(np.mean(by_ratio[ratio])) for ratio in ratios]
            (line,) = axes.plot([100 * ratio for ratio in ratios], means, label=weight)
            places = [100 * run.ratio for run in own]
            colour = line.get_color()
            axes.plot(places, [100 * run.accuracy for run in own], ".", color=colour)
            test = [100 * run.test_accuracy for run in own]
            axes.plot(places, test, "o", color=colour, fillstyle="none", markersize=4)
        axes.set_xlabel("channels pruned %")
        axes.set_ylabel("validation accuracy %")
        axes.legend(frameon=False, fontsize=8)
    return _finished(figure)


def scale_histograms(panels: Mapping[str, Sequence[Drawn]]) -> Figure:
    """Draw how the scales are distributed, one run for each sparsity weight."""
    figure, grid = _grid(panels)
    for axes, runs in zip(grid, panels.values(), strict=False):
        first = {run.weight: run for run in reversed(runs)}
        by_weight = {
            weight: np.concatenate([np.asarray(scores) for scores in run.scores.values()])
            for weight, run in sorted(first.items())
        }
        top = max(float(scales.max()) for scales in by_weight.values())
        last = math.log10(max(10 * SMALLEST_SCALE, top))
        edges = np.logspace(math.log10(SMALLEST_SCALE), last, 50).tolist()
        for weight, scales in by_weight.items():
            share = np.full(len(scales), 100 / len(scales))
            clipped = np.clip(scales, SMALLEST_SCALE, top)
            axes.hist(clipped, edges, weights=share, histtype="step", linewidth=1.4, label=weight)
        logarithmic(axes, "x")
        axes.set_xlabel("|batch-norm scale|")
        axes.set_ylabel("channels %")
        axes.legend(frameon=False, fontsize=8)
    return _finished(figure)


def kept_channels(panels: Mapping[str, Sequence[Drawn]]) -> Figure:
    """Draw the share of its channels that each channel group keeps, one run for each row."""
    figure, grid = _grid(panels, most_columns=1)
    for axes, runs in zip(grid, panels.values(), strict=False):
        first: dict[str, Drawn] = {}
        for run in runs:
            first.setdefault(run.label, run)
        curves: dict[tuple[float, ...], str] = {}
        for label, run in sorted(first.items(), key=lambda item: item[1].is_control):
            shares = (100 * run.kept[name] / len(scores) for name, scores in run.scores.items())
            curves.setdefault(tuple(shares), label)
        for curve, label in list(curves.items())[:MOST_CURVES]:
            axes.plot(range(1, len(curve) + 1), curve, marker=".", linewidth=1.1, label=label)
        axes.set_ylim(0, 103)
        axes.set_xlabel("channel group, from input to output")
        axes.set_ylabel("channels kept %")
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.2))
    return _finished(figure)


def _grid(panels: Mapping[str, object], most_columns: int = 2) -> tuple[Figure, list[Axes]]:
    """Return a figure with titled axes, one for each panel."""
    columns = min(most_columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(7.5, 4.4 * rows), squeeze=False, layout="constrained"
    )
    axes = list(grid.flat)
    for each, title in zip(axes, panels, strict=False):
        each.set_title(title, fontsize=10)
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    return figure, axes


def _finished(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure
