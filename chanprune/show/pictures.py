"""Draw charts as PNG files: one function for each kind of chart."""

from __future__ import annotations

import math
from functools import singledispatch
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from chanprune.channels import find_cliff
from chanprune.files.writing import replace
from chanprune.show.charts import (
    AccuracyByShare,
    Chart,
    KeptChannels,
    Kernels,
    Levels,
    NumbersByEpoch,
    Profiles,
    SharesByEpoch,
    SortedScores,
)
from chanprune.show.drawing import logarithmic, plt, render

KEPT, ORIGINAL, CUT = "#2a6fbb", "#d5dbe3", "#c8442f"
DRAWN_FROM = 1e-6
LABELLED = 30
COLUMNS, LARGEST_GRID = 6, 24


def draw(chart: Chart, folder: Path, title: str) -> str:
    """Draw a chart; return the name of its file.

    Args:
        chart: What to draw.
        folder: Where the PNG file goes.
        title: Names the run.

    Raises:
        RunError: The file cannot be written.
    """
    heading = f"{title}: {chart.heading}" if title else chart.heading
    save(_figure(chart, heading), folder / chart.file)
    return chart.file


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a PNG file, and close it; raises as `draw` does."""
    figure.set_layout_engine("tight")
    replace(path, lambda part: render(figure, part, format="png", dpi=130))


@singledispatch
def _figure(chart: Chart, title: str) -> Figure:
    raise TypeError(f"{type(chart).__name__} is no chart that can be drawn")


@_figure.register
def _kept_channels(chart: KeptChannels, title: str) -> Figure:
    names = list(chart.widths)
    kept = [chart.widths[name][0] for name in names]
    original = [chart.widths[name][1] for name in names]
    is_crowded = len(names) > LABELLED
    width = 0.2 if is_crowded else 0.55
    figure, axes = plt.subplots(figsize=(min(30.0, max(6.0, width * len(names) + 2)), 4.2))
    places = np.arange(len(names))
    axes.bar(places, original, color=ORIGINAL, width=0.8, label="original")
    axes.bar(places, kept, color=KEPT, width=0.8, label="kept")
    for place, count, whole in zip(places, kept, original, strict=True):
        if is_crowded:
            break
        axes.annotate(
            f"{count}",
            (place, max(count, 0.02 * max(original))),
            ha="center",
            va="bottom",
            fontsize=8,
            color="black" if count < 0.9 * whole else KEPT,
        )
    size = 6 if is_crowded else 8
    labels = [short(name) for name in names]
    axes.set_xticks(places, labels, rotation=90 if is_crowded else 60, ha="right", fontsize=size)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_ylabel("channels")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


@_figure.register
def _sorted_scores(chart: SortedScores, title: str) -> Figure:
    values = np.sort(np.asarray(chart.scores, dtype=np.float64))
    share = np.arange(1, len(values) + 1) / len(values) * 100
    figure, axes = plt.subplots(figsize=(6.6, 4.2))
    axes.plot(share, np.maximum(values, DRAWN_FROM), color=KEPT, linewidth=1.8)
    logarithmic(axes, "y")
    if math.isfinite(chart.threshold):
        cut = 100 * chart.removed / len(values)
        axes.axvspan(0, cut, color=CUT, alpha=0.08, linewidth=0)
        axes.axvline(cut, color=CUT, linewidth=1)
        axes.annotate(
            f"pruned: {cut:.1f} %, threshold {chart.threshold:.2g}",
            (cut, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-4, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=9,
            color=CUT,
        )
    cliff = find_cliff(values)
    if cliff is not None:
        axes.annotate(
            f"cliff at {share[cliff]:.0f} %",
            (share[cliff], max(values[cliff], DRAWN_FROM)),
            xytext=(-60, 25) if share[cliff] > 40 else (30, -20),
            textcoords="offset points",
            fontsize=9,
            arrowprops={"arrowstyle": "->", "linewidth": 0.8},
            bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1},
        )
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"channels, sorted by {chart.what} (%)")
    axes.set_ylabel(chart.what)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


@_figure.register
def _profiles(chart: Profiles, title: str) -> Figure:
    colours = plt.get_cmap("viridis")
    figure, grid = plt.subplots(
        1,
        len(chart.panels),
        figsize=(max(6.6, 3.6 * len(chart.panels)), 4.2),
        sharey=True,
        squeeze=False,
    )
    for axes, (panel, groups) in zip(grid[0], chart.panels.items(), strict=True):
        last = max(1, len(groups) - 1)
        is_crowded = len(groups) > LABELLED
        for number, (name, scales) in enumerate(groups.items()):
            places = (np.arange(len(scales)) + 0.5) / len(scales) * 100
            axes.plot(
                places,
                scales,
                color=colours(0.95 * number / last),
                linewidth=0.5 if is_crowded else 1.1,
                alpha=0.5 if is_crowded else 0.9,
                label=short(name) if number in (0, len(groups) - 1) else None,
            )
        axes.set_xlim(0, 100)
        axes.set_xlabel(chart.order)
        axes.set_title(panel, fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylim(bottom=0)
    grid[0][0].set_ylabel(chart.what)
    grid[0][-1].legend(frameon=False, fontsize=8, title="first and last layer", title_fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


@_figure.register
def _levels(chart: Levels, title: str) -> Figure:
    figure, axes = plt.subplots(figsize=(6.6, 4.2))
    for label, levels in chart.curves.items():
        macs = [level["macs"] / 1e6 for level in levels]
        accuracy = [100 * level["test_accuracy"] for level in levels]
        (line,) = axes.plot(macs, accuracy, marker="o", markersize=4, linewidth=1.5, label=label)
        for level, x, y in zip(levels, macs, accuracy, strict=True):
            axes.annotate(
                f"{100 * level['fidelity']:g} %",
                (x, y),
                xytext=(4, -10),
                textcoords="offset points",
                fontsize=7,
                color=line.get_color(),
            )
    logarithmic(axes, "x")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08, y=0.1)  # the labels beside the outermost points
    axes.set_xlabel("MACs of one image (millions)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.14))
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


@_figure.register
def _shares_by_epoch(chart: SharesByEpoch, title: str) -> Figure:
    colours = plt.get_cmap("viridis")
    x = chart.epochs
    what, whole = chart.whole
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(6.6, 5.2), sharex=True, height_ratios=(1, 2)
    )
    top.plot(x, [100 * share for share in whole], marker="o", markersize=3)
    top.set_ylabel(f"{what} (%)")
    top.set_ylim(bottom=0)
    last = len(chart.groups) - 1
    for number, (name, shares) in enumerate(chart.groups.items()):
        bottom.plot(
            x,
            [100 * share for share in shares],
            color=colours(0.95 * number / max(1, last)),
            label=short(name) if number in (0, last) else None,
        )
    bottom.set_ylim(0, 103)
    bottom.set_ylabel(f"{chart.of_groups} (%)")
    bottom.set_xlabel("epoch of training")
    bottom.legend(frameon=False, fontsize=8, title="first and last layer", title_fontsize=8)
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    return figure


@_figure.register
def _accuracy_by_share(chart: AccuracyByShare, title: str) -> Figure:
    figure, axes = plt.subplots(figsize=(6.6, 4.2))
    for label, by_share in chart.curves.items():
        shares = sorted(by_share)
        (line,) = axes.plot(
            [100 * share for share in shares],
            [100 * float(np.mean(by_share[share])) for share in shares],
            linewidth=1.5,
            label=label,
        )
        for share in shares:
            values = [100 * value for value in by_share[share]]
            axes.plot([100 * share] * len(values), values, ".", color=line.get_color())
    axes.set_xlabel("active channels (%)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


@_figure.register
def _numbers_by_epoch(chart: NumbersByEpoch, title: str) -> Figure:
    tallest = max(map(len, chart.panels.values()))
    figure, all_axes = plt.subplots(
        1,
        len(chart.panels),
        figsize=(2 + 4.2 * len(chart.panels), min(16.0, 1.8 + 0.13 * tallest)),
        squeeze=False,
    )
    epochs = (chart.epochs[0] - 0.5, chart.epochs[-1] + 0.5)
    for axes, (what, numbers) in zip(all_axes[0], chart.panels.items(), strict=True):
        layers, table = list(numbers), np.array(list(numbers.values()))
        extent = (*epochs, len(layers) - 0.5, -0.5)
        image = axes.imshow(table, aspect="auto", cmap="magma_r", extent=extent, vmin=0)
        figure.colorbar(image, ax=axes, label="channels", ticks=MaxNLocator(integer=True))
        every = -(-len(layers) // LABELLED)
        axes.set_yticks(
            range(0, len(layers), every), [short(n) for n in layers[::every]], fontsize=6
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(chart.when)
        axes.set_title(f"{what}: {int(table.sum()):,} in all", fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


@_figure.register
def _kernels(chart: Kernels, title: str) -> Figure:
    names = list(chart.fields)
    shown = names[:: -(-len(names) // LARGEST_GRID)]
    rows = -(-len(shown) // COLUMNS)
    figure, grid = plt.subplots(
        rows, COLUMNS, figsize=(1.7 * COLUMNS, 1.9 * rows + 0.6), squeeze=False
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, shown, strict=False):
        field = chart.fields[name]
        middle = len(field) // 2
        own = field[middle, middle].item()
        around = field.copy()
        around[middle, middle] = 0
        axes.imshow(around, cmap="magma_r", vmin=0)
        axes.set_title(f"{short(name)}\n{own / field.sum().item():.1%} in the middle", fontsize=6)
    figure.suptitle(f"{title}\nweight beside the middle pixel, whose own is left out", fontsize=9)
    return figure


def short(name: str) -> str:
    """Return a layer's name without what all of them begin with."""
    return name.removeprefix("features.").removeprefix("stages.")
