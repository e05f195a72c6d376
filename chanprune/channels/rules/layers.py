"""Layers: what convolutions, linear layers and batch norms do with channels."""

from __future__ import annotations

import math

import numpy as np
from torch import fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.gathered import Gathered
from chanprune.channels.layers import ChannelNumbers, Layer, constant_layer
from chanprune.channels.rules.nodes import shape_of
from chanprune.channels.rules.walk import Walk


def convolution(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Make new channels, or keep those of the input if it is depthwise."""
    name = str(node.target)
    module = walk.modules[name]
    assert isinstance(module, ops.CONVOLUTIONS)
    inputs = walk.source(node)
    depthwise = module.groups > 1 and module.groups == module.in_channels
    blocks = 1 if depthwise else module.groups
    if depthwise:
        outputs = inputs.repeat(module.out_channels // module.in_channels)
    elif name in walk.layers:
        outputs = walk.layers[name].outputs
    else:
        outputs = walk.numbering.new(module.out_channels, name)
    layer = Layer(
        name,
        "conv",
        inputs,
        outputs,
        blocks=blocks,
        depthwise=depthwise,
        positions=math.prod(shape_of(node)[2:]),
        parameters=_parameters(module),
        rank=len(shape_of(node)),
        normalised_by=_following_norm(walk, node),
    )
    walk.check_layer(node, layer)
    for numbers in (inputs, outputs):
        walk.numbering.divide(numbers, blocks, name)
    _keep_whole_if_asked(walk, name, inputs)
    return walk.record(node, layer)


def linear(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Make new channels of features."""
    name = str(node.target)
    module = walk.modules[name]
    assert isinstance(module, nn.Linear)
    if len(shape_of(node)) != 2:
        raise walk.unsupported(node, "reads a tensor that is not (N, C)")
    known = walk.layers.get(name)
    outputs = known.outputs if known else walk.numbering.new(module.out_features, name)
    layer = Layer(
        name,
        "linear",
        walk.source(node),
        outputs,
        positions=1,
        parameters=_parameters(module),
        rank=2,
        normalised_by=_following_norm(walk, node),
    )
    walk.check_layer(node, layer)
    return walk.record(node, layer)


def batch_norm(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Keep the channels, or make new ones behind a gather from a stream."""
    name = str(node.target)
    module = walk.modules[name]
    inputs, index = walk.source(node), None
    producer = walk.layers.get(str(node.all_input_nodes[0].target))
    is_behind = producer is not None and producer.normalised_by == name
    gathers = isinstance(module, Gathered)
    if not gathers and (is_behind or walk.numbering.is_input(inputs)):
        outputs = inputs
        walk.numbering.normed_by(outputs, name)
    elif name in walk.layers:
        outputs, index = walk.layers[name].outputs, walk.layers[name].index
    else:
        walk.numbering.gathered_from(inputs, name)
        index = _gathered_index(module, len(inputs))
        outputs = walk.numbering.new(len(index), name, gathered=True)
    layer = Layer(
        name,
        "norm",
        inputs,
        outputs,
        index,
        positions=math.prod(shape_of(node)[2:]),
        parameters=_parameters(module),
        rank=len(shape_of(node)),
    )
    walk.check_layer(node, layer)
    if not getattr(module, "affine", False):
        walk.freeze(outputs, f"{name} has no scale")
    if name in walk.called:
        walk.freeze(outputs, f"{name} is called several times")
    _keep_whole_if_asked(walk, name, outputs)
    return walk.record(node, layer)


def constant(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Make channels of what a layer became that has nothing left to read."""
    name = str(node.target)
    known = walk.layers.get(name)
    width, rank = shape_of(node)[1], len(shape_of(node))
    outputs = known.outputs if known else walk.numbering.new(width, name, produced=False)
    return walk.record(node, constant_layer(name, outputs, (name,), rank))


def _parameters(module: nn.Module) -> tuple[str, ...]:
    state = module.state_dict()
    uncut = module.uncut if isinstance(module, Gathered) else ()
    return tuple(name for name, tensor in state.items() if tensor.dim() > 0 and name not in uncut)


def _keep_whole_if_asked(walk: Walk, name: str, numbers: ChannelNumbers) -> None:
    module = walk.modules[name]
    if isinstance(module, Gathered) and module.stays_whole:
        walk.freeze(numbers, f"{name} {module.stays_whole}")


def _following_norm(walk: Walk, node: fx.Node) -> str | None:
    """Name the batch norm that alone reads the node."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    target = str(users[0].target)
    return target if isinstance(walk.modules[target], ops.BATCH_NORMS) else None


def _gathered_index(module: nn.Module, width: int) -> ChannelNumbers:
    return module.index.cpu().numpy() if isinstance(module, Gathered) else np.arange(width)
