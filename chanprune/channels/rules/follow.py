"""The rules by which `trace` follows channels: which of them each call comes under."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.emptied import Constant
from chanprune.channels.rules import arithmetic, layers, positions
from chanprune.channels.rules.nodes import (
    compares_tensors,
    dims_along,
    is_statistics,
    is_tensor,
    name_of,
    shape_of,
)
from chanprune.channels.rules.walk import Rule, Walk

_EXTREMES = frozenset({torch.max, torch.min, "max", "min"})
_MODULES: list[tuple[Any, Rule]] = [
    (ops.CONVOLUTIONS, layers.convolution),
    (nn.Linear, layers.linear),
    (ops.BATCH_NORMS, layers.batch_norm),
    (nn.Flatten, positions.flatten),
    (nn.ChannelShuffle, positions.shuffle),
    (nn.PReLU, arithmetic.prelu),
    (ops.CHANNELWISE_MODULES, arithmetic.channelwise),
    (ops.ELEMENTWISE_MODULES, arithmetic.elementwise),
    (ops.GATE_MODULES, arithmetic.gate),
    (ops.WHOLE_MODULES, arithmetic.whole),
]
_CALLS: list[tuple[frozenset[Any], Rule]] = [
    (ops.CHANNELWISE_FUNCTIONS | ops.CHANNELWISE_METHODS, arithmetic.channelwise),
    (ops.ELEMENTWISE, arithmetic.elementwise),
    (ops.GATES, arithmetic.gate),
    (ops.SUMS | ops.SUM_METHODS | ops.PAIRS | _EXTREMES, arithmetic.total),
    (ops.PRODUCTS | ops.PRODUCT_METHODS, arithmetic.product),
    (ops.CONCATENATIONS, positions.concatenation),
    (ops.PADS, positions.pad),
    (ops.SLICES | ops.ATTRIBUTES, positions.sliced),
    (ops.SQUEEZES, positions.squeeze),
    (ops.UNSQUEEZES, positions.unsqueeze),
    (ops.PERMUTATIONS, positions.permute),
    (ops.SELECTIONS | {"index_select"}, positions.select),
    (ops.FLATTENS | {"flatten"}, positions.flatten),
    (ops.RESHAPES | ops.EXPANSIONS | ops.LIKE | {"reshape", "view"}, positions.reshape),
    (ops.FRESH, arithmetic.fresh),
]
_READ_SIZES = (positions.reshape, arithmetic.fresh)
_PASS_ON = (
    *(arithmetic.channelwise, positions.sliced, positions.squeeze, positions.unsqueeze),
    *(positions.permute, positions.flatten, positions.reshape),
)


def follow(walk: Walk, calls: fx.Graph, training: bool = False) -> None:
    """Give the channels of all results their numbers.

    Raises:
        UnsupportedNetwork: The effect of a call on channels is not known.
    """
    walk.training = training
    walk.called = set()
    for node in calls.nodes:
        node.meta["keeps_zero"] = True
        _visit(walk, node)


def _visit(walk: Walk, node: fx.Node) -> None:
    sources = node.all_input_nodes
    if node.op == "output":
        _visit_output(walk, node)
    elif node.op == "placeholder":
        if walk.images is None:
            walk.images = walk.numbering.new(shape_of(node)[1], "input")
            walk.freeze(walk.images, "it is the network's input")
        walk.channels[node] = walk.images
    elif isinstance(walk.modules.get(str(node.target)), Constant):
        walk.channels[node] = layers.constant(walk, node)
    elif any(source in walk.channels for source in sources):
        _visit_call(walk, node)
    elif any(source in walk.dims for source in sources) and node.target in ops.SLICES:
        positions.channel_sizes(walk, node)
    elif node.target is torch._assert:
        _freeze_sizes(walk, node)
    elif known := [walk.sizes[source] for source in sources if source in walk.sizes]:
        walk.sizes[node] = np.concatenate(known)


def _visit_output(walk: Walk, node: fx.Node) -> None:
    _follow_nonzero(walk, node, None)
    for source in node.all_input_nodes:
        for known in (walk.channels, walk.sizes):
            if source in known:
                walk.freeze(known[source], "it is the network's output")


def _visit_call(walk: Walk, node: fx.Node) -> None:
    if not (is_tensor(node) or node.meta["holds"]):
        positions.channel_sizes(walk, node)
        return
    rule = _rule_of(walk, node)
    node.meta["keeps_zero"] = rule not in (arithmetic.gate, arithmetic.whole)
    _follow_nonzero(walk, node, rule)
    if rule not in _READ_SIZES:
        _freeze_sizes(walk, node)
    _check_in_place(walk, node, rule)
    numbers = rule(walk, node)
    if numbers is None:
        return
    if is_tensor(node) and [len(numbers)] != list(shape_of(node)[1:2]):
        raise walk.unsupported(node, "changes the number of channels")
    walk.channels[node] = numbers


def _freeze_sizes(walk: Walk, node: fx.Node) -> None:
    for source in node.all_input_nodes:
        if source in walk.sizes:
            reason = f"{node.name} computes with its number of channels"
            walk.freeze(walk.sizes[source], reason)


def _check_in_place(walk: Walk, node: fx.Node, rule: Rule) -> None:
    """Refuse what changes a tensor that others read under its earlier name."""
    name = name_of(node)
    module = walk.modules.get(name) if node.op == "call_module" else None
    is_method = name.endswith("_") and not name.endswith("__")
    if not (is_method or getattr(module, "inplace", False)):
        return
    if not node.users:
        raise walk.unsupported(node, "changes a tensor in place and its result is not used")
    if rule is arithmetic.gate:
        walk.freeze(walk.source(node), f"{node.name} is not zero where its input is")


def _follow_nonzero(walk: Walk, node: fx.Node, rule: Rule | None) -> None:
    """Follow values that are not zero on dropped channels until a product makes them so."""
    sources = [source for source in node.all_input_nodes if source in walk.channels]
    nonzero = [source for source in sources if source in walk.nonzero]
    if rule is arithmetic.gate or (nonzero and rule in _PASS_ON):
        walk.nonzero.add(node)
    elif rule is arithmetic.product and 0 < len(nonzero) < len(sources):
        for source in nonzero:
            walk.numbering.gates(walk.channels[source])
    else:
        for source in nonzero:
            walk.freeze(walk.channels[source], f"{source} is not zero where its input is")


def _rule_of(walk: Walk, node: fx.Node) -> Rule:
    if node.op == "call_module":
        module = walk.modules[str(node.target)]
        for types, rule in _MODULES:
            if isinstance(module, types):
                return _by_its_numbers(walk, node, rule)
        raise walk.unsupported(node, "is not a layer that this project knows")
    if isinstance(node.target, type):
        return arithmetic.container
    if f"{getattr(node.target, '__module__', '')}.{name_of(node)}" in ops.CHANNELWISE_NAMES:
        return arithmetic.channelwise
    if node.target in ops.ALONG and not compares_tensors(node):
        return _along(walk, node)
    for targets, rule in _CALLS:
        if node.target in targets:
            return _by_its_numbers(walk, node, rule)
    raise walk.unsupported(node, "is not an operation that this project knows")


def _by_its_numbers(walk: Walk, node: fx.Node, rule: Rule) -> Rule:
    """Choose between what keeps a channel of zeros and what does not."""
    if rule is positions.sliced and not is_tensor(node.all_input_nodes[0]):
        is_first = node.args[1] in (0, "values")
        return arithmetic.channelwise if is_first or is_statistics(node) else arithmetic.gate
    if rule is not arithmetic.elementwise:
        return rule
    if len(node.all_input_nodes) > 1:
        raise walk.unsupported(node, "combines several tensors")
    return arithmetic.channelwise if _keeps_zeros(walk, node) else arithmetic.gate


def _keeps_zeros(walk: Walk, node: fx.Node) -> bool:
    """Try on zeros an operation that is given numbers besides."""
    zeros = torch.zeros([1] * len(shape_of(node.all_input_nodes[0])), device="cpu")
    module = walk.module(node)
    if module is not None:
        result = module(zeros)
    else:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: zeros)
        is_method = node.op == "call_method"
        call: Any = getattr(torch.Tensor, str(node.target)) if is_method else node.target
        result = call(*args, **kwargs)
    return not bool(result.any())


def _along(walk: Walk, node: fx.Node) -> Rule:
    keeps_zero = ops.ALONG[node.target][1]
    dims = dims_along(node)
    if dims and min(dims) >= 2:
        return arithmetic.channelwise if keeps_zero else arithmetic.gate
    if node.target in ops.WHOLE_FUNCTIONS or node.target in ops.WHOLE_METHODS:
        return arithmetic.whole
    raise walk.unsupported(node, "does not leave the channels apart")
