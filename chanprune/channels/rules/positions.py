"""Positions: what operations that move elements do with channels, found by moving their numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.layers import ChannelNumbers
from chanprune.channels.operations import name_of, words
from chanprune.channels.rules.arithmetic import label, whole
from chanprune.channels.rules.nodes import (
    argument,
    dims_along,
    is_tensor,
    operand,
    shape_of,
    values,
)
from chanprune.channels.rules.walk import Bare, Walk
from chanprune.channels.spread import axes_of, compressed, expanded, index_parts, on_axis

# Those whose arguments name no size of a tensor.
MOVES = words(
    """
    permute transpose swapaxes swapdims movedim moveaxis t T mT numpy_T adjoint squeeze
    unsqueeze flatten ravel flip fliplr flipud repeat tile repeat_interleave roll unbind
    unfold pixel_unshuffle rot90
    squeeze_copy alias
    """
)
# Those with sizes among their arguments, which a smaller network needs others of.
SIZED = words(
    """
    view reshape unsafe_view unflatten expand view_as reshape_as expand_as chunk split
    split_with_sizes unsafe_split unsafe_chunk tensor_split narrow slice select
    broadcast_to
    """
)
POSITION_MODULES = (nn.Flatten, nn.PixelUnshuffle)
_LIKE = frozenset({"view_as", "reshape_as", "expand_as"})
_AS_VIEW: dict[str, Callable[..., Any]] = {
    "view": torch.reshape,
    "unsafe_view": torch.reshape,
}


def moved(walk: Walk, node: fx.Node) -> None:
    """Run the operation on the channel numbers of its operand."""
    if operand(node) in walk.bare:
        _move_bare(walk, node)
        return
    numbers = walk.numbers(operand(node))
    others = [s for s in node.all_input_nodes if is_tensor(s) and s is not operand(node)]
    if numbers is None or (others and name_of(node) not in _LIKE):
        whole(walk, node)
        return
    for axis in _axes_that_stay(node, numbers):
        numbers = walk.whole_along(numbers, axis, f"{label(node)} moves or takes part of it")
    node.meta["taken"] = _taken(node, shape_of(operand(node)))
    elements = expanded(numbers, shape_of(operand(node)))
    result = run(walk.modules, node, elements)
    if result is None:
        whole(walk, node)
    elif isinstance(result, Tensor):
        walk.put(node, compressed(result))
        if others:
            _unite_like(walk, node, others[0])
    else:
        walk.put(node, tuple(compressed(each) for each in result))


def _unite_like(walk: Walk, node: fx.Node, other: fx.Node) -> None:
    """Let what takes the shape of another tensor lose what that one loses."""
    wanted, own = walk.numbers(other), walk.numbers(node)
    assert own is not None
    if wanted is None or wanted.shape != own.shape:
        walk.freeze(own, f"{label(node)} gives it the shape of a tensor with other channels")
    else:
        walk.numbering.unite(own, wanted)


def run(modules: dict[str, nn.Module], node: fx.Node, elements: Tensor) -> Any:
    """Run a call on another tensor in place of its first; None where its result has other shapes.

    Args:
        modules: The network's modules by name.
        node: The call.
        elements: The tensor, shaped as what the call is given.
    """
    first, name = operand(node), name_of(node)

    def given(source: fx.Node) -> Any:
        if source is first:
            return elements
        if is_tensor(source):
            return torch.empty(()).expand(shape_of(source))
        return source.meta.get("value")

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), given)
    call: Callable[..., Any]
    if node.op == "call_module":
        call = modules[str(node.target)]
    elif node.target is getattr:
        call = getattr
    elif name in _AS_VIEW:
        call = _AS_VIEW[name]
        args = (args[0], list(args[1:])) if isinstance(args[1], int) else args
    elif name in _LIKE:
        return (
            elements.expand(shape_of(node))
            if "expand" in name
            else elements.reshape(shape_of(node))
        )
    else:
        is_method = node.op == "call_method"
        call = getattr(torch.Tensor, str(node.target)) if is_method else node.target  # type: ignore[assignment]
    try:
        result = call(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    results = [result] if isinstance(result, Tensor) else list(result)
    wanted = [shape_of(node)] if is_tensor(node) else list(node.meta["holds"])
    return result if [each.shape for each in results] == wanted else None


def _axes_that_stay(node: fx.Node, numbers: ChannelNumbers) -> list[int]:
    """List the axes of channels of which a call takes a part, or that it turns round."""
    axes, rank, name = axes_of(numbers), numbers.ndim, name_of(node)
    if name == "squeeze":
        dims = dims_along(node, 1)
        return [] if dims is not None else axes
    if name == "roll":
        dims = dims_along(node, 2)
        return axes if dims is None else [axis for axis in axes if axis in dims]
    if name in ("unbind", "select", "unfold"):
        dim = values(argument(node, 1, "dim", "dimension", default=0))
        return [axis for axis in axes if axis == dim % rank]
    if name == "slice":
        step = argument(node, 4, "step", default=1)
        dim = argument(node, 1, "dim", default=0) % rank
        return [axis for axis in axes if axis == dim and step != 1]
    if name == "getitem":
        return [axis for axis, part in _parts(node, rank) if axis in axes and not _is_run(part)]
    return []


def _taken(node: fx.Node, shape: torch.Size) -> dict[int, tuple[int, int]]:
    """Return the axes of which a call takes a run of positions, each with its ends."""
    name, slices = name_of(node), {}
    if name == "getitem":
        slices = {axis: part for axis, part in _parts(node, len(shape)) if _is_run(part)}
    elif name in ("narrow", "slice"):
        dim, start, stop = (*values(node.args[1:4]), None, None, None)[:3]
        stop = start + stop if name == "narrow" else stop
        slices = {(dim or 0) % len(shape): slice(start, stop)}
    ends = {axis: part.indices(shape[axis])[:2] for axis, part in slices.items()}
    return {
        axis: (start, max(start, stop))
        for axis, (start, stop) in ends.items()
        if (start, stop) != (0, shape[axis])
    }


def takes_channels_alone(walk: Walk, node: fx.Node) -> bool:
    """Tell whether a call takes a part of a tensor's channels, and all of its positions."""
    source = node.all_input_nodes[0]
    if name_of(node) != "getitem" or isinstance(walk.channels.get(source), tuple):
        return name_of(node) in ("getitem", "narrow", "slice")
    numbers = walk.numbers(source)
    axes = [] if numbers is None else axes_of(numbers)
    return all(
        axis in axes or part == slice(None) for axis, part in _parts(node, len(shape_of(source)))
    )


