"""Which channels stay when a plan is carried out, with all that it implies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from chanprune.channels.emptied import what_remains
from chanprune.channels.layers import ChannelGroup, Layer, Mask
from chanprune.channels.plan import Plan

Groups = Mapping[str, ChannelGroup]
Layers = Mapping[str, Layer]


def kept_mask(groups: Groups, layers: Layers, plan: Plan) -> Mask:
    """Return (num_channels,) True where the channel stays.

    Where a plan keeps no channel of a group, what only this group fed goes as well: the rest of a
    residual branch, the channels that a dense layer appends.

    Raises:
        ValueError: The plan names a group that there is not, prunes a fixed one, keeps a channel
            that the group lacks, or keeps unequal numbers in the blocks of a grouped convolution.
    """
    mask = np.ones(sum(group.size for group in groups.values()), dtype=bool)
    for name, kept in plan.kept.items():
        if name not in groups:
            known = ", ".join(groups)
            raise ValueError(f"the plan names the channel group {name!r}; known: {known}")
        group = groups[name]
        _check_kept(group, kept)
        if not group.is_stream:
            mask[group.numbers] = _own_mask(group, kept)
    if emptied(groups, plan):
        mask = what_remains(layers.values(), mask, _channels_that_stay(groups, len(mask)))
    streams = [name for name in plan.kept if groups[name].is_stream]
    unread = mask & ~read_mask(layers, mask) if streams else mask
    for name in streams:
        own, left = groups[name].numbers, _own_mask(groups[name], plan.kept[name])
        if (mask[own] & ~unread[own] & ~left).any() or (left & ~mask[own]).any():
            raise ValueError(f"the channel group {name!r} must stay whole: {groups[name].fixed}")
        mask[own] = left
    return mask


def read_mask(layers: Layers, mask: Mask) -> Mask:
    """Return (num_channels,) True where a layer reads the channel that stays itself, by `mask`."""
    read = np.zeros_like(mask)
    for layer in layers.values():
        stays = mask[layer.outputs]
        if layer.index is not None:
            read[layer.inputs[layer.index[stays]]] = True
        elif stays.any() and not layer.passes_on:
            read[layer.inputs] = True
    return read


def emptied(groups: Groups, plan: Plan) -> list[str]:
    """Name the groups that lose all their channels."""
    return [name for name, kept in plan.kept.items() if not kept and groups[name].size]


def evenly(left: Mask, blocks: int) -> Mask:
    """Add to what is left (C,) the first others, until all blocks have as much as the fullest."""
    by_block = left.reshape(blocks, -1)
    width = by_block.sum(1).max()
    chosen = np.argsort(~by_block, axis=1, kind="stable")[:, :width]
    even = np.zeros_like(by_block)
    np.put_along_axis(even, chosen, True, axis=1)
    return even.reshape(-1)


def _own_mask(group: ChannelGroup, kept: tuple[int, ...]) -> Mask:
    mask = np.zeros(group.size, dtype=bool)
    mask[np.asarray(kept, dtype=np.int64)] = True
    return mask


def _channels_that_stay(groups: Groups, number: int) -> Mask:
    """Return (number,) True in the groups that are fixed, streams apart."""
    stay = np.zeros(number, dtype=bool)
    for group in groups.values():
        if group.fixed is not None and not group.is_stream:
            stay[group.numbers] = True
    return stay


def _check_kept(group: ChannelGroup, kept: tuple[int, ...]) -> None:
    if kept and kept[-1] >= group.size:
        raise ValueError(
            f"the plan keeps channel {kept[-1]} of {group.name!r}, which has {group.size}"
        )
    if group.fixed is not None and not group.is_stream and len(kept) < group.size:
        raise ValueError(f"the channel group {group.name!r} must stay whole: {group.fixed}")
    blocks = np.asarray(kept, dtype=np.int64) * group.blocks // max(1, group.size)
    per_block = np.bincount(blocks, minlength=group.blocks)
    if len(set(per_block.tolist())) > 1:
        raise ValueError(
            f"the channel group {group.name!r} meets a convolution with {group.blocks} groups, "
            f"each of which must keep equally many channels; the plan keeps {per_block.tolist()}"
        )
