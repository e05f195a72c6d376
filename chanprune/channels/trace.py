"""Find the channel graph of a network by tracing it (torch.fx).

Every tensor of the traced network carries the numbers of its channels. Convolutions and linear
layers make new numbers; sums unite them, concatenations join them, batch norms keep them, or make
new ones behind a gather where they read a stream that others read as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from chanprune.channels import operations as ops
from chanprune.channels.copies import OF_COPIES, Copying
from chanprune.channels.emptied import Constant
from chanprune.channels.gathered import Gathered
from chanprune.channels.graph import ChannelGraph, ChannelNumbers, Layer, constant_layer
from chanprune.channels.modes import evaluating
from chanprune.channels.unite import Numbering

Handler = Callable[["_Walk", fx.Node], ChannelNumbers | None]


class UnsupportedNetwork(ValueError):  # noqa: N818
    """The network cannot be traced, or its channels cannot be followed; names the layer."""


def trace(model: nn.Module, input_shape: Sequence[int]) -> ChannelGraph:
    """Find all channel groups of a network.

    Args:
        model: The network; it is not changed, and may live on the meta device.
        input_shape: (C, H, W) of one image.

    Raises:
        UnsupportedNetwork: The network has control flow that depends on data, or an operation on
            channels whose effect is not known.
    """
    with evaluating(model):
        traced = _trace_calls(model)
        _note_shapes(traced, model, input_shape)
    walk = _Walk(traced, _tied_modules(model))
    for node in traced.graph.nodes:
        walk.visit(node)
    groups, renumbered = walk.numbering.groups()
    layers = {
        name: replace(layer, inputs=renumbered[layer.inputs], outputs=renumbered[layer.outputs])
        for name, layer in walk.layers.items()
    }
    return ChannelGraph(groups, layers, traced.graph, tuple(input_shape))


def _trace_calls(model: nn.Module) -> fx.GraphModule:
    tracer = _Tracer()
    try:
        return fx.GraphModule(model, tracer.trace(model))
    except Exception as error:
        inside = list(tracer.module_stack.values()) or [("", type(model))]
        name, kind = inside[-1]
        where = f"layer {name} ({_type_name(kind)})" if name else _type_name(kind)
        raise UnsupportedNetwork(
            f"{where} cannot be traced: {str(error).strip().splitlines()[0]}; its forward must not "
            "branch on the values of tensors"
        ) from error


def _note_shapes(traced: fx.GraphModule, model: nn.Module, input_shape: Sequence[int]) -> None:
    parameter = next(model.parameters(), torch.empty(0))
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            shape = (2, *input_shape)
            images = torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
            _Shapes(traced.eval()).run(images)
    except Exception as error:
        raise UnsupportedNetwork(
            f"{type(model).__name__} does not take images of shape {tuple(input_shape)}: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error


class _Tracer(fx.Tracer):
    """Do not look inside the layers that run over channels, also where a library extends them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether the module is one call."""
        layers = (*ops.CONVOLUTIONS, nn.Linear, *ops.BATCH_NORMS, Constant)
        return isinstance(m, layers) or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Run the calls without values, and note the shape of every tensor."""

    def __init__(self, traced: fx.GraphModule):
        super().__init__(traced)
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        """Run one call."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = result.shape
        return result


def _type_name(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]


def _tied_modules(model: nn.Module) -> dict[str, str]:
    """Find the modules that share a parameter with another one: name -> the other's name."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        module = name.rpartition(".")[0]
        other = first.setdefault(id(parameter), module)
        if other != module:
            tied[module], tied[other] = other, module
    return tied


