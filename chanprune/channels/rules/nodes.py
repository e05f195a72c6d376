"""What a traced call is: its shape, its arguments, and what it works along."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from chanprune.channels import operations as ops


def shape_of(node: fx.Node) -> torch.Size:
    """Return the shape of the tensor that a call returns."""
    shape: torch.Size = node.meta["shape"]
    return shape


def is_tensor(node: fx.Node) -> bool:
    """Tell whether a call returns a tensor, rather than a number or several tensors."""
    return "shape" in node.meta


def name_of(node: fx.Node) -> str:
    """Return the name of what is called."""
    return str(getattr(node.target, "__name__", node.target))


def argument(node: fx.Node, place: int, *names: str, default: Any = None) -> Any:
    """Return an argument by its place, the operand included, or by one of its names."""
    if len(node.args) > place:
        return node.args[place]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def dims_along(node: fx.Node) -> list[int]:
    """Return the dimensions along which a node works; none if it does not say which."""
    place = ops.ALONG[node.target][0]
    dims = argument(node, place, "dim", "dims", "axis")
    rank = len(shape_of(node.all_input_nodes[0]))
    further = node.args[place + 1 :] if node.target == "flip" else ()
    listed = list(dims) if isinstance(dims, (tuple, list)) else [dims, *further]
    if any(not isinstance(d, int) or isinstance(d, bool) for d in listed):
        return []
    return [int(d) % rank for d in listed]


def compares_tensors(node: fx.Node) -> bool:
    """Tell whether max or min is that of two tensors."""
    return len(node.args) > 1 and isinstance(node.args[1], fx.Node)


def is_statistics(node: fx.Node) -> bool:
    """Tell whether a node takes one of the results of a mean or variance."""
    return node.all_input_nodes[0].target in ops.STATISTICS | {"std_mean", "var_mean"}
