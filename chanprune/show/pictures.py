"""Pictures of a run: which channels stayed, and where the scales were cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from chanprune.channels import find_cliff
from chanprune.files.writing import replace
from chanprune.show.drawing import logarithmic, plt, render

KEPT, ORIGINAL, CUT = "#2a6fbb", "#d5dbe3", "#c8442f"
DRAWN_FROM = 1e-6
LABELLED = 30


def draw_kept_channels(path: Path, widths: Mapping[str, tuple[int, int]], title: str) -> None:
    """Draw the channels kept of each channel group.

    Args:
        path: PNG file to write.
        widths: Group name -> (kept, original).
        title: Heading.
    """
    names = list(widths)
    kept = [widths[name][0] for name in names]
    original = [widths[name][1] for name in names]
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
    save(figure, path)


def draw_sorted_scales(
    path: Path,
    scales: Sequence[float],
    num_removed: int,
    threshold: float,
    title: str,
    score: str = "|batch-norm scale|",
) -> None:
    """Draw all scales in ascending order, the cut, and the cliff where one shows.

    Args:
        path: PNG file to write.
        scales: Score of every channel that could be pruned.
        num_removed: How many went.
        threshold: The largest that went; nan if none did.
        title: Heading.
        score: What is drawn.
    """
    values = np.sort(np.asarray(scales, dtype=np.float64))
    share = np.arange(1, len(values) + 1) / len(values) * 100
    figure, axes = plt.subplots(figsize=(6.6, 4.2))
    axes.plot(share, np.maximum(values, DRAWN_FROM), color=KEPT, linewidth=1.8)
    logarithmic(axes, "y")
    if math.isfinite(threshold):
        cut = 100 * num_removed / len(values)
        axes.axvspan(0, cut, color=CUT, alpha=0.08, linewidth=0)
        axes.axvline(cut, color=CUT, linewidth=1)
        axes.annotate(
            f"pruned: {cut:.1f} %, threshold {threshold:.2g}",
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
    axes.set_xlabel(f"channels, sorted by {score} (%)")
    axes.set_ylabel(score)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def draw_scales_by_channel(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    title: str,
    score: str = "|batch-norm scale|",
    order: str = "channel, from first to last (%)",
) -> None:
    """Draw the scores of every channel group over the channel's place, first to last.

    Args:
        path: PNG file to write.
        panels: Panel title -> group name -> scores of its channels, in the network's order.
        title: Heading.
        score: What is drawn.
        order: What the order of the channels means.
    """
    colours = plt.get_cmap("viridis")
    figure, grid = plt.subplots(
        1, len(panels), figsize=(max(6.6, 3.6 * len(panels)), 4.2), sharey=True, squeeze=False
    )
    for axes, (panel, groups) in zip(grid[0], panels.items(), strict=True):
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
        axes.set_xlabel(order)
        axes.set_title(panel, fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylim(bottom=0)
    grid[0][0].set_ylabel(score)
    grid[0][-1].legend(frameon=False, fontsize=8, title="first and last layer", title_fontsize=8)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def draw_levels(path: Path, curves: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> None:
    """Draw accuracy over MACs, a curve through the fidelity levels of each network.

    Args:
        path: PNG file to write.
        curves: Label -> its levels, each with "fidelity", "test_accuracy" in [0, 1] and "macs".
        title: Heading.
    """
    figure, axes = plt.subplots(figsize=(6.6, 4.2))
    for label, levels in curves.items():
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
    save(figure, path)


def draw_active_channels(path: Path, metrics: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw how much of the active set changed, and how wide the groups were, epoch by epoch.

    Nothing is drawn of a run whose method executes all channels.

    Args:
        path: PNG file to write.
        metrics: Lines of metrics.jsonl.
        title: Heading.
    """
    epochs = [line for line in metrics if "churn" in line]
    if not epochs:
        return
    colours = plt.get_cmap("viridis")
    x = [line["epoch"] for line in epochs]
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(6.6, 5.2), sharex=True, height_ratios=(1, 2)
    )
    top.plot(x, [100 * line["churn"] for line in epochs], marker="o", markersize=3)
    top.set_ylabel("replaced at a choice (%)")
    top.set_ylim(bottom=0)
    shares = [key for key in epochs[0] if key.startswith("active_share.")]
    for number, key in enumerate(shares):
        bottom.plot(
            x,
            [100 * line[key] for line in epochs],
            color=colours(0.95 * number / max(1, len(shares) - 1)),
            label=short(key.partition(".")[2]) if number in (0, len(shares) - 1) else None,
        )
    bottom.set_ylim(0, 103)
    bottom.set_ylabel("active channels of each group (%)")
    bottom.set_xlabel("epoch of training")
    bottom.legend(frameon=False, fontsize=8, title="first and last layer", title_fontsize=8)
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def draw_shares(
    path: Path, curves: Mapping[str, Mapping[float, Sequence[float]]], title: str
) -> None:
    """Draw accuracy over the active share, a curve for each method.

    Args:
        path: PNG file to write.
        curves: Label -> active share, in (0, 1] -> test accuracies, in [0, 1], of all seeds.
        title: Heading.
    """
    figure, axes = plt.subplots(figsize=(6.6, 4.2))
    for label, by_share in curves.items():
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
    save(figure, path)


def short(name: str) -> str:
    """Return a layer's name without what all of them begin with."""
    return name.removeprefix("features.").removeprefix("stages.")


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a PNG file, and close it; raises as `replace` does."""
    figure.set_layout_engine("tight")
    replace(path, lambda part: render(figure, part, format="png", dpi=130))
