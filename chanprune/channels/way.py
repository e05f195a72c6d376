"""From a batch norm to the layers that can do its work, over calls that only move channels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.affine import Affine, has_copies, reads_beyond_edges
from chanprune.channels.calls import HOOKS
from chanprune.channels.operations import name_of
from chanprune.channels.plain import has_code_of_its_own

LAYERS = (*ops.CONVOLUTIONS, *ops.TRANSPOSED, nn.Linear)
# What they return for an image that is scaled and shifted is scaled and shifted alike.
_PASSING = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@dataclass(frozen=True)
class Edit:
    """What one call of a layer is to do besides.

    Attributes:
        call: The call.
        layer: The layer.
        affine: What it does to its outputs, or what it reads.
    """

    call: fx.Node
    layer: nn.Module
    affine: Affine


class Calls:
    """The calls of a network in eval mode, and what they are of.

    Args:
        model: The network.
        graph: Its calls, with shapes.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph):
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.tensors = dict(model.named_buffers(remove_duplicate=False))
        self.nodes = list(graph.nodes)
        self.read = {str(n.target).rpartition(".")[0] for n in self.nodes if n.op == "get_attr"}
        self.of: dict[int, list[fx.Node]] = {}
        for node in self.nodes:
            if node.op == "call_module":
                self.of.setdefault(id(self.modules[str(node.target)]), []).append(node)
        self.uses = Counter(argument for node in self.nodes for argument in _arguments(node))

    def module(self, node: Any) -> nn.Module | None:
        """Return the module that a call is of, if it has no hooks and reads its tensors alone."""
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return None
        name, module = str(node.target), self.modules[str(node.target)]
        owners = [name[:end] for end in range(1, len(name) + 1) if name[end : end + 1] in (".", "")]
        hooked = any(getattr(self.modules[owner], kind) for owner in owners for kind in HOOKS)
        return None if hooked or name in self.read or "forward" in vars(module) else module

    def layer(self, node: Any) -> Any:
        """Return the plain convolution or linear layer that a call is of, or None."""
        module = self.module(node)
        if not isinstance(module, LAYERS) or has_code_of_its_own(module):
            return None
        is_plain = "weight" in module._parameters and "bias" in module._parameters
        return module if is_plain and len(node.args) == 1 and not node.kwargs else None

    def in_front(self, node: Any, affine: Affine) -> list[Edit] | None:
        """Find the layers that can do a batch norm's work for their outputs.

        Args:
            node: The call that returns what the norm reads, or part of it.
            affine: What is done to it.

        Returns:
            Their edits; None: something else is in the way.
        """
        if not isinstance(node, fx.Node) or self.uses[node] != 1:
            return None
        layer = self.layer(node)
        if layer is not None:
            return [Edit(node, layer, affine)] if _is_along(node, layer) else None
        if node.op == "call_function" and name_of(node) == "add" and _adds_alike(node):
            left = self.in_front(node.args[0], affine)
            right = self.in_front(node.args[1], affine.without_shift)
            return None if left is None or right is None else left + right
        passed = self._passed(node)
        if passed is None or len(_shape(node)) != len(_shape(passed[0])):
            return None
        source, index = passed
        before = affine.spread(index, _shape(source)[1])
        return None if before is None else self.in_front(source, before)

    def behind(self, node: fx.Node, affine: Affine) -> list[Edit] | None:
        """Find the layer that can do a batch norm's work for what it reads; as `in_front`.

        Args:
            node: The call that returns what the norm puts out.
            affine: What the norm does.
        """
        if self.uses[node] != 1:
            return None
        (user,) = node.users
        layer = self.layer(user)
        if layer is not None:
            fits = not isinstance(layer, ops.TRANSPOSED) and not has_copies(layer)
            fits = fits and _is_along(user, layer) and not reads_beyond_edges(layer, affine)
            return [Edit(user, layer, affine)] if fits else None
        if _is_flatten(user, self.module(user)):
            times = _shape(user)[1] // _shape(node)[1]
            return self.behind(user, affine.taken(_every(len(affine.scale), times)))
        passed = self._passed(user)
        return None if passed is None else self.behind(user, affine.taken(passed[1]))

    def _passed(self, node: fx.Node) -> tuple[fx.Node, Tensor | None] | None:
        """Return what a call moves channels of, and the channels (K,) that it takes; None: all.

        Returns:
            None if it does more.
        """
        if name_of(node) == "index_select" and node.op == "call_function":
            return self._gather(node)
        module = self.module(node)
        if module is None or len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
            return None
        source = node.args[0]
        if type(module) is nn.ChannelShuffle:
            width = _shape(source)[1]
            return source, torch.arange(width).view(module.groups, -1).t().flatten()
        passes = type(module) in _PASSING or (type(module) in _AVERAGES and not _pads(module))
        return (source, None) if passes else None

    def _gather(self, node: fx.Node) -> tuple[fx.Node, Tensor] | None:
        given = dict(zip(("input", "dim", "index"), node.args, strict=False)) | dict(node.kwargs)
        source, index = given.get("input"), given.get("index")
        if given.get("dim") != 1 or not isinstance(source, fx.Node):
            return None
        is_known = isinstance(index, fx.Node) and str(index.target) in self.tensors
        return (source, self.tensors[str(index.target)]) if is_known else None  # type: ignore[union-attr]


def _every(width: int, times: int) -> Tensor:
    return torch.arange(width).repeat_interleave(times)


def _arguments(node: fx.Node) -> list[fx.Node]:
    """List the calls whose results another one takes, one that is taken twice twice."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta.get("shape", ())) if isinstance(node, fx.Node) else ()


def _is_along(node: fx.Node, layer: nn.Module) -> bool:
    """Tell whether the channels of a layer are along dimension 1 of what it puts out."""
    rank = 2 if isinstance(layer, nn.Linear) else layer.weight.dim()  # type: ignore[operator]
    return len(_shape(node)) == rank


def _adds_alike(node: fx.Node) -> bool:
    """Tell whether a call adds two tensors of one shape."""
    return (
        len(node.args) == 2
        and not node.kwargs
        and _shape(node.args[0]) == _shape(node.args[1]) == _shape(node)
    )


def _is_flatten(node: fx.Node, module: nn.Module | None) -> bool:
    """Tell whether a call flattens all dimensions behind the first."""
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    given = (*node.args[1:], *node.kwargs.values())
    return node.op != "call_module" and name_of(node) == "flatten" and given in {(1,), (1, -1)}


def _pads(pool: Any) -> bool:
    padding = (pool.padding,) if isinstance(pool.padding, int) else pool.padding
    return any(padding) or pool.ceil_mode
