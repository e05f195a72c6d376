"""Gather and scatter: the one place where tensors are cut to the kept channels and put back.

Both are pure functions on named tensors. They serve compaction, loading of compact checkpoints, the
optimiser's state over a compaction, and training steps on part of the channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from chanprune.channels.graph import Axis, ChannelGraph
from chanprune.channels.plan import Plan

State = dict[str, Tensor]


def gather(state: Mapping[str, Tensor], graph: ChannelGraph, plan: Plan) -> State:
    """Cut every tensor to the channels that `plan` keeps.

    Args:
        state: Tensor name -> tensor, shaped as in the original network; tensors that do not run
            over channels are passed on as they are.
        graph: The original network's graph.
        plan: What is kept.

    Returns:
        New tensors; `scatter` puts them back.
    """
    keep = graph.kept_mask(plan)
    axes = graph.axes()
    small: State = {}
    for name, tensor in state.items():
        index = _index(axes.get(name, ()), keep, tensor.device)
        small[name] = tensor if index is None else tensor[index]
    return small


def scatter(
    small: Mapping[str, Tensor], into: Mapping[str, Tensor], graph: ChannelGraph, plan: Plan
) -> State:
    """Write gathered tensors back to their places.

    Args:
        small: What `gather` returned, or tensors of the same shapes.
        into: Tensors of the original shapes, which supply the values of the dropped channels; they
            are not changed.
        graph: The original network's graph.
        plan: The plan of the gather.

    Returns:
        Tensors of the original shapes.
    """
    keep = graph.kept_mask(plan)
    axes = graph.axes()
    full: State = {}
    for name, tensor in small.items():
        index = _index(axes.get(name, ()), keep, tensor.device)
        if index is None:
            full[name] = tensor
        else:
            full[name] = into[name].clone()
            full[name][index] = tensor
    return full


def _index(
    axes: tuple[Axis, ...], keep: npt.NDArray[np.bool_], device: torch.device
) -> tuple[Tensor, ...] | None:
    """Build the indices of the kept rows and of each row's kept columns; None if all are kept."""
    if all(keep[axis.channels].all() for axis in axes):
        return None
    rows = np.flatnonzero(keep[axes[0].channels])
    indices = [rows] if len(axes) == 1 else [rows[:, None], _columns(axes[1], keep, len(rows))]
    device = torch.device("cpu") if device.type == "meta" else device
    return tuple(torch.from_numpy(index).to(device) for index in indices)


def _columns(axis: Axis, keep: npt.NDArray[np.bool_], num_rows: int) -> npt.NDArray[np.int64]:
    """Build (1, columns), or (rows, columns) where the blocks of a grouped convolution differ."""
    kept = np.flatnonzero(keep[axis.channels])
    if axis.blocks == 1:
        return kept[None]
    width = len(axis.channels) // axis.blocks
    by_block = kept.reshape(axis.blocks, -1) - np.arange(axis.blocks)[:, None] * width
    return by_block.repeat(num_rows // axis.blocks, axis=0)
