"""Arithmetic: what operations on values do with channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.filled import pool_windows
from chanprune.channels.layers import ChannelNumbers
from chanprune.channels.operations import name_of
from chanprune.channels.rules.nodes import (
    argument,
    dims_along,
    is_tensor,
    operand,
    shape_of,
)
from chanprune.channels.rules.walk import Bare, Walk
from chanprune.channels.spread import aligned, axes_of


def whole(walk: Walk, node: fx.Node) -> None:
    """Keep all channels of what is read; those of the result all stay as well."""
    walk.keep_whole(node, f"{label(node)} needs all its channels")


def label(node: fx.Node) -> str:
    """Name a call in a reason: the layer, or the operation and where it stands."""
    if node.op == "call_module":
        return str(node.target)
    path = list(node.meta.get("nn_module_stack", {}).values())
    owner = path[-1][0] if path else ""
    return f"{name_of(node)} in {owner}" if owner else name_of(node)


def same(walk: Walk, node: fx.Node) -> None:
    """Keep the channels of the operand."""
    walk.put(node, walk.channels[operand(node)])


def cast(walk: Walk, node: fx.Node) -> None:
    """Keep the channels of the first operand; of another one only the type is asked."""
    source = argument(node, 0)
    if source in walk.channels:
        walk.put(node, walk.channels[source])
    elif source in walk.bare:
        walk.bare[node] = walk.bare[source]


def fresh(walk: Walk, node: fx.Node) -> None:
    """Follow nothing: the operand's values are not looked at."""
    walk.freeze_sizes(node, f"{label(node)} makes a tensor with its number of channels")


def elementwise(walk: Walk, node: fx.Node) -> None:
    """Unite the channels of all operands, element by element."""
    walk.freeze_sizes(node, f"{label(node)} computes with its number of channels")
    sides = [source for source in node.all_input_nodes if is_tensor(source)]
    numbered = [side for side in sides if walk.numbers(side) is not None]
    if not numbered:
        _combine_bare(walk, node)
        return
    result = _united(walk, node, numbered)
    for side in sides:
        if side not in numbered:
            result = _beside(walk, node, side, result)
    walk.put(node, result)
    _note_gates(walk, node)


def _united(walk: Walk, node: fx.Node, sides: list[fx.Node]) -> ChannelNumbers:
    """Unite the channels of operands; those of one that is broadcast over channels all stay."""
    rank = len(shape_of(node))
    numbers = [aligned(walk.channels[side], rank) for side in sides]  # type: ignore[arg-type]
    main = max(numbers, key=lambda each: len(axes_of(each)))
    axes = axes_of(main)
    for side, own in zip(sides, numbers, strict=True):
        is_wide = all(_extents(side, rank)[a] == shape_of(node)[a] for a in axes)
        if is_wide and set(axes_of(own)) <= set(axes) and (axes_of(own) or not axes):
            walk.numbering.unite(main, own)
        elif own is not main:
            walk.freeze(own, f"it is broadcast in {label(node)}")
            if is_wide or axes_of(own):
                reason = f"{label(node)} combines it with channels of another dimension"
                walk.freeze(main, reason)
    return main


def _extents(side: fx.Node, rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(shape_of(side))) + tuple(shape_of(side))


def _combine_bare(walk: Walk, node: fx.Node) -> None:
    """Follow parameters through arithmetic with numbers, and with each other where all fit."""
    tensors = [source for source in node.all_input_nodes if is_tensor(source)]
    bare = [walk.bare[source] for source in tensors if source in walk.bare]
    if len(bare) == len(tensors) and all(
        shape_of(source) == shape_of(node) and np.array_equal(each.places, bare[0].places)
        for source, each in zip(tensors, bare, strict=True)
    ):
        names = tuple(dict.fromkeys(name for each in bare for name in each.names))
        walk.bare[node] = Bare(names, bare[0].places)
    else:
        whole(walk, node)


def _beside(walk: Walk, node: fx.Node, side: fx.Node, numbers: ChannelNumbers) -> ChannelNumbers:
    """Meet an operand that no layer makes: a parameter, a buffer, or channels that all stay."""
    axes = axes_of(numbers)
    wide = [axis for axis in axes if _extents(side, numbers.ndim)[axis] > 1]
    if side in walk.bare and axes and wide == axes:
        walk.meet(walk.bare[side], numbers, numbers.ndim)
        return numbers
    walk.keep_bare_whole(side)
    for axis in wide:
        reason = f"{label(node)} combines it with {side.name}, whose channels all stay"
        numbers = walk.whole_along(numbers, axis, reason)
    return numbers


def _note_gates(walk: Walk, node: fx.Node) -> None:
    """Follow values that are not zero where channels are, until a product scales others by them."""
    name = name_of(node)
    sources = [source for source in node.all_input_nodes if source in walk.channels]
    nonzero = [source for source in sources if source in walk.nonzero]
    if name in ops.PRODUCTS:
        if 0 < len(nonzero) < len(sources):
            for source in nonzero:
                walk.numbering.gates(walk.channels[source])  # type: ignore[arg-type]
        return
    adds = name in ops.SUMS and any(
        isinstance(argument, (int, float)) and argument != 0 for argument in node.args
    )
    if nonzero or name in ops.GATES or adds:
        walk.nonzero.add(node)


