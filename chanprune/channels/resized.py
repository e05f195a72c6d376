"""The calls of a smaller network where sizes of tensors are written into the code.

Where the code asks a tensor for its sizes, they follow by themselves; where it has numbers, or
halves what need not lose equally much on both sides, the calls get others.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from chanprune.channels.layers import ChannelNumbers, Mask
from chanprune.channels.operations import SIZES, name_of, words
from chanprune.channels.spread import axes_of, index_parts

_SHAPES = frozenset({"view", "reshape", "unsafe_view", "expand", "broadcast_to"})
_SPLITS = words(
    """
    chunk split split_with_sizes unsafe_split unsafe_chunk tensor_split
    """
)


def resized(calls: fx.Graph, keep: Mask) -> fx.Graph:
    """Give the calls the sizes of a smaller network.

    Args:
        calls: The traced calls, with the channels of each tensor in `meta["channels"]`.
        keep: (channels,) True where the channel stays.

    Returns:
        The same graph if nothing has to be changed.
    """
    if not any(name_of(node) in _RULES for node in calls.nodes):
        return calls
    sizes = _Sizes(keep)
    changed: dict[fx.Node, tuple[Any, ...]] = {}
    for node in calls.nodes:
        sizes.follow(node)
        new = _RULES[name_of(node)](node, sizes) if name_of(node) in _RULES else None
        if new is not None and node.op in ("call_function", "call_method"):
            changed[node] = new
    return _rewritten(calls, changed) if changed else calls


def _rewritten(calls: fx.Graph, changed: dict[fx.Node, tuple[Any, ...]]) -> fx.Graph:
    """Copy the calls, some of them with another target and other arguments."""
    copy = fx.Graph()
    copy.set_codegen(calls._codegen)
    copies: dict[fx.Node, fx.Node] = {}
    for node in calls.nodes:
        copies[node] = copy.node_copy(node, copies.__getitem__)
        if node in changed:
            target, *args = changed[node]
            copies[node].op = "call_function" if callable(target) else "call_method"
            copies[node].target = target
            copies[node].args = fx.node.map_arg(tuple(args), copies.__getitem__)
            copies[node].kwargs = {}
    for node in reversed(calls.nodes):  # sizes that nobody asks for any more may not exist
        if node.meta.get("value") is not None and not copies[node].users:
            copy.erase_node(copies[node])
    return copy


class _Sizes:
    """The sizes of the smaller network's tensors, and what the code makes of them."""

    def __init__(self, keep: Mask):
        self.keep = keep
        self.values: dict[fx.Node, Any] = {}

    def follow(self, node: fx.Node) -> None:
        """Compute what a call returns that makes no tensor."""
        if "value" not in node.meta or node.op not in ("call_function", "call_method"):
            return
        source = next((s for s in node.all_input_nodes if "shape" in s.meta), None)
        name = name_of(node)
        if source is not None and name in ("numel", "sym_numel"):
            self.values[node] = math.prod(self.shape(source))
        elif source is not None and name in SIZES and not name.endswith("stride"):
            shape = torch.Size(self.shape(source))
            dim = self.known(node.args[1]) if name != "shape" and len(node.args) > 1 else None
            self.values[node] = shape if dim is None else shape[dim]
        elif source is None and not node.meta["holds"] and node.all_input_nodes:
            args, kwargs = self.known(node.args), self.known(node.kwargs)
            is_method = node.op == "call_method"
            call: Any = getattr(args[0], str(node.target)) if is_method else node.target
            try:
                self.values[node] = call(*(args[1:] if is_method else args), **kwargs)
            except (ArithmeticError, TypeError, ValueError, IndexError):
                self.values[node] = None  # the code asks for something else of fewer channels
        else:
            self.values[node] = node.meta["value"]

    def known(self, argument: Any) -> Any:
        """Replace the calls in an argument by the numbers that they return."""
        return fx.node.map_arg(argument, lambda node: self.values.get(node, node))

    def shape(self, node: fx.Node) -> list[int]:
        """Return the shape of a tensor in the smaller network."""
        shape, channels = list(node.meta["shape"]), node.meta.get("channels")
        if isinstance(channels, np.ndarray):
            for axis in axes_of(channels):
                shape[axis] = len(self.places(channels, axis))
        return shape

    def places(self, channels: ChannelNumbers, axis: int) -> ChannelNumbers:
        """Return which positions of an axis stay."""
        kept = self.keep[np.moveaxis(channels, axis, 0).reshape(channels.shape[axis], -1)]
        return np.flatnonzero(kept.any(1))


def _channels(node: fx.Node) -> ChannelNumbers | None:
    """Return the channels of what a call is given."""
    channels = node.all_input_nodes[0].meta.get("channels")
    return channels if isinstance(channels, np.ndarray) and axes_of(channels) else None


def _for_view(node: fx.Node, sizes: _Sizes) -> tuple[Any, ...] | None:
    """Return the call of view or expand with other sizes, where it needs them."""
    channels = node.meta.get("channels")
    listed = _listed(node, sizes)
    if not isinstance(channels, np.ndarray) or listed is None:
        return None
    wanted, is_other = listed, False
    shape = sizes.shape(node)
    for axis, size in enumerate(wanted):
        if sizes.known(size) not in (-1, shape[axis]):
            wanted[axis], is_other = shape[axis], True
    return (node.target, node.args[0], tuple(wanted)) if is_other else None


