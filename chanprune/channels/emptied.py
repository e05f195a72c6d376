"""What is left of a network when whole channel groups are gone.

A residual block without a channel becomes its shortcut, and a dense layer without one appends
nothing. A layer that has nothing left to read emits a constant: its bias, or what its batch norm
makes of it; without either it is gone.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.graph import CodeGen

from chanprune.channels import operations as ops
from chanprune.channels.filled import Windows, filled, sizes_behind
from chanprune.channels.layers import Layer, Mask
from chanprune.channels.operations import name_of, words


class Constant(nn.Module):
    """One trainable number per channel, in place of a layer that has nothing to read.

    It is the same in both modes: what the layer, and the batch norms behind it, put out in eval
    mode. In train mode these norms would put out their shift alone.

    Args:
        bias: (C,) the numbers.
        rank: Dimensions of the output: 4 gives (1, C, 1, 1).
    """

    def __init__(self, bias: Tensor, rank: int):
        super().__init__()
        self.bias = nn.Parameter(bias)
        self.rank = rank

    def forward(self) -> Tensor:
        """Return (1, C, 1, ...), which broadcasts over images and positions."""
        return self.bias.view(1, -1, *[1] * (self.rank - 2))


@torch.no_grad()
def constant_of(model: nn.Module, layers: tuple[str, ...], kept: Tensor, rank: int) -> Constant:
    """Build what layers emit, one behind the other, when the first has nothing to read.

    Args:
        model: The network before compaction.
        layers: A convolution or linear layer with a bias and batch norms, or batch norms alone.
        kept: (C_kept,) indices of the channels that stay.
        rank: Dimensions of what they emit.
    """
    first, *norms = (copy.deepcopy(model.get_submodule(name)).eval() for name in layers)
    if isinstance(first, ops.BATCH_NORMS):
        parameter = next(model.parameters())
        nothing = torch.zeros(first.num_features, dtype=parameter.dtype, device=parameter.device)
        emitted = first(nothing.view(1, -1, *[1] * (rank - 2)))
    else:
        assert isinstance(first.bias, Tensor)
        emitted = first.bias.view(1, -1, *[1] * (rank - 2))
    for norm in norms:
        emitted = norm(emitted)
    return Constant(emitted.flatten()[kept], rank)


def what_remains(layers: Iterable[Layer], mask: Mask, stay: Mask) -> Mask:
    """Drop the channels that nothing writes, and those that nothing reads, until all is settled.

    Args:
        layers: All layers.
        mask: (num_channels,) True where the plan keeps the channel.
        stay: (num_channels,) True where the channel stays in any case.

    Returns:
        (num_channels,) True where the channel stays.

    Raises:
        ValueError: A batch norm that must stay whole would miss channels.
    """
    layers = [layer for layer in layers if not layer.passes_on]
    has_writer, has_reader = np.zeros_like(mask), np.zeros_like(mask)
    for layer in layers:
        has_writer[layer.outputs] = True
        has_reader[layer.inputs] = True
    while True:
        written, read = ~has_writer, ~has_reader
        for layer in layers:
            if layer.index is not None:
                written[layer.outputs] = mask[layer.inputs[layer.index]]
            elif mask[layer.inputs].any() or layer.kind == "constant":
                written[layer.outputs] = True
            if mask[layer.outputs].any():
                read[layer.inputs] = True
        settled = mask & (stay | (written & read))
        if (settled == mask).all():
            break
        mask = settled
    for layer in layers:
        if (
            layer.index is not None
            and (mask[layer.outputs] & ~mask[layer.inputs[layer.index]]).any()
        ):
            raise ValueError("the plan empties groups that a layer which must stay whole reads")
    return mask


_MOVES = words("permute transpose chunk split index_select stack") | ops.CONCATENATIONS


def keeps_zero(node: fx.Node) -> bool:
    """Tell whether a call makes zeros of zeros."""
    if node.op == "call_module":
        return bool(node.meta.get("keeps_zero"))
    name = name_of(node)
    numbers = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, (int, float))]
    if name in ops.PRODUCTS | ops.DIVISIONS | ops.KEEPS_ZERO | ops.RESHAPING:
        return True
    return name in _MOVES or (name in ops.SUMS and not any(numbers))


def _is_by_channel(node: fx.Node) -> bool:
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    return dim in (1, 1 - len(node.meta["shape"]))


def remaining_calls(
    calls: fx.Graph, layers: Mapping[str, Layer], keep: Mask, traced_keep: Mask, fills: bool
) -> tuple[fx.Graph, dict[str, tuple[str, ...]]]:
    """Leave out the calls that have nothing left to do.

    Args:
        calls: The traced calls.
        layers: The layers among them, by module name.
        keep: (num_channels,) True where the channel stays.
        traced_keep: The same of the channels that the calls were traced with.
        fills: A layer that has nothing to read puts out its bias at every position, so that
            whatever follows takes it; no group is gone, but a part that the layer reads alone.

    Returns:
        The calls that are left (the same graph if all are), and the layers that become constants,
        each with the layers that its value comes from.

    Raises:
        ValueError: A constant would meet an operation that is not a sum.
    """
    if all(
        layer.kind == "constant" or (keep[layer.inputs].any() and keep[layer.outputs].any())
        for layer in layers.values()
    ) and not any(_is_part(node) and _is_gone(node, traced_keep) for node in calls.nodes):
        return calls, {}
    rewriting = _Rewriting(layers, keep, calls._codegen)
    rewriting.traced_keep, rewriting.fills = traced_keep, fills
    for node in calls.nodes:
        rewriting.copied[node] = rewriting.copy(node)
    return rewriting.cleaned(), rewriting.constants


def _is_part(node: fx.Node) -> bool:
    """Tell whether a tensor is a part of another one, which may lose all channels alone."""
    return node.target is operator.getitem or bool(node.meta.get("taken"))


def _is_gone(node: fx.Node, traced_keep: Mask) -> bool:
    """Tell whether a tensor has no channel left."""
    channels = node.meta.get("channels")
    is_followed = isinstance(channels, np.ndarray) and channels.size > 0
    return bool(is_followed and not traced_keep[channels].any())


def _acts(node: fx.Node) -> bool:
    """Tell whether a call does something beside what it returns."""
    if node.op == "call_module":
        return node.meta.get("value", ...) is None
    return ops.is_in_place(node)


class _Rewriting:
    """A copy of the calls under construction.

    Attributes:
        copied: Call -> its copy; None if it is gone.
        zeros: The calls that are gone though their channels stay: what they emitted is zero.
        constants: Layer that becomes a constant -> the layers that its value comes from.
    """

    traced_keep: Mask
    fills: bool

    def __init__(self, layers: Mapping[str, Layer], keep: Mask, codegen: CodeGen):
        self.layers = layers
        self.keep = keep
        self.calls = fx.Graph()
        self.calls.set_codegen(codegen)
        self.copied: dict[fx.Node, fx.Node | None] = {}
        self.zeros: set[fx.Node] = set()
        self.constants: dict[str, tuple[str, ...]] = {}

    def copy(self, node: fx.Node) -> fx.Node | None:
        """Copy a call, replace it by a constant, or leave it out."""
        layer = self.layers.get(str(node.target)) if node.op == "call_module" else None
        if layer is not None:
            return self._copy_layer(node, layer)
        if _is_gone(node, self.traced_keep):
            return None
        sources = node.all_input_nodes
        left = [source for source in sources if self.copied[source] is not None]
        zeros = [source for source in sources if source in self.zeros]
        if sources and not left and node.op != "output":
            if zeros and not keeps_zero(node):
                raise ValueError(f"{zeros[0]} would be zero, which {node} cannot take")
            self.zeros.update([node] if zeros else [])
            return None
        constants = [source for source in left if self._is_constant(self.copied[source])]
        if name_of(node) in ops.SUMS:
            return self._copy_sum(node, left, bool(constants))
        if constants:
            raise ValueError(f"{constants[0]} would be a constant, which {node} cannot take")
        if node.op == "output" and not left:
            raise ValueError("nothing would reach the output")
        if len(left) == len(sources):
            return self._copied(node)
        if name_of(node) in ops.CONCATENATIONS and not zeros and _is_by_channel(node):
            return self._copy_concatenation(node)
        raise ValueError(f"{node} would lose one of its operands")

    def cleaned(self) -> fx.Graph:
        """Return the copy without calls whose results nobody reads, and that change nothing."""
        for node in reversed(list(self.calls.nodes)):
            if not node.users and node.op not in ("placeholder", "output"):
                if _acts(node):
                    continue
                self.constants.pop(str(node.target), None)
                self.calls.erase_node(node)
        return self.calls

    def _copy_layer(self, node: fx.Node, layer: Layer) -> fx.Node | None:
        name = str(node.target)
        if not self.keep[layer.outputs].any():
            return None
        if layer.kind == "constant":
            return self._copied(node)
        source = self.copied[node.all_input_nodes[0]]
        starves = not layer.passes_on and not self.keep[layer.inputs].any()
        if starves and self.fills:
            return self._filled(node, layer)
        if starves and layer.kind != "norm" and "bias" not in layer.parameters:
            self.zeros.add(node)
            return None
        if starves or source is None:
            self.constants[name] = (name,)
        elif self._is_constant(source):
            self.constants[name] = (*self.constants.get(str(source.target), ()), name)
        else:
            return self._copied(node)
        return self.calls.call_module(name)

    def _filled(self, node: fx.Node, layer: Layer) -> fx.Node:
        """Put the layer's bias, or zeros, at every position."""
        constant, width = None, int(self.keep[layer.outputs].sum())
        if layer.kind == "norm" or "bias" in layer.parameters:
            self.constants[layer.name] = (layer.name,)
            constant = self.calls.call_module(layer.name)
        axis = layer.axis % layer.rank
        windows: tuple[Windows, ...] = ()
        sizes: list[Any]
        if layer.rank == 2:
            beside = self._of_batch(node)
            sizes = [self.calls.call_method("size", (beside, 0)), 1]
        else:
            beside, windows = self._beside(node, axis)
            sizes = [self.calls.call_method("size", (beside, dim)) for dim in range(layer.rank)]
        given = (beside, constant, tuple(sizes), axis, width, windows)
        copy = self.calls.call_function(filled, given)
        copy.meta = dict(node.meta)
        return copy

    def _of_batch(self, node: fx.Node) -> fx.Node:
        """Return what is left, in front of a layer of features, that has as many images."""
        source, batch = node, node.meta["shape"][0]
        while (
            self.copied.get(source) is None
            or not source.meta.get("shape")
            or source.meta["shape"][0] != batch
        ):
            if not source.all_input_nodes:
                raise ValueError(f"{node} would have nothing to read, and no number of images")
            source = source.all_input_nodes[0]
        copy = self.copied[source]
        assert copy is not None
        return copy

    def _beside(self, node: fx.Node, axis: int) -> tuple[fx.Node, tuple[Windows, ...]]:
        """Return what is left that tells how large a layer's output is, and what lies between."""
        between: list[Windows] = []
        source, is_convolution = node, self.layers[str(node.target)].kind == "conv"
        rank = self.layers[str(node.target)].rank
        while self.copied.get(source) is None or len(source.meta.get("shape", ())) != rank:
            windows = source.meta.get("windows")
            if windows:
                between.insert(0, windows)
            elif "shape" in source.meta and not (
                source.meta.get("keeps_positions")
                or name_of(source) in ("view", "reshape", "transpose")  # of a channel shuffle
                or (source is node and not is_convolution)
            ):
                raise ValueError(f"{node} would have nothing to read, and {source} has no size")
            source = source.all_input_nodes[0]
        sizes = sizes_behind(source.meta["shape"], between)
        wanted = list(node.meta["shape"])
        if [*sizes[:axis], *sizes[axis + 1 :]] != [*wanted[:axis], *wanted[axis + 1 :]]:
            raise ValueError(f"{node} would have nothing to read, and nothing is as large as that")
        copy = self.copied[source]
        assert copy is not None
        return copy, tuple(between)

    def _copy_concatenation(self, node: fx.Node) -> fx.Node | None:
        tensors: Any = node.args[0] if node.args else node.kwargs["tensors"]
        left = [self.copied[tensor] for tensor in tensors if self.copied[tensor] is not None]
        if len(left) == 1:
            return left[0]
        copy = self.calls.call_function(torch.cat, (left, 1))
        copy.meta = dict(node.meta)
        return copy

    def _copy_sum(self, node: fx.Node, left: list[fx.Node], has_constant: bool) -> fx.Node | None:
        weighs = name_of(node) != "add" or "alpha" in node.kwargs
        if len(left) == len(node.all_input_nodes) and not has_constant:
            return self._copied(node)
        if weighs:
            raise ValueError(f"{node} would lose one of its operands")
        if len(left) == 1:
            return self.copied[left[0]]
        first, second = (self.copied[source] for source in left)
        if self._is_constant(first) and self._is_constant(second):
            raise ValueError(f"both operands of {node} would be constant")
        return self.calls.call_function(operator.add, (first, second))

    def _copied(self, node: fx.Node) -> fx.Node:
        def copied(source: fx.Node) -> fx.Node:
            result = self.copied[source]
            assert result is not None
            return result

        return self.calls.node_copy(node, copied)

    def _is_constant(self, node: fx.Node | None) -> bool:
        return node is not None and node.op == "call_module" and not node.args