def gate(walk: Walk, node: fx.Node) -> None:
    """Keep the channels; of zeros it makes something else."""
    same(walk, node)
    walk.nonzero.add(node)


def spatial(walk: Walk, node: fx.Node) -> None:
    """Keep the channels of what works along the last dimensions."""
    name = type(walk.modules[str(node.target)]).__name__ if node.op == "call_module" else ""
    count = next((int(d) for d in "123" if f"{d}d" in (name or name_of(node))), None)
    numbers = walk.numbers(operand(node))
    if numbers is None:
        whole(walk, node)
        return
    for source in node.all_input_nodes:
        others = walk.numbers(source)
        if source is not operand(node) and others is not None:
            walk.freeze(others, f"{label(node)} reads positions from it")
    first = 2 if count is None else numbers.ndim - count
    for axis in axes_of(numbers):
        if axis >= first:
            numbers = walk.whole_along(numbers, axis, f"{label(node)} works along it")
            if axis in axes_of(numbers):
                return
    if is_tensor(node) and (windows := pool_windows(node, walk.module(node))):
        node.meta["windows"] = windows
    walk.put(node, numbers if is_tensor(node) else (numbers,) * len(node.meta["holds"]))


def along(walk: Walk, node: fx.Node) -> None:
    """Follow a sum, a maximum, a softmax along dimensions: channels along these stay."""
    name = name_of(node)
    module = walk.module(node)
    numbers = walk.numbers(operand(node))
    place = ops.ALONG.get(name, 1)
    dims = dims_along(node, place) if module is None else _dim_of(module, numbers)
    if numbers is None or (dims is None and axes_of(numbers)):
        whole(walk, node)
        return
    dims = list(range(numbers.ndim)) if dims is None else dims
    for axis in axes_of(numbers):
        if axis in dims:
            numbers = walk.whole_along(numbers, axis, f"{label(node)} needs all its channels")
    takes = name in ("topk", "kthvalue") or name not in ops.KEEPS_DIMENSIONS
    if takes and module is None and any(axis in dims for axis in axes_of(numbers)):
        return
    if name not in ops.KEEPS_DIMENSIONS and module is None:
        rank = len(shape_of(node) if is_tensor(node) else node.meta["holds"][0])
        if rank < numbers.ndim:
            numbers = numbers.squeeze(tuple(set(dims)))
    walk.put(node, numbers if is_tensor(node) else (numbers,) * len(node.meta["holds"]))


def _dim_of(module: nn.Module, numbers: ChannelNumbers | None) -> list[int] | None:
    """Return the dimension of a softmax layer."""
    dim: Any = getattr(module, "dim", None)
    return None if dim is None or numbers is None else [dim % numbers.ndim]


def product_of_matrices(walk: Walk, node: fx.Node) -> None:
    """Keep what a matrix product does not sum over: rows of the left side, columns of the right."""
    sides = [source for source in node.all_input_nodes if is_tensor(source)]
    numbered = [side for side in sides if walk.numbers(side) is not None]
    rank = len(shape_of(node))
    if len(sides) != 2 or len(numbered) != 1 or any(len(shape_of(s)) != rank for s in sides):
        whole(walk, node)
        return
    (side,) = numbered
    numbers = walk.channels[side]
    assert not isinstance(numbers, tuple)
    other = next(s for s in sides if s is not side)
    walk.keep_bare_whole(other)
    summed = rank - 1 if side is sides[0] else rank - 2
    beside = [axis for axis in range(rank - 2) if shape_of(other)[axis] > 1]
    for axis in axes_of(numbers):
        if axis in (summed, *beside):
            numbers = walk.whole_along(numbers, axis, f"{label(node)} sums over it")
    if summed not in axes_of(numbers):
        walk.put(node, numbers)


def attention(walk: Walk, node: fx.Node) -> None:
    """Keep the features of the values, which attention weighs; queries and keys stay whole."""
    names = ("query", "key", "value", "attn_mask")
    query, key, value, mask = (argument(node, i, name) for i, name in enumerate(names))
    numbers = walk.numbers(value)
    if value in (query, key) or numbers is None or mask is not None:
        whole(walk, node)
        return
    for axis in axes_of(numbers):
        if axis != numbers.ndim - 1:
            numbers = walk.whole_along(numbers, axis, f"{label(node)} sums over it")
    kept = numbers if axes_of(numbers) == [numbers.ndim - 1] else None
    for source in (query, key):
        own = walk.numbers(source)
        if own is not None:
            walk.freeze(own, f"{label(node)} needs all its channels")
    if kept is not None:
        walk.put(node, kept)


def gated(walk: Walk, node: fx.Node) -> None:
    """Follow a gated linear unit: the halves go together."""
    module = walk.module(node)
    numbers = walk.numbers(operand(node))
    if numbers is None:
        whole(walk, node)
        return
    dim = argument(node, 1, "dim", default=-1) if module is None else module.dim
    if dim % numbers.ndim not in axes_of(numbers):
        walk.put(node, numbers)
        return
    halves = np.split(numbers, 2, dim)
    walk.numbering.unite(*halves)
    walk.put(node, halves[0])
