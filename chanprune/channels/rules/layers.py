"""Layers: what convolutions, linear layers and norms do with channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.baked import can_be_baked
from chanprune.channels.filled import windows_of
from chanprune.channels.gathered import Gathered
from chanprune.channels.layers import ChannelNumbers, Layer, constant_layer
from chanprune.channels.operations import name_of
from chanprune.channels.plain import has_code_of_its_own, treats_channels_alone
from chanprune.channels.rules.arithmetic import whole
from chanprune.channels.rules.nodes import argument, is_tensor, operand, shape_of, values
from chanprune.channels.rules.walk import Walk
from chanprune.channels.spread import axes_of


def convolution(walk: Walk, node: fx.Node) -> None:
    """Make new channels, or keep those of the input if it is depthwise."""
    name = str(node.target)
    module: Any = walk.modules[name]
    source = operand(node)
    transposed = isinstance(module, ops.TRANSPOSED)
    is_batched = len(shape_of(source)) == len(module.kernel_size) + 2
    depthwise = module.groups > 1 and module.groups == module.in_channels
    if not is_batched or (transposed and module.groups > 1 and not depthwise):
        whole(walk, node)
        return
    inputs = walk.read(source, 1, name)
    blocks = 1 if depthwise else module.groups
    if depthwise:
        outputs = inputs.repeat(module.out_channels // module.in_channels)
    else:
        outputs = _outputs(walk, name, module.out_channels)
    layer = Layer(
        name,
        "conv",
        inputs,
        outputs,
        blocks=blocks,
        depthwise=depthwise,
        transposed=transposed,
        positions=walk.positions(source if transposed else node, 1),
        output_positions=walk.positions(node, 1),
        parameters=_parameters(module),
        rank=len(shape_of(node)),
        normalised_by=_following_norm(walk, node),
    )
    if len(node.args) + len(node.kwargs) == 1:
        node.meta["windows"] = windows_of(module)
    for numbers in (inputs, outputs):
        walk.numbering.divide(numbers, blocks, name)
    _keep_whole_if_asked(walk, name, inputs)
    _record(walk, node, layer)


def linear(walk: Walk, node: fx.Node) -> None:
    """Make new channels of features, along the last axis."""
    name = str(node.target)
    module: Any = walk.modules[name]
    shape = shape_of(node)
    outputs = _outputs(walk, name, module.out_features)
    layer = Layer(
        name,
        "linear",
        walk.read(operand(node), -1, name),
        outputs,
        axis=-1,
        positions=walk.positions(node, -1),
        output_positions=walk.positions(node, -1),
        parameters=_parameters(module),
        rank=len(shape),
        normalised_by=_following_norm(walk, node),
    )
    _record(walk, node, layer)


def batch_norm(walk: Walk, node: fx.Node) -> None:
    """Keep the channels, or make new ones behind a gather from a stream."""
    name = str(node.target)
    module: Any = walk.modules[name]
    source = operand(node)
    inputs, index = walk.read(source, 1, name), None
    is_behind = _alone_behind_layer(walk, node)
    gathers = isinstance(module, Gathered)
    known = walk.layers.get(name)
    in_place = not gathers and (is_behind or walk.numbering.is_input(inputs))
    if in_place:
        outputs = inputs
        if module.affine:
            walk.numbering.normed_by(outputs, name)
    elif known is not None:
        outputs, index = known.outputs, known.index
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
        positions=walk.positions(node, 1),
        parameters=_parameters(module),
        rank=len(shape_of(node)),
    )
    if not module.affine and not in_place:
        walk.freeze(outputs, f"{name} has no scale")
    is_alike = in_place and (known is None or known.passes_on)
    if name in walk.called and not is_alike:
        walk.freeze(outputs, f"{name} is called several times")
    _keep_whole_if_asked(walk, name, outputs)
    _record(walk, node, layer)


def scale(walk: Walk, node: fx.Node) -> None:
    """Keep the channels, each of which has parameters of its own."""
    name = str(node.target)
    module: Any = walk.modules[name]
    source = operand(node)
    numbers = walk.numbers(source)
    if numbers is None or len(shape_of(source)) < 2 or not _is_by_channel(module):
        whole(walk, node)
        return
    inputs = walk.read(source, 1, name)
    rank = len(shape_of(node))
    layer = Layer(name, "scale", inputs, inputs, parameters=_parameters(module), rank=rank)
    _record(walk, node, layer)


def prelu(walk: Walk, node: fx.Node) -> None:
    """Follow one slope for all channels, or one for each."""
    module: Any = walk.modules[str(node.target)]
    if walk.numbers(operand(node)) is None:
        whole(walk, node)
    elif module.num_parameters == 1:
        walk.put(node, walk.channels[operand(node)])
    else:
        scale(walk, node)


def layer_norm(walk: Walk, node: fx.Node) -> None:
    """Keep whole what is normalised over channels."""
    module: Any = walk.modules[str(node.target)]
    normalised(walk, node, module.normalized_shape)


def functional_norm(walk: Walk, node: fx.Node) -> None:
    """Keep whole what a function normalises over channels."""
    normalised(walk, node, values(argument(node, 1, "normalized_shape")))


def normalised(walk: Walk, node: fx.Node, over: Any) -> None:
    """Follow a norm over the last dimensions."""
    numbers = walk.numbers(operand(node))
    sizes = [over] if isinstance(over, int) else list(over)
    if numbers is None:
        whole(walk, node)
        return
    first = numbers.ndim - len(sizes)
    for axis in axes_of(numbers):
        if axis >= first:
            reason = f"{node.target if node.op == 'call_module' else node.name} normalises over it"
            numbers = walk.whole_along(numbers, axis, reason)
    for source in node.all_input_nodes:
        walk.keep_bare_whole(source)
    walk.put(node, numbers)


def constant(walk: Walk, node: fx.Node) -> None:
    """Make channels of what a layer became that has nothing left to read."""
    name = str(node.target)
    known = walk.layers.get(name)
    width, rank = shape_of(node)[1], len(shape_of(node))
    outputs = known.outputs if known else walk.numbering.new(width, name, produced=False)
    walk.put_along(node, walk.record(constant_layer(name, outputs, (name,), rank)))


def _record(walk: Walk, node: fx.Node, layer: Layer) -> None:
    """Store a layer, unless it does something else with channels than PyTorch's."""
    module = walk.modules[layer.name]
    is_known = layer.name in walk.layers or layer.name in walk.baked
    if layer.kind != "scale" and not is_known:
        positions = [] if layer.kind == "linear" else shape_of(operand(node))[2:]
        bakes = has_code_of_its_own(module) and not treats_channels_alone(module, layer, positions)
        if bakes and not can_be_baked(module, shape_of(operand(node))):
            for numbers in (layer.inputs, layer.outputs):
                walk.freeze(numbers, f"{layer.name} computes its weights while it runs")
            return
        if bakes:
            walk.baked.add(layer.name)
            plain = tuple(p for p in layer.parameters if p in ("weight", "bias"))
            layer = replace(layer, parameters=plain)
    walk.put_along(node, walk.record(layer), layer.axis)


