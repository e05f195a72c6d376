"""Gather, narrow, scatter and renumber: the one place where tensors are cut to channels.

They are pure functions on named tensors. They serve compaction, loading of compact checkpoints, the
optimiser's state over a compaction, training steps on part of the channels, and networks that run
with the first share of their channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from chanprune.channels.graph import ChannelGraph, Cut, KeptPositions
from chanprune.channels.layers import Axis, ChannelNumbers

State = dict[str, Tensor]


def gather(state: Mapping[str, Tensor], cut: Cut) -> State:
    """Cut every tensor to the channels that stay.

    Args:
        state: Tensor name -> tensor, shaped as in the original network; tensors that do not run
            over channels are passed on as they are.
        cut: Of the original network's graph.

    Returns:
        New tensors; `scatter` puts them back.
    """
    return {name: _gathered(tensor, cut.kept.get(name, ())) for name, tensor in state.items()}


def _gathered(tensor: Tensor, kept: KeptPositions) -> Tensor:
    if any(axis.blocks > 1 for axis, _ in kept):
        index = _index(kept, tensor.device)
        return tensor if index is None else tensor[index]
    for axis, positions in kept:
        if len(positions) < len(axis.channels):
            index_of = torch.from_numpy(positions).to(_index_device(tensor.device))
            tensor = tensor.index_select(axis.dim, index_of)
    return tensor


def narrow(state: Mapping[str, Tensor], cut: Cut) -> State:
    """Cut every tensor as `gather` does, without a copy wherever the first channels are kept.

    Args:
        state: As for `gather`.
        cut: As for `gather`.

    Returns:
        Views of the tensors; copies where what is kept is not at the front.
    """
    return {name: _narrowed(tensor, cut.kept.get(name, ())) for name, tensor in state.items()}


def _narrowed(tensor: Tensor, kept: KeptPositions) -> Tensor:
    for axis, positions in kept:
        is_whole = len(positions) == len(axis.channels)
        if not is_whole and (axis.blocks > 1 or positions[-1] != len(positions) - 1):
            index = _index(kept, tensor.device)
            assert index is not None
            return tensor[index]
    for axis, positions in kept:
        if axis.blocks == 1:
            tensor = tensor.narrow(axis.dim, 0, len(positions))
    return tensor


def scatter(small: Mapping[str, Tensor], into: Mapping[str, Tensor], cut: Cut) -> State:
    """Write gathered tensors back to their places.

    Args:
        small: What `gather` returned, or tensors of the same shapes.
        into: Tensors of the original shapes, which supply the values of the dropped channels; they
            are not changed.
        cut: That of the gather.

    Returns:
        Tensors of the original shapes.
    """
    full = {name: into[name].clone() for name in small}
    write(small, full, cut)
    return full


@torch.no_grad()
def write(small: Mapping[str, Tensor], into: Mapping[str, Tensor], cut: Cut) -> None:
    """Do what `scatter` does, in place: change `into`.

    Args:
        small: As for `scatter`.
        into: Tensors of the original shapes, changed in place.
        cut: As for `scatter`.
    """
    for name, tensor in small.items():
        index = _index(cut.kept.get(name, ()), tensor.device)
        if index is None:
            if into[name].data_ptr() != tensor.data_ptr():
                into[name].copy_(tensor)
        elif len(index) == 2 and into[name].is_contiguous():
            rows, columns = index
            places = (rows * into[name].shape[1] + columns).reshape(-1)
            kernels = into[name].view(-1, into[name][0, 0].numel())
            kernels.index_copy_(0, places, tensor.reshape(len(places), -1))
        else:
            into[name][index] = tensor


def renumber(
    state: Mapping[str, Tensor], graph: ChannelGraph, order: Mapping[str, Sequence[int]]
) -> State:
    """Change the order of channels: no. i of a group becomes what no. order[i] was.

    Args:
        state: Tensor name -> tensor, shaped as in the network that `graph` describes.
        graph: Its graph.
        order: Group name -> permutation of its channels; none of a group with several blocks.

    Returns:
        Tensors of the same shapes; new ones where something moved.
    """
    source = np.arange(graph.num_channels)
    for name, positions in order.items():
        group = graph.groups[name]
        source[group.numbers] = group.start + np.asarray(positions)
    axes = graph.axes
    moved = dict(state)
    for name, tensor in state.items():
        for axis in axes.get(name, ()):
            wanted = source[axis.channels]
            if not np.array_equal(wanted, axis.channels):
                index = torch.from_numpy(_places(axis.channels, wanted)).to(tensor.device)
                moved[name] = moved[name].index_select(axis.dim, index)
    return moved


def _places(channels: ChannelNumbers, wanted: ChannelNumbers) -> ChannelNumbers:
    """Find the position of each wanted channel; the k-th of a channel that repeats is its k-th."""
    places = np.empty(len(channels), dtype=np.int64)
    places[wanted.argsort(kind="stable")] = channels.argsort(kind="stable")
    return places


def _index(kept: KeptPositions, device: torch.device) -> tuple[Tensor, ...] | None:
    """Build the indices of the kept rows and of each row's kept columns; None if all are kept."""
    if all(len(positions) == len(axis.channels) for axis, positions in kept):
        return None
    rows = kept[0][1]
    indices = [rows] if len(kept) == 1 else [rows[:, None], _columns(*kept[1], len(rows))]
    return tuple(torch.from_numpy(index).to(_index_device(device)) for index in indices)


def _index_device(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "meta" else device


def _columns(axis: Axis, kept: ChannelNumbers, num_rows: int) -> ChannelNumbers:
    """Build (1, columns), or (rows, columns) where the blocks of a grouped convolution differ."""
    if axis.blocks == 1:
        return kept[None]
    width = len(axis.channels) // axis.blocks
    by_block = kept.reshape(axis.blocks, -1) - np.arange(axis.blocks)[:, None] * width
    return by_block.repeat(num_rows // axis.blocks, axis=0)
