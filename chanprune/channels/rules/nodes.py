"""What a traced call is: its shape, its arguments, and what it works along."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from chanprune.channels.operations import name_of


def shape_of(node: fx.Node) -> torch.Size:
    """Return the shape of the tensor that a call returns."""
    shape: torch.Size = node.meta["shape"]
    return shape


def is_tensor(node: fx.Node) -> bool:
    """Tell whether a call returns a tensor, rather than a number or several tensors."""
    return "shape" in node.meta


def operand(node: fx.Node) -> fx.Node:
    """Return the first tensor that a call is given."""
    return next(source for source in node.all_input_nodes if is_tensor(source))


def argument(node: fx.Node, place: int, *names: str, default: Any = None) -> Any:
    """Return an argument by its place, the operand included, or by one of its names."""
    if len(node.args) > place:
        return node.args[place]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def values(argument: Any) -> Any:
    """Replace the calls in an argument by the numbers that they return."""
    return fx.node.map_arg(argument, lambda node: node.meta.get("value"))


def dims_along(node: fx.Node, place: int) -> list[int] | None:
    """Return the dimensions along which a node works; None: along all of them.

    Args:
        node: The node.
        place: Which of its arguments says so.
    """
    dims = values(argument(node, place, "dim", "dims", "axis"))
    rank = len(shape_of(operand(node)))
    listed = list(dims) if isinstance(dims, (tuple, list)) else [dims]
    if not listed or any(not isinstance(d, int) or isinstance(d, bool) for d in listed):
        return None
    return [int(d) % rank for d in listed]


def compares_tensors(node: fx.Node) -> bool:
    """Tell whether max or min is that of two tensors."""
    other = argument(node, 1, "other")
    return name_of(node) in ("max", "min") and isinstance(other, fx.Node) and is_tensor(other)