def _outputs(walk: Walk, name: str, width: int) -> ChannelNumbers:
    known = walk.layers.get(name)
    return known.outputs if known else walk.numbering.new(width, name)


def _is_by_channel(module: Any) -> bool:
    if isinstance(module, nn.GroupNorm):
        return module.num_groups == module.num_channels
    return True


def _parameters(module: nn.Module) -> tuple[str, ...]:
    state = module.state_dict()
    uncut = module.uncut if isinstance(module, Gathered) else ()
    return tuple(name for name, tensor in state.items() if tensor.dim() > 0 and name not in uncut)


def _keep_whole_if_asked(walk: Walk, name: str, numbers: ChannelNumbers) -> None:
    module = walk.modules[name]
    if isinstance(module, Gathered) and module.stays_whole:
        walk.freeze(numbers, f"{name} {module.stays_whole}")


def _following_norm(walk: Walk, node: fx.Node) -> frozenset[str]:
    """Name the batch norm that alone reads the node, if one does."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return frozenset()
    target = str(users[0].target)
    is_norm = isinstance(walk.modules[target], ops.BATCH_NORMS)
    return frozenset({target}) if is_norm else frozenset()


def _alone_behind_layer(walk: Walk, norm: fx.Node) -> bool:
    """Tell whether a batch norm alone reads a layer, maybe behind what leaves channels alone."""
    reader, source = norm, operand(norm)
    while all(user is reader or "value" in user.meta for user in source.users):
        if source.op == "call_module" and str(source.target) in walk.layers:
            layer = walk.layers[str(source.target)]
            norms = layer.normalised_by
            return layer.kind != "norm" and (reader is not norm or str(norm.target) in norms)
        sources = [each for each in source.all_input_nodes if is_tensor(each)]
        if len(sources) != 1 or not _leaves_channels_alone(walk, source):
            return False
        reader, source = source, sources[0]
    return False


def _leaves_channels_alone(walk: Walk, node: fx.Node) -> bool:
    """Tell whether a call treats each element alone, or gives a tensor another shape.

    In place of an identity another form of the network may move channels, as a converted
    CondenseNet does; the groups of both are to have the same names.
    """
    if node.op == "call_module":
        module = walk.module(node)
        return isinstance(module, ops.ELEMENTWISE_MODULES) and not isinstance(module, nn.Identity)
    return name_of(node) in ops.ELEMENTWISE | {"view", "reshape", "flatten", "unflatten"}


def _gathered_index(module: nn.Module, width: int) -> ChannelNumbers:
    return module.index.cpu().numpy() if isinstance(module, Gathered) else np.arange(width)