def _listed(node: fx.Node, sizes: _Sizes) -> list[Any] | None:
    """Return the sizes that view or expand is given one by one, where it is."""
    given: Any = node.args[1:] or tuple(node.kwargs.values())
    first = sizes.known(given[0]) if given else None
    if isinstance(first, torch.Size):
        return list(first)
    listed = list(given[0]) if isinstance(first, (tuple, list)) else list(given)
    return listed if len(listed) == len(node.meta["shape"]) else None


def _for_unflatten(node: fx.Node, sizes: _Sizes) -> tuple[Any, ...] | None:
    channels = node.meta.get("channels")
    if not isinstance(channels, np.ndarray) or len(node.args) < 3:
        return None
    source, dim, given = node.args[:3]
    first = dim % len(source.meta["shape"])  # type: ignore[operator, union-attr]
    parts = list(given)  # type: ignore[arg-type]
    shape, is_other = sizes.shape(node), False
    for place, size in enumerate(parts):
        axis = first + place
        if axis in axes_of(channels) and sizes.known(size) not in (-1, shape[axis]):
            parts[place], is_other = shape[axis], True
    return (node.target, source, dim, tuple(parts)) if is_other else None


def _for_split(node: fx.Node, sizes: _Sizes) -> tuple[Any, ...] | None:
    """Return a call of split with a size for each part, where the parts would be others."""
    channels, parts = _channels(node), node.meta.get("channels")
    if channels is None or not isinstance(parts, tuple):
        return None
    source = node.all_input_nodes[0]
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    axis = sizes.known(dim) % channels.ndim
    if axis not in axes_of(channels):
        return None
    lengths = [shape[axis] for shape in node.meta["holds"]]
    kept = _counts(sizes.places(channels, axis), lengths)
    shape = sizes.shape(source)
    given = sizes.known(node.args[1] if len(node.args) > 1 else next(iter(node.kwargs.values())))
    name = name_of(node).removeprefix("unsafe_")
    return None if _pieces(name, shape[axis], given) == kept else (torch.split, source, kept, dim)


def _counts(places: ChannelNumbers, lengths: Sequence[int]) -> list[int]:
    ends = np.cumsum([0, *lengths])
    pairs = zip(ends[:-1], ends[1:], strict=True)
    return [int(((places >= a) & (places < b)).sum()) for a, b in pairs]


def _pieces(name: str, size: int, given: Any) -> list[int]:
    """Return the lengths of the parts into which a call takes an axis of `size` apart."""
    line = torch.empty(size, device="meta")
    calls: dict[str, Any] = {"chunk": torch.chunk, "tensor_split": torch.tensor_split}
    try:
        return [len(part) for part in calls.get(name, torch.split)(line, given)]
    except (RuntimeError, TypeError, ValueError):
        return []


def _for_index(node: fx.Node, sizes: _Sizes) -> tuple[Any, ...] | None:
    """Return x[:, a:b] with other ends, where it needs them."""
    source, index = node.all_input_nodes[0], node.args[1]
    ends = _ends(node, sizes)
    if not ends:
        return None
    parts = list(index) if isinstance(index, tuple) else [index]
    is_other = False
    for axis, place, part in index_parts(index, len(source.meta["shape"])):
        if axis in ends:
            given = slice(sizes.known(part.start), sizes.known(part.stop))
            if given.indices(sizes.shape(source)[axis])[:2] != ends[axis]:
                parts[place], is_other = slice(*ends[axis]), True
    return (node.target, node.args[0], tuple(parts)) if is_other else None


def _ends(node: fx.Node, sizes: _Sizes) -> dict[int, tuple[int, int]]:
    """Return the axis -> the first and last position that are to be taken of what is left."""
    source = node.all_input_nodes[0]
    channels = source.meta.get("channels")
    ends = {}
    for axis, taken in node.meta.get("taken", {}).items():
        if isinstance(channels, np.ndarray) and axis in axes_of(channels):
            places = sizes.places(channels, axis)
            ends[axis] = (int((places < taken[0]).sum()), int((places < taken[1]).sum()))
    return ends


def _for_slice(node: fx.Node, sizes: _Sizes) -> tuple[Any, ...] | None:
    """Return narrow, or ATen's slice, as an index with other ends."""
    for axis, (start, stop) in _ends(node, sizes).items():
        index = (*[slice(None)] * axis, slice(start, stop))
        if node.meta["taken"][axis] != (start, stop):
            return operator.getitem, node.args[0], index
    return None


def _for_filled(node: fx.Node, sizes: _Sizes) -> tuple[Any, ...] | None:
    """Return zeros of another width (see `filled.filled`)."""
    *others, axis, width, windows = node.args
    left = sizes.shape(node)[axis]  # type: ignore[index]
    return None if left == width else (node.target, *others, axis, left, windows)


_RULES: dict[str, Any] = {
    "chanprune.channels.filled.filled": _for_filled,
    **dict.fromkeys(_SHAPES, _for_view),
    **dict.fromkeys(_SPLITS, _for_split),
    "unflatten": _for_unflatten,
    "getitem": _for_index,
    "narrow": _for_slice,
    "slice": _for_slice,
}