class _Walk:
    """One pass over the traced calls; `channels` maps each node to its channel numbers."""

    def __init__(self, traced: fx.GraphModule, tied: dict[str, str]):
        self.modules = dict(traced.named_modules())
        self.tied = tied
        self.channels: dict[fx.Node, ChannelNumbers] = {}
        self.nonzero: set[fx.Node] = set()
        self.layers: dict[str, Layer] = {}
        self.numbering = Numbering()

    def visit(self, node: fx.Node) -> None:
        """Give the node's channels their numbers."""
        if node.op == "output":
            self._follow_nonzero(node, None)
            for source in node.all_input_nodes:
                if source in self.channels:
                    self.freeze(self.channels[source], "it is the network's output")
        elif node.op == "placeholder":
            self.channels[node] = self.numbering.new(_shape(node)[1], "input")
            self.freeze(self.channels[node], "it is the network's input")
        elif isinstance(self.modules.get(str(node.target)), Constant):
            self.channels[node] = _constant(self, node)
        elif any(source in self.channels for source in node.all_input_nodes):
            handler = self._handler(node)
            node.meta["keeps_zero"] = handler not in (_gate, _whole)
            self._follow_nonzero(node, handler)
            numbers = handler(self, node)
            if numbers is not None:
                if len(numbers) != _shape(node)[1]:
                    raise self.unsupported(node, "changes the number of channels unexpectedly")
                self.channels[node] = numbers

    def _follow_nonzero(self, node: fx.Node, handler: Handler | None) -> None:
        """Follow values that are not zero on dropped channels until a product makes them so."""
        sources = [source for source in node.all_input_nodes if source in self.channels]
        nonzero = [source for source in sources if source in self.nonzero]
        if handler is _gate or (nonzero and handler is _channelwise):
            self.nonzero.add(node)
        elif handler is _united and 0 < len(nonzero) < len(sources):
            for source in nonzero:
                self.numbering.gates(self.channels[source])
        else:
            for source in nonzero:
                self.freeze(self.channels[source], f"{source} is not zero where its input is")

    def _handler(self, node: fx.Node) -> Handler:
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            for types, handler in _MODULES:
                if isinstance(module, types):
                    return handler
            raise self.unsupported(node, "is not a layer that this project knows")
        if not _is_tensor(node):
            return lambda walk, node: None
        for targets, handler in _CALLS:
            if node.target in targets:
                return handler
        raise self.unsupported(node, "is not an operation that this project knows")

    def source(self, node: fx.Node) -> ChannelNumbers:
        """Return the channel numbers of the node's first operand."""
        first = node.all_input_nodes[0]
        if first not in self.channels:
            raise self.unsupported(node, "has an operand without channels")
        return self.channels[first]

    def freeze(self, numbers: ChannelNumbers, reason: str) -> None:
        """Keep these channels whole."""
        self.numbering.freeze(numbers, reason)

    def unsupported(self, node: fx.Node, what: str) -> UnsupportedNetwork:
        """Name the layer of a node in an error."""
        if node.op == "call_module":
            where = f"layer {node.target} ({type(self.modules[str(node.target)]).__name__})"
        else:
            path = list(node.meta.get("nn_module_stack", {}).values())
            owner = path[-1][0] if path else ""
            name = getattr(node.target, "__name__", node.target)
            where = f"operation {name} in {owner or 'the network'}"
        return UnsupportedNetwork(
            f"{where} {what}, so that its channels cannot be followed; what is known stands in "
            "chanprune/channels/operations.py"
        )

    def record(self, node: fx.Node, layer: Layer) -> ChannelNumbers:
        """Store a layer, or unite its channels with those of its earlier calls."""
        if layer.name in self.tied:
            reason = f"{layer.name} shares its weights with {self.tied[layer.name]}"
            self.freeze(layer.inputs, reason)
            self.freeze(layer.outputs, reason)
        earlier = self.layers.get(layer.name)
        if earlier is None:
            self.layers[layer.name] = layer
            return layer.outputs
        self.numbering.unite(earlier.inputs, layer.inputs)
        self.numbering.unite(earlier.outputs, layer.outputs)
        self.layers[layer.name] = replace(
            earlier, positions=earlier.positions + layer.positions, normalised_by=None
        )
        return earlier.outputs


def _shape(node: fx.Node) -> torch.Size:
    shape: torch.Size = node.meta["shape"]
    return shape


def _is_tensor(node: fx.Node) -> bool:
    return "shape" in node.meta


def _parameters(module: nn.Module) -> tuple[str, ...]:
    state = module.state_dict()
    others = OF_COPIES if isinstance(module, Copying) else ()
    return tuple(name for name, tensor in state.items() if tensor.dim() > 0 and name not in others)


def _convolution(walk: _Walk, node: fx.Node) -> ChannelNumbers:
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
    for numbers in (inputs, outputs):
        walk.numbering.divide(numbers, blocks, name)
    if isinstance(module, Copying):
        walk.freeze(inputs, f"{name} has copies of channels")
    positions = math.prod(_shape(node)[2:])
    follower = _following_norm(walk, node)
    layer = Layer(
        name,
        "conv",
        inputs,
        outputs,
        blocks=blocks,
        depthwise=depthwise,
        positions=positions,
        parameters=_parameters(module),
        normalised_by=follower,
    )
    return walk.record(node, layer)