def _is_run(part: Any) -> bool:
    return isinstance(part, slice) and part.step in (None, 1)


def _parts(node: fx.Node, rank: int) -> list[tuple[int, Any]]:
    """Return the dimensions that an index takes something of, each with what it takes."""
    return [(axis, part) for axis, _, part in index_parts(values(node.args[1]), rank)]


def _move_bare(walk: Walk, node: fx.Node) -> None:
    """Run the operation on the places of a parameter's elements."""
    bare = walk.bare[operand(node)]
    elements = expanded(bare.places, shape_of(operand(node)))
    result = run(walk.modules, node, elements)
    if isinstance(result, Tensor):
        walk.bare[node] = Bare(bare.names, compressed(result))
    else:
        walk.whole.update(bare.names)


def indexed(walk: Walk, node: fx.Node) -> None:
    """Follow what an index takes of a tensor, or of several tensors."""
    source = node.all_input_nodes[0]
    numbers = walk.channels.get(source)
    index = node.args[1]
    if isinstance(numbers, tuple):
        place = ("values", "indices").index(index) if isinstance(index, str) else index
        taken = numbers[place] if isinstance(place, int) else None
        if taken is not None and is_tensor(node):
            walk.put(node, taken)
        elif isinstance(place, slice):
            walk.put(node, numbers[place])
        return
    if source in walk.bare or numbers is None:
        moved(walk, node) if source in walk.bare else whole(walk, node)
        return
    if all(
        part is None or isinstance(part, (int, slice)) for _, part in _parts(node, numbers.ndim)
    ):
        moved(walk, node)
    else:
        whole(walk, node)


