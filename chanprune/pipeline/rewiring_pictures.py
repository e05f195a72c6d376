"""Pictures of selective convolution: what was released and copied, and where kernels look now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from chanprune.rewiring import Copying
from chanprune.rewiring.shift import hat_kernels, radius_of
from chanprune.show.drawing import plt
from chanprune.show.pictures import LABELLED, save, short

COLUMNS = 6
LARGEST_GRID = 24


def draw_rewirings(path: Path, metrics: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw how many channels each layer released and re-allocated, epoch by epoch.

    Nothing is drawn of a run that never released any.

    Args:
        path: PNG file to write.
        metrics: Lines of metrics.jsonl.
        title: Heading.
    """
    panels = {}
    for what in ("released", "reallocated"):
        layers = list(dict.fromkeys(k for x in metrics for k in x if k.startswith(f"{what}.")))
        table = np.array([[line.get(layer, 0) for line in metrics] for layer in layers])
        if table.size and table.any():
            panels[what] = [layer.partition(".")[2] for layer in layers], table
    if not panels:
        return
    tallest = max(len(layers) for layers, _ in panels.values())
    figure, all_axes = plt.subplots(
        1,
        len(panels),
        figsize=(2 + 4.2 * len(panels), min(16.0, 1.8 + 0.13 * tallest)),
        squeeze=False,
    )
    epochs = (metrics[0]["epoch"] - 0.5, metrics[-1]["epoch"] + 0.5)
    for axes, (what, (layers, table)) in zip(all_axes[0], panels.items(), strict=True):
        extent = (*epochs, len(layers) - 0.5, -0.5)
        image = axes.imshow(table, aspect="auto", cmap="magma_r", extent=extent, vmin=0)
        figure.colorbar(image, ax=axes, label="channels", ticks=MaxNLocator(integer=True))
        every = -(-len(layers) // LABELLED)
        axes.set_yticks(
            range(0, len(layers), every), [short(n) for n in layers[::every]], fontsize=6
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("in front of epoch")
        axes.set_title(f"{what}: {int(table.sum()):,} in all", fontsize=9)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def draw_fields(path: Path, model: nn.Module, convs: Mapping[str, str], title: str) -> None:
    """Draw where the columns of pointwise convolutions look: the kernels that copies make of them.

    Of each layer the absolute weights are summed over outputs and inputs, each where its shift
    points; the middle is what looks at its own pixel. Nothing is drawn of a network without copies.

    Args:
        path: PNG file to write.
        model: The network.
        convs: Batch norm -> the convolution behind it.
        title: Heading.
    """
    fields = {}
    for name, norm in model.named_modules():
        if isinstance(norm, Copying) and len(norm.copies) and name in convs:
            conv = model.get_submodule(convs[name])
            assert isinstance(conv, nn.Conv2d)
            fields[convs[name]] = field_of(norm, conv.weight)
    shown = list(fields)[:: -(-len(fields) // LARGEST_GRID)] if fields else []
    if not shown:
        return
    rows = -(-len(shown) // COLUMNS)
    figure, grid = plt.subplots(
        rows, COLUMNS, figsize=(1.7 * COLUMNS, 1.9 * rows + 0.6), squeeze=False
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, shown, strict=False):
        field = fields[name]
        middle = len(field) // 2
        own = field[middle, middle].item()
        around = field.clone()
        around[middle, middle] = 0
        axes.imshow(around.numpy(), cmap="magma_r", vmin=0)
        axes.set_title(f"{short(name)}\n{own / field.sum().item():.1%} in the middle", fontsize=6)
    figure.suptitle(f"{title}\nweight beside the middle pixel, whose own is left out", fontsize=9)
    save(figure, path)


@torch.no_grad()
def field_of(norm: Copying, weight: Tensor) -> Tensor:
    """Return the absolute weight (2R + 1, 2R + 1) that a 1x1 convolution puts on each neighbour.

    Args:
        norm: The batch norm in front of it.
        weight: (O, C, 1, 1) of the convolution.
    """
    shift = torch.zeros(len(norm.index), 2)
    own = norm.shift.detach().cpu().float()
    shift[norm.copies.cpu()] = own if len(own) == len(norm.copies) else own[norm.copies.cpu()]
    kernels = hat_kernels(shift, radius_of(shift))
    return torch.einsum("c,chw->hw", weight.abs().sum((0, 2, 3)).cpu().float(), kernels)
