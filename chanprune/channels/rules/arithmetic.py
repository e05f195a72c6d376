"""Arithmetic: what operations on values do with channels."""

from __future__ import annotations

from torch import fx

from chanprune.channels import operations as ops
from chanprune.channels.layers import ChannelNumbers
from chanprune.channels.rules.nodes import argument, is_tensor, name_of, shape_of
from chanprune.channels.rules.walk import Walk


def channelwise(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Keep the channels; of zeros it makes zeros."""
    return walk.source(node)


def gate(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Keep the channels; of zeros it makes something else."""
    return walk.source(node)


def elementwise(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Stand for `channelwise` or `gate`, which only a trial tells apart."""
    raise AssertionError("stands for channelwise or gate")


def whole(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Keep the channels, none of which may go."""
    walk.freeze(walk.source(node), f"{name_of(node)} needs all its channels")
    return walk.source(node)


def prelu(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow one slope for all channels; slopes of their own are cut by nobody."""
    is_one = walk.modules[str(node.target)].num_parameters == 1
    return walk.source(node) if is_one else whole(walk, node)


def container(walk: Walk, node: fx.Node) -> None:
    """Keep whole what a named tuple or a dataclass holds, which is a network's output."""
    for source in node.all_input_nodes:
        if source in walk.channels:
            walk.freeze(walk.channels[source], f"it is part of a {name_of(node)}")


def fresh(walk: Walk, node: fx.Node) -> None:
    """Follow nothing: the operand's values are not looked at."""


def total(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Unite the channels of all sides; a number makes something of zero channels."""
    numbers = _united(walk, node, keeps_zero_beside=False)
    others = [*node.args, *(v for k, v in node.kwargs.items() if k not in ("alpha", "value"))]
    if any(isinstance(a, (int, float)) and a != 0 for a in others):
        walk.freeze(numbers, "a number is added to it")
    return numbers


def product(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Unite the channels of all sides; what is divided by must not be zero."""
    numbers = _united(walk, node, keeps_zero_beside=True)
    if node.target in ops.DIVISIONS:
        divisor = argument(node, 1, "other")
        if isinstance(divisor, fx.Node) and divisor in walk.channels:
            walk.freeze(numbers, f"{node.name} divides by it")
            walk.freeze(walk.channels[divisor], f"{node.name} divides by it")
    return numbers


def _united(walk: Walk, node: fx.Node, keeps_zero_beside: bool) -> ChannelNumbers:
    """Unite the channels of the sides; one that is broadcast leaves zeros if it is a factor."""
    rank, width = len(shape_of(node)), shape_of(node)[1]
    sides, reasons = [], []
    for side in node.all_input_nodes:
        if not is_tensor(side):
            continue
        own = shape_of(side)
        is_wide = len(own) >= rank - 1 and own[1 - rank] == width
        if side not in walk.channels and is_wide and width > 1:
            reasons.append(f"{node.name} combines it with {side.target}, which no layer makes")
        elif side not in walk.channels:
            reasons += [] if keeps_zero_beside else [f"{side.target} is broadcast over it"]
        elif len(walk.channels[side]) == width and len(own) == rank:
            sides.append(walk.channels[side])
        else:
            walk.freeze(walk.channels[side], f"it is broadcast in {node.name}")
            reasons += [] if keeps_zero_beside else [f"{side.name} is broadcast over it"]
    if not sides:
        raise walk.unsupported(node, "broadcasts all its operands")
    for other in sides[1:]:
        walk.numbering.unite(sides[0], other)
    for reason in reasons:
        walk.freeze(sides[0], reason)
    return sides[0]