def selected(walk: Walk, node: fx.Node) -> None:
    """Follow a gather of fixed channels; which ones is of no matter, as the source stays whole."""
    numbers = walk.numbers(operand(node))
    dim = argument(node, 1, "dim")
    if numbers is None or not isinstance(dim, int):
        whole(walk, node)
        return
    dim %= numbers.ndim
    if dim in axes_of(numbers):
        numbers = walk.whole_along(numbers, dim, f"{label(node)} gathers fixed channels of it")
        if dim in axes_of(numbers):
            numbers = np.resize(
                numbers, [*numbers.shape[:dim], shape_of(node)[dim], *numbers.shape[dim + 1 :]]
            )
    walk.put(node, numbers)


def unfolded(walk: Walk, node: fx.Node) -> None:
    """Follow the windows of each channel, which become channels one behind the other."""
    if len(shape_of(operand(node))) != 4:
        whole(walk, node)
        return
    numbers = walk.read(operand(node), 1, label(node))
    walk.put_along(node, numbers.repeat(shape_of(node)[1] // len(numbers)))


def shuffled(walk: Walk, node: fx.Node) -> None:
    """Follow channels that change places in a fixed order."""
    module = walk.module(node)
    groups = argument(node, 1, "groups") if module is None else module.groups
    numbers = walk.read(operand(node), 1, label(node)).reshape(groups, -1)
    numbers = walk.whole_along(numbers, 0, f"{label(node)} shuffles its groups")
    numbers = np.broadcast_to(numbers, (groups, numbers.shape[1]))
    walk.put_along(node, numbers.T.reshape(-1))


def pixel_shuffled(walk: Walk, node: fx.Node) -> None:
    """Follow channels that become pixels: those of one channel of the result go together."""
    module = walk.module(node)
    factor = argument(node, 1, "upscale_factor") if module is None else module.upscale_factor
    if walk.numbers(operand(node)) is not None and isinstance(factor, int):
        pixels = walk.read(operand(node), -3, label(node)).reshape(-1, factor**2)
        walk.whole_along(pixels, 1, f"{label(node)} makes pixels of it")
    moved(walk, node)


def joined(walk: Walk, node: fx.Node) -> None:
    """Join channels along an axis, or unite them where something else is joined."""
    tensors = argument(node, 0, "tensors")
    dim = argument(node, 1, "dim", "axis", default=0)
    parts = walk.channels.get(tensors) if isinstance(tensors, fx.Node) else None
    if not isinstance(dim, int) or not (isinstance(tensors, (tuple, list)) or parts):
        whole(walk, node)
        return
    rank, stacks = len(shape_of(node)), name_of(node) == "stack"
    dim %= rank
    if isinstance(parts, tuple):
        numbered, shapes, tensors = list(parts), tensors.meta["holds"], [tensors] * len(parts)
    else:
        numbered = [walk.numbers(each) for each in tensors]
        shapes = [shape_of(each) for each in tensors]
    if stacks:
        numbered = [None if n is None else np.expand_dims(n, dim) for n in numbered]
    axes = sorted({axis for n in numbered if n is not None for axis in axes_of(n)}) or [dim]
    known = [n for n in numbered if n is not None]
    if not known or (
        any(n is None and axes != [dim] for n in numbered)
        and not _meet_all(walk, tensors, numbered, node)
    ):
        whole(walk, node)
        return
    sizes = [1 if stacks else shape[dim] for shape in shapes]
    _put_joined(walk, node, tensors, numbered, sizes, dim, axes)


def _meet_all(walk: Walk, tensors: Any, numbered: list[Any], node: fx.Node) -> bool:
    """Let parameters among the operands have the channels of the others; False: it cannot be."""
    rank = len(shape_of(node))
    known = next(n for n in numbered if n is not None)
    for place, (tensor, numbers) in enumerate(zip(tensors, numbered, strict=True)):
        if numbers is None:
            if tensor not in walk.bare or len(shape_of(tensor)) != rank:
                return False
            walk.meet(walk.bare[tensor], known, rank)
            numbered[place] = known
    return True


def _put_joined(
    walk: Walk,
    node: fx.Node,
    tensors: Any,
    numbered: list[Any],
    sizes: list[int],
    dim: int,
    axes: list[int],
) -> None:
    rank = len(shape_of(node))
    if dim not in axes and name_of(node) != "stack":
        for other in numbered[1:]:
            walk.numbering.unite(numbered[0], other)
        walk.put(node, numbered[0])
        return
    parts = []
    for tensor, known, size in zip(tensors, numbered, sizes, strict=True):
        numbers = known
        if numbers is None:
            reason = f"{tensor.name}, which {label(node)} joins to it, has channels that all stay"
            numbers = on_axis(
                walk.numbering.fixed(size, f"{tensor.name} in {node.name}", reason), rank, dim
            )
        wanted = [max(n.shape[d] for n in numbered if n is not None) for d in range(rank)]
        wanted[dim] = size
        parts.append(np.broadcast_to(numbers, wanted))
    walk.put(node, np.concatenate(parts, dim))


def padded(walk: Walk, node: fx.Node) -> None:
    """Follow padding of positions, and further channels that a number fills."""
    sizes = values(argument(node, 1, "pad"))
    numbers = walk.numbers(operand(node))
    if (
        numbers is None
        or not isinstance(sizes, (tuple, list))
        or not all(isinstance(s, int) for s in sizes)
    ):
        whole(walk, node)
        return
    rank = numbers.ndim
    for axis in axes_of(numbers):
        place = 2 * (rank - 1 - axis)
        before, behind = (*sizes[place : place + 2], 0, 0)[:2]
        if not before and not behind:
            continue
        if min(before, behind) < 0 or len(axes_of(numbers)) > 1:
            whole(walk, node)
            return
        reason = f"{label(node)} appends a fixed number of zeros to it"
        ends = [
            on_axis(walk.numbering.fixed(size, f"{node.name}.{end}", reason), rank, axis)
            for size, end in ((before, "before"), (behind, "behind"))
            if size
        ]
        numbers = np.concatenate([*ends[: bool(before)], numbers, *ends[bool(before) :]], axis)
    walk.put(node, numbers)


def sizes_of(walk: Walk, node: fx.Node) -> None:
    """Follow which numbers are made of sizes of tensors."""
    known = [n for source in node.all_input_nodes for n in walk.sizes.get(source, ())]
    name = name_of(node)
    for source in node.all_input_nodes:
        numbers = walk.channels.get(source)
        if is_tensor(source) and isinstance(numbers, np.ndarray) and name not in ops.FACTS:
            dim = values(argument(node, 1, "dim")) if name in ("size", "sym_size") else None
            axes = axes_of(numbers)
            if name not in ops.SIZES or dim is None or dim % numbers.ndim in axes:
                known.append(numbers)
    if name == "getitem" and isinstance(node.args[1], int) and known:
        known = _of_one_dimension(walk, node, known)
    if known:
        walk.sizes[node] = known


def _of_one_dimension(walk: Walk, node: fx.Node, known: list[Any]) -> list[Any]:
    """Return the channels that one of a tensor's sizes is made of."""
    source = node.all_input_nodes[0]
    is_shape = isinstance(source.meta.get("value"), torch.Size)
    if not is_shape or len(known) != 1 or len(source.meta["value"]) != known[0].ndim:
        return known
    return known if node.args[1] % known[0].ndim in axes_of(known[0]) else []
