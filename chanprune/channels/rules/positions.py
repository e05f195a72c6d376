"""Positions: what operations that move elements, and the sizes of tensors, do with channels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.layers import ChannelNumbers
from chanprune.channels.rules.arithmetic import whole
from chanprune.channels.rules.nodes import argument, is_tensor, name_of, shape_of
from chanprune.channels.rules.walk import Walk


def concatenation(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Join the channels, or unite them where something else is joined."""
    tensors = argument(node, 0, "tensors")
    dim = argument(node, 1, "dim", "axis", default=0)
    missing = [side.name for side in tensors if side not in walk.channels]
    if missing or not isinstance(dim, int):
        raise walk.unsupported(node, f"has an operand without channels, {missing or dim}")
    rank = len(shape_of(node))
    if dim % rank == 1:
        return np.concatenate([walk.channels[side] for side in tensors])
    for side in tensors[1:]:
        walk.numbering.unite(walk.channels[tensors[0]], walk.channels[side])
    return walk.channels[tensors[0]]


def pad(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow padding of positions, and zeros as further channels."""
    sizes = argument(node, 1, "pad")
    mode = argument(node, 2, "mode", default="constant")
    if mode == "constant" and argument(node, 3, "value") not in (None, 0):
        return whole(walk, node)
    rank = len(shape_of(node))
    ends = [0] * 2 * rank
    ends[: len(sizes)] = sizes
    before, after = ends[2 * (rank - 2) : 2 * (rank - 1)]
    if any(isinstance(end, fx.Node) for end in (before, after)):
        raise walk.unsupported(node, "pads channels by a number that is computed")
    if min(before, after) < 0 or any(ends[2 * (rank - 1) :]):
        raise walk.unsupported(node, "pads the batch or cuts channels")
    names = (f"{node.name}.before", f"{node.name}.behind")
    zeros = [walk.numbering.zeros(*each) for each in zip((before, after), names, strict=True)]
    return np.concatenate([zeros[0], walk.source(node), zeros[1]])


def sliced(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow positions that are taken, such as x[:, :, ::2, ::2], x[..., 0, 0], x[:, :, None]."""
    index: Any = node.args[1]
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        taken = sum(part is not None and part is not Ellipsis for part in parts)
        missing = len(shape_of(node.all_input_nodes[0])) - taken
        parts[place : place + 1] = [slice(None)] * missing
    in_front = [part != slice(None) for part in parts[:2]]
    if any(in_front) or not all(part is None or type(part) in (int, slice) for part in parts):
        raise walk.unsupported(node, "takes part of the channels or of the batch")
    return walk.source(node)


def squeeze(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow positions that are squeezed out; without a dimension channels must not be one."""
    dims = argument(node, 1, "dim", "axis")
    rank = len(shape_of(node.all_input_nodes[0]))
    if dims is None:
        walk.freeze(walk.source(node), f"{node.name} would take out a single channel; name its dim")
        return walk.source(node)
    listed = dims if isinstance(dims, (tuple, list)) else [dims]
    if any(dim % rank < 2 for dim in listed):
        raise walk.unsupported(node, "squeezes out the batch or the channels")
    return walk.source(node)


def unsqueeze(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow positions that are put in."""
    if argument(node, 1, "dim", "axis") % len(shape_of(node)) < 2:
        raise walk.unsupported(node, "puts a dimension in front of the channels")
    return walk.source(node)


def permute(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow positions that change places."""
    rank = len(shape_of(node))
    given = node.args[1:] or [node.kwargs.get(name) for name in ("dim0", "dim1")]
    listed = list(given[0]) if isinstance(given[0], (tuple, list)) else list(given)
    order = [dim % rank if isinstance(dim, int) else 0 for dim in listed]
    stays = order[:2] == [0, 1] if "permute" in name_of(node) else min(order) >= 2
    if not stays:
        raise walk.unsupported(node, "moves the channels to another dimension")
    return walk.source(node)


def select(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow a gather of fixed channels; which ones is of no matter, as the source stays whole."""
    if argument(node, 1, "dim") != 1:
        raise walk.unsupported(node, "selects along another dimension than the channels")
    source = walk.source(node)
    walk.freeze(source, f"{node.name} gathers fixed channels of it")
    return np.resize(source, shape_of(node)[1])


def shuffle(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow channels that change places in a fixed order."""
    module = walk.modules[str(node.target)]
    assert isinstance(module, nn.ChannelShuffle)
    numbers = walk.source(node)
    walk.freeze(numbers, f"{node.target} shuffles it")
    return numbers.reshape(module.groups, -1).T.reshape(-1)


def flatten(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow channels that repeat for every position."""
    before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
    if after[:2] == before[:2]:
        return walk.source(node)
    if len(after) != 2 or after[0] != before[0]:
        raise walk.unsupported(node, f"turns {tuple(before)} into {tuple(after)}")
    return walk.source(node).repeat(math.prod(before[2:]))


def reshape(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow view, reshape and expand; sizes written into the code forbid a smaller tensor."""
    numbers = flatten(walk, node)
    if node.target in ops.LIKE:
        like = argument(node, 1, "other")
        if like not in walk.channels or len(walk.channels[like]) != len(numbers):
            raise walk.unsupported(node, "takes the shape of a tensor with other channels")
        walk.numbering.unite(numbers, walk.channels[like])
        return numbers
    given = node.args[1:] or (argument(node, 1, "shape", "size"),)
    sizes = list(given[0]) if isinstance(given[0], (tuple, list)) else list(given)
    width = sizes[1] if len(sizes) > 1 else None
    if isinstance(width, fx.Node) and walk.dims.get(width) == (1,) and width in walk.sizes:
        walk.numbering.unite(numbers, walk.sizes[width])
    elif not isinstance(width, int) or width != -1:
        walk.freeze(numbers, f"{node.name} has its number of features written into the code")
    return numbers


def channel_sizes(walk: Walk, node: fx.Node) -> None:
    """Follow which numbers are made of numbers of channels.

    Raises:
        UnsupportedNetwork: It is not known what else the node does with a tensor.
    """
    first = node.all_input_nodes[0]
    attribute = node.args[1] if node.target in ops.ATTRIBUTES else node.target
    numbers = walk.channels.get(first, walk.sizes.get(first))
    if first in walk.channels and is_tensor(first):
        if attribute in ops.FACTS:
            return
        if attribute not in ops.SIZES:
            raise walk.unsupported(node, "is not an operation that this project knows")
        dims: tuple[int, ...] = tuple(range(len(shape_of(first))))
        index = argument(node, 1, "dim") if attribute == "size" else None
    elif first in walk.dims and node.target in ops.SLICES:
        dims, index = walk.dims[first], node.args[1]
    else:
        raise walk.unsupported(node, "is not an operation that this project knows")
    if isinstance(index, int):
        dims = (dims[index],)
    elif isinstance(index, slice) and not node.all_input_nodes[1:]:
        dims = dims[index]
    elif index is not None:
        raise walk.unsupported(node, "takes a size that is computed")
    walk.dims[node] = dims
    if 1 in dims and numbers is not None:
        walk.sizes[node] = numbers