def _constant(walk: _Walk, node: fx.Node) -> ChannelNumbers:
    name = str(node.target)
    outputs = walk.numbering.new(_shape(node)[1], name, produced=False)
    return walk.record(node, constant_layer(name, outputs, made_of=(name,)))


def _linear(walk: _Walk, node: fx.Node) -> ChannelNumbers:
    name = str(node.target)
    module = walk.modules[name]
    assert isinstance(module, nn.Linear)
    if len(_shape(node)) != 2:
        raise walk.unsupported(node, "reads a tensor that is not (N, C)")
    known = walk.layers.get(name)
    outputs = known.outputs if known else walk.numbering.new(module.out_features, name)
    follower = _following_norm(walk, node)
    layer = Layer(
        name,
        "linear",
        walk.source(node),
        outputs,
        positions=1,
        parameters=_parameters(module),
        normalised_by=follower,
    )
    return walk.record(node, layer)


def _following_norm(walk: _Walk, node: fx.Node) -> str | None:
    """Name the batch norm that alone reads the node."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    target = str(users[0].target)
    return target if isinstance(walk.modules[target], ops.BATCH_NORMS) else None


def _batch_norm(walk: _Walk, node: fx.Node) -> ChannelNumbers:
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
    if not getattr(module, "affine", False):
        walk.freeze(outputs, f"{name} has no scale")
    if name in walk.layers:
        walk.freeze(outputs, f"{name} is called several times")
    if isinstance(module, Copying):
        walk.freeze(outputs, f"{name} has copies of channels")
    return walk.record(
        node,
        Layer(
            name,
            "norm",
            inputs,
            outputs,
            index,
            positions=math.prod(_shape(node)[2:]),
            parameters=_parameters(module),
        ),
    )


def _gathered_index(module: nn.Module, width: int) -> ChannelNumbers:
    return module.index.cpu().numpy() if isinstance(module, Gathered) else np.arange(width)


def _channelwise(walk: _Walk, node: fx.Node) -> ChannelNumbers:
    return walk.source(node)


def _gate(walk: _Walk, node: fx.Node) -> ChannelNumbers:
    return walk.source(node)


def _whole(walk: _Walk, node: fx.Node) -> ChannelNumbers:
    name = getattr(node.target, "__name__", str(node.target))
    walk.freeze(walk.source(node), f"{name} needs all its channels")
    return walk.source(node)


def _sum(walk: _Walk, node: fx.Node) -> ChannelNumbers:
    """Unite the channels of both sides; adding a number makes something of zero channels."""
    numbers = _united(walk, node)
    if len(node.all_input_nodes) == 1 and any(
        isinstance(a, (int, float)) and a != 0 for a in node.args
    ):
        walk.freeze(numbers, "a number is added to it")
    return numbers


def _united(walk: _Walk, node: fx.Node) -> ChannelNumbers:
    width = _shape(node)[1]
    sides = []
    for side in node.all_input_nodes:
        if not _is_tensor(side):
            continue
        if side not in walk.channels:
            raise walk.unsupported(node, f"uses {side.target}, which is no layer's output")
        if len(walk.channels[side]) == width and len(_shape(side)) == len(_shape(node)):
            sides.append(walk.channels[side])
        else:
            walk.freeze(walk.channels[side], f"it is broadcast in {node.name}")
    if not sides:
        raise walk.unsupported(node, "broadcasts all its operands")
    for other in sides[1:]:
        walk.numbering.unite(sides[0], other)
    return sides[0]


def _concatenation(walk: _Walk, node: fx.Node) -> ChannelNumbers:
    tensors: Any = node.args[0] if node.args else node.kwargs["tensors"]
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    assert isinstance(dim, int)
    if any(side not in walk.channels for side in tensors):
        raise walk.unsupported(node, "has an operand without channels")
    if dim in (1, 1 - len(_shape(node))):
        return np.concatenate([walk.channels[side] for side in tensors])
    for side in tensors[1:]:
        walk.numbering.unite(walk.channels[tensors[0]], walk.channels[side])
    return walk.channels[tensors[0]]


def _pad(walk: _Walk, node: fx.Node) -> ChannelNumbers:
    """Follow padding of positions, and zeros as further channels."""
    sizes: Any = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    if mode == "constant" and value not in (None, 0):
        return _whole(walk, node)
    rank = len(_shape(node))
    ends = [0] * 2 * rank
    ends[: len(sizes)] = sizes
    before, after = ends[2 * (rank - 2) : 2 * (rank - 1)]
    if min(before, after, *ends[2 * (rank - 1) :]) < 0 or any(ends[2 * (rank - 1) :]):
        raise walk.unsupported(node, "pads the batch or cuts channels")
    zeros = [walk.numbering.zeros(size, node.name) for size in (before, after)]
    return np.concatenate([zeros[0], walk.source(node), zeros[1]])


def _slice(walk: _Walk, node: fx.Node) -> ChannelNumbers:
    """Follow a slice of positions, such as x[:, :, ::2, ::2]."""
    index = node.args[1]
    parts = index if isinstance(index, tuple) else (index,)
    everything = slice(None)
    if any(part is Ellipsis or not isinstance(part, slice) for part in parts) or any(
        part != everything for part in parts[:2]
    ):
        raise walk.unsupported(node, "takes part of the channels or of the batch")
    return walk.source(node)


def _select(walk: _Walk, node: fx.Node) -> ChannelNumbers:
    """Follow a gather of fixed channels; which ones is of no matter, as the source stays whole."""
    dim = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
    if dim != 1:
        raise walk.unsupported(node, "selects along another dimension than the channels")
    source = walk.source(node)
    walk.freeze(source, f"{node.name} gathers fixed channels of it")
    return np.resize(source, _shape(node)[1])


def _shuffle(walk: _Walk, node: fx.Node) -> ChannelNumbers:
    module = walk.modules[str(node.target)]
    assert isinstance(module, nn.ChannelShuffle)
    numbers = walk.source(node)
    walk.freeze(numbers, f"{node.target} shuffles it")
    return numbers.reshape(module.groups, -1).T.reshape(-1)


def _flatten(walk: _Walk, node: fx.Node) -> ChannelNumbers:
    before, after = _shape(node.all_input_nodes[0]), _shape(node)
    if len(after) != 2 or after[0] != before[0]:
        raise walk.unsupported(node, f"turns {tuple(before)} into {tuple(after)}")
    return walk.source(node).repeat(math.prod(before[2:]))


def _reshape(walk: _Walk, node: fx.Node) -> ChannelNumbers:
    """Flatten by view or reshape; sizes written into the code forbid a smaller tensor."""
    numbers = _flatten(walk, node)
    sizes = [
        a for arg in node.args[1:] for a in (arg if isinstance(arg, (tuple, list)) else (arg,))
    ]
    if len(sizes) != 2 or sizes[1] != -1:
        walk.freeze(numbers, f"{node.name} has its number of features written into the code")
    return numbers


def _mean(walk: _Walk, node: fx.Node) -> ChannelNumbers:
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    rank = len(_shape(node.all_input_nodes[0]))
    listed = list(dims) if isinstance(dims, (tuple, list)) else [dims]
    if any(not isinstance(d, int) or d % rank < 2 for d in listed):
        raise walk.unsupported(node, "does not leave the channels apart")
    return walk.source(node)


_MODULES: list[tuple[Any, Handler]] = [
    (ops.CONVOLUTIONS, _convolution),
    (nn.Linear, _linear),
    (ops.BATCH_NORMS, _batch_norm),
    (nn.Flatten, _flatten),
    (nn.ChannelShuffle, _shuffle),
    (ops.CHANNELWISE_MODULES, _channelwise),
    (ops.GATE_MODULES, _gate),
    (ops.WHOLE_MODULES, _whole),
]
_CALLS: list[tuple[frozenset[Any], Handler]] = [
    (ops.CHANNELWISE_FUNCTIONS | ops.CHANNELWISE_METHODS, _channelwise),
    (ops.GATES, _gate),
    (ops.WHOLE_FUNCTIONS | ops.WHOLE_METHODS, _whole),
    (ops.SUMS | ops.SUM_METHODS, _sum),
    (ops.PRODUCTS | ops.PRODUCT_METHODS, _united),
    (ops.CONCATENATIONS, _concatenation),
    (ops.PADS, _pad),
    (ops.SLICES, _slice),
    (ops.SELECTIONS | {"index_select"}, _select),
    (ops.FLATTENS | {"flatten"}, _flatten),
    (ops.RESHAPES | {"reshape", "view"}, _reshape),
    (ops.MEANS | {"mean"}, _mean),
]
