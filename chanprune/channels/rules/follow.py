"""The rules by which `trace` follows channels: which of them each call comes under."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.emptied import Constant
from chanprune.channels.operations import name_of
from chanprune.channels.refusals import refusing
from chanprune.channels.rules import arithmetic, layers, positions
from chanprune.channels.rules.nodes import compares_tensors, is_tensor, operand, shape_of
from chanprune.channels.rules.walk import Bare, Rule, Walk
from chanprune.channels.spread import on_axis

LARGEST_BARE = 1 << 22
_MODULES: list[tuple[Any, Rule]] = [
    ((*ops.CONVOLUTIONS, *ops.TRANSPOSED), layers.convolution),
    (nn.Linear, layers.linear),
    (ops.BATCH_NORMS, layers.batch_norm),
    ((*ops.INSTANCE_NORMS, nn.GroupNorm), layers.scale),
    (nn.PReLU, layers.prelu),
    ((nn.LayerNorm, nn.RMSNorm), layers.layer_norm),
    (nn.ChannelShuffle, positions.shuffled),
    (nn.PixelShuffle, positions.pixel_shuffled),
    (positions.POSITION_MODULES, positions.moved),
    (ops.GATE_MODULES, arithmetic.gate),
    (ops.ELEMENTWISE_MODULES, arithmetic.same),
    ((*ops.SPATIAL_MODULES, nn.Upsample), arithmetic.spatial),
    ((nn.Softmax, nn.LogSoftmax, nn.Softmin), arithmetic.along),
    (nn.GLU, arithmetic.gated),
]
_CALLS: list[tuple[frozenset[str], Rule]] = [
    (ops.ELEMENTWISE, arithmetic.elementwise),
    (ops.CASTS, arithmetic.cast),
    (ops.SPATIAL, arithmetic.spatial),
    (frozenset(ops.ALONG), arithmetic.along),
    (frozenset({"getitem"}), positions.indexed),
    (positions.MOVES | positions.SIZED, positions.moved),
    (ops.CONCATENATIONS | {"stack"}, positions.joined),
    (frozenset({"pad", "constant_pad_nd"}), positions.padded),
    (frozenset({"channel_shuffle", "native_channel_shuffle"}), positions.shuffled),
    (frozenset({"pixel_shuffle"}), positions.pixel_shuffled),
    (frozenset({"index_select"}), positions.selected),
    (frozenset({"im2col"}), positions.unfolded),
    (frozenset({"matmul", "bmm"}), arithmetic.product_of_matrices),
    (frozenset({"scaled_dot_product_attention"}), arithmetic.attention),
    (frozenset({"layer_norm", "rms_norm"}), layers.functional_norm),
    (frozenset({"glu"}), arithmetic.gated),
    (ops.FRESH, arithmetic.fresh),
]
_FUNCTIONS = {name: rule for names, rule in reversed(_CALLS) for name in names}
_MOVE = (positions.moved, positions.pixel_shuffled)
_KEEP_ZERO = (arithmetic.same, arithmetic.spatial, *_MOVE, layers.prelu)
_KEEP_POSITIONS = (
    *(arithmetic.same, arithmetic.gate, arithmetic.elementwise, arithmetic.cast),
    *(layers.batch_norm, layers.prelu, layers.scale, positions.joined),
)
_PASS_ON = (*_MOVE, positions.indexed, arithmetic.spatial, arithmetic.same, arithmetic.cast)


def follow(walk: Walk, calls: fx.Graph, training: bool = False) -> None:
    """Give the channels of all results their numbers."""
    walk.training = training
    walk.called = set()
    for node in calls.nodes:
        with refusing(f"the channels of {arithmetic.label(node)} cannot be followed"):
            _visit(walk, node)


def _visit(walk: Walk, node: fx.Node) -> None:
    if node.op == "output":
        walk.keep_whole(node, "it is the network's output")
    elif node.op == "placeholder":
        _visit_input(walk, node)
    elif node.op == "get_attr":
        if (
            walk.holds(str(node.target))
            and is_tensor(node)
            and math.prod(shape_of(node)) <= LARGEST_BARE
        ):
            places = np.arange(math.prod(shape_of(node))).reshape(tuple(shape_of(node)))
            walk.bare[node] = Bare((str(node.target),), places)
    elif isinstance(walk.modules.get(str(node.target)), Constant):
        layers.constant(walk, node)
    elif is_tensor(node) or node.meta["holds"]:
        _visit_call(walk, node)
    elif name_of(node) in ("assert", "assert_scalar"):
        walk.keep_whole(node, f"{arithmetic.label(node)} asks for its number of channels")
    elif node.meta["value"] is None:
        arithmetic.whole(walk, node)
    else:
        positions.sizes_of(walk, node)


def _visit_input(walk: Walk, node: fx.Node) -> None:
    if not is_tensor(node) or len(shape_of(node)) < 2:
        return
    if node.name not in walk.inputs:
        name = "input" if not walk.inputs else f"input {node.name}"
        reason = "it is the network's input"
        walk.inputs[node.name] = walk.numbering.fixed(shape_of(node)[1], name, reason)
    walk.put(node, on_axis(walk.inputs[node.name], len(shape_of(node)), 1))


def _visit_call(walk: Walk, node: fx.Node) -> None:
    if not any(is_tensor(source) or source in walk.channels for source in node.all_input_nodes):
        arithmetic.fresh(walk, node)
        return
    rule = _rule_of(walk, node)
    if node.op == "call_module":
        node.meta["keeps_zero"] = rule in _KEEP_ZERO and _keeps_zero(walk.modules[str(node.target)])
    rule(walk, node)
    node.meta["keeps_positions"] = rule in _KEEP_POSITIONS or positions.takes_channels_alone(
        walk, node
    )
    numbers = walk.numbers(node)
    assert numbers is None or numbers.ndim == len(shape_of(node)), node
    if rule in _PASS_ON and any(source in walk.nonzero for source in node.all_input_nodes):
        walk.nonzero.add(node)


def _keeps_zero(module: nn.Module) -> bool:
    """Tell of a layer whose numbers decide whether it makes zeros of zeros."""
    if isinstance(module, (nn.Hardtanh, nn.Threshold)):
        return not bool(module(torch.zeros(1)).any())
    return getattr(module, "value", 0) == 0


def _rule_of(walk: Walk, node: fx.Node) -> Rule:
    if node.op == "call_module":
        module = walk.modules[str(node.target)]
        rule = next((r for types, r in _MODULES if isinstance(module, types)), arithmetic.whole)
        needs = rule in (arithmetic.same, arithmetic.gate)
        return arithmetic.whole if needs and walk.numbers(operand(node)) is None else rule
    if isinstance(node.target, type):
        return arithmetic.whole
    takes = node.target is getattr or name_of(node) == "getitem"
    if takes and isinstance(walk.channels.get(node.all_input_nodes[0]), tuple):
        return positions.indexed
    if compares_tensors(node):
        return arithmetic.elementwise
    return _FUNCTIONS.get(name_of(node), arithmetic.whole)
