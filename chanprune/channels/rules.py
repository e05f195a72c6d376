"""What each call does with channels: the rules by which `trace` follows them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.calls import UnsupportedNetwork
from chanprune.channels.emptied import Constant
from chanprune.channels.gathered import Gathered
from chanprune.channels.layers import ChannelNumbers, Layer, constant_layer
from chanprune.channels.plain import has_code_of_its_own, treats_channels_alone
from chanprune.channels.unite import Numbering

Handler = Callable[["Walk", fx.Node], ChannelNumbers | None]


class Walk:
    """One pass over the calls of a network, and another over those in train mode.

    Attributes:
        channels: Call -> the channel numbers of its result, along dimension 1; of several tensors
            that are returned together, those of each.
        sizes: Call whose result is made of numbers of channels -> those channels.
        dims: Call that gives sizes of a tensor -> the dimensions that they are of.
        nonzero: Calls that make something of channels of zeros.
        layers: Name -> layer, as far as the calls went.
    """

    def __init__(self, model: nn.Module):
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.tied = _tied_modules(model)
        self.channels: dict[fx.Node, ChannelNumbers] = {}
        self.sizes: dict[fx.Node, ChannelNumbers] = {}
        self.dims: dict[fx.Node, tuple[int, ...]] = {}
        self.nonzero: set[fx.Node] = set()
        self.layers: dict[str, Layer] = {}
        self.numbering = Numbering()
        self.images: ChannelNumbers | None = None

    def follow(self, calls: fx.Graph, training: bool = False) -> None:
        """Give the channels of all results their numbers.

        Raises:
            UnsupportedNetwork: The effect of a call on channels is not known.
        """
        self.training = training
        self.called: set[str] = set()
        for node in calls.nodes:
            node.meta["keeps_zero"] = True
            self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        sources = node.all_input_nodes
        if node.op == "output":
            self._visit_output(node)
        elif node.op == "placeholder":
            if self.images is None:
                self.images = self.numbering.new(_shape(node)[1], "input")
                self.freeze(self.images, "it is the network's input")
            self.channels[node] = self.images
        elif isinstance(self.modules.get(str(node.target)), Constant):
            self.channels[node] = _constant(self, node)
        elif any(source in self.channels for source in sources):
            self._visit_call(node)
        elif any(source in self.dims for source in sources) and node.target in ops.SLICES:
            _sizes(self, node)
        elif node.target is torch._assert:
            self._freeze_sizes(node)
        elif known := [self.sizes[source] for source in sources if source in self.sizes]:
            self.sizes[node] = np.concatenate(known)

    def _visit_output(self, node: fx.Node) -> None:
        self._follow_nonzero(node, None)
        for source in node.all_input_nodes:
            for known in (self.channels, self.sizes):
                if source in known:
                    self.freeze(known[source], "it is the network's output")

    def _visit_call(self, node: fx.Node) -> None:
        if not (_is_tensor(node) or node.meta["holds"]):
            _sizes(self, node)
            return
        handler = self._handler(node)
        node.meta["keeps_zero"] = handler not in (_gate, _whole)
        self._follow_nonzero(node, handler)
        if handler not in _READ_SIZES:
            self._freeze_sizes(node)
        self._check_in_place(node, handler)
        numbers = handler(self, node)
        if numbers is None:
            return
        if _is_tensor(node) and [len(numbers)] != list(_shape(node)[1:2]):
            raise self.unsupported(node, "changes the number of channels")
        self.channels[node] = numbers

    def _freeze_sizes(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source in self.sizes:
                reason = f"{node.name} computes with its number of channels"
                self.freeze(self.sizes[source], reason)

    def _check_in_place(self, node: fx.Node, handler: Handler) -> None:
        """Refuse what changes a tensor that others read under its earlier name."""
        name = _name(node)
        module = self.modules.get(name) if node.op == "call_module" else None
        is_method = name.endswith("_") and not name.endswith("__")
        if not (is_method or getattr(module, "inplace", False)):
            return
        if not node.users:
            raise self.unsupported(node, "changes a tensor in place and its result is not used")
        if handler is _gate:
            self.freeze(self.source(node), f"{node.name} is not zero where its input is")

    def _follow_nonzero(self, node: fx.Node, handler: Handler | None) -> None:
        """Follow values that are not zero on dropped channels until a product makes them so."""
        sources = [source for source in node.all_input_nodes if source in self.channels]
        nonzero = [source for source in sources if source in self.nonzero]
        if handler is _gate or (nonzero and handler in _PASS_ON):
            self.nonzero.add(node)
        elif handler is _product and 0 < len(nonzero) < len(sources):
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
                    return self._by_its_numbers(node, handler)
            raise self.unsupported(node, "is not a layer that this project knows")
        if isinstance(node.target, type):
            return _container
        if f"{getattr(node.target, '__module__', '')}.{_name(node)}" in ops.CHANNELWISE_NAMES:
            return _channelwise
        if node.target in ops.ALONG and not _compares_tensors(node):
            return self._along(node)
        for targets, handler in _CALLS:
            if node.target in targets:
                return self._by_its_numbers(node, handler)
        raise self.unsupported(node, "is not an operation that this project knows")

    def _by_its_numbers(self, node: fx.Node, handler: Handler) -> Handler:
        """Choose between what keeps a channel of zeros and what does not."""
        if handler is _slice and not _is_tensor(node.all_input_nodes[0]):
            is_first = node.args[1] in (0, "values")
            return _channelwise if is_first or _is_statistics(node) else _gate
        if handler is not _elementwise:
            return handler
        if len(node.all_input_nodes) > 1:
            raise self.unsupported(node, "combines several tensors")
        return _channelwise if self._keeps_zeros(node) else _gate

    def _keeps_zeros(self, node: fx.Node) -> bool:
        """Try on zeros an operation that is given numbers besides."""
        zeros = torch.zeros([1] * len(_shape(node.all_input_nodes[0])), device="cpu")
        module = self._module(node)
        if module is not None:
            result = module(zeros)
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: zeros)
            is_method = node.op == "call_method"
            call: Any = getattr(torch.Tensor, str(node.target)) if is_method else node.target
            result = call(*args, **kwargs)
        return not bool(result.any())

    def _along(self, node: fx.Node) -> Handler:
        keeps_zero = ops.ALONG[node.target][1]
        dims = _dims_along(node)
        if dims and min(dims) >= 2:
            return _channelwise if keeps_zero else _gate
        if node.target in ops.WHOLE_FUNCTIONS or node.target in ops.WHOLE_METHODS:
            return _whole
        raise self.unsupported(node, "does not leave the channels apart")

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def source(self, node: fx.Node) -> ChannelNumbers:
        """Return the channel numbers of the node's first operand."""
        first = node.all_input_nodes[0]
        if first not in self.channels:
            raise self.unsupported(node, f"has an operand without channels, {first.name}")
        return self.channels[first]

    def freeze(self, numbers: ChannelNumbers, reason: str) -> None:
        """Keep these channels whole."""
        self.numbering.freeze(numbers, reason)

    def unsupported(self, node: fx.Node, what: str) -> UnsupportedNetwork:
        """Name the layer of a node in an error."""
        module = self._module(node)
        if module is not None:
            where = f"layer {node.target} ({type(module).__name__})"
        else:
            path = list(node.meta.get("nn_module_stack", {}).values())
            owner = path[-1][0] if path else ""
            where = f"operation {_name(node)} in {owner or 'the network'}"
        kinds = [node.target, *(type(module).__mro__ if module is not None else ())]
        hint = next(
            (ops.INSTEAD[kind] for kind in kinds if kind in ops.INSTEAD),
            "use what chanprune/channels/operations.py lists, or add it there",
        )
        mode = " in train mode" if self.training else ""
        return UnsupportedNetwork(
            f"{where}{mode} {what}, so that its channels cannot be followed; {hint}"
        )

    def check_layer(self, node: fx.Node, layer: Layer) -> None:
        """Refuse a layer that does something else with channels than PyTorch's.

        Raises:
            UnsupportedNetwork: Channels do not go through it one by one.
        """
        module = self.modules[layer.name]
        if layer.name in self.layers:
            return
        positions = _shape(node.all_input_nodes[0])[2:]
        if has_code_of_its_own(module) and not treats_channels_alone(module, layer, positions):
            raise self.unsupported(
                node,
                "has code of its own, and computes something else with part of its channels (as "
                "standardised weights do)",
            )

    def record(self, node: fx.Node, layer: Layer) -> ChannelNumbers:
        """Store a layer, or unite its channels with those of its earlier calls."""
        if self.training:
            layer = replace(layer, positions=0)
        if layer.name in self.tied:
            reason = f"{layer.name} shares its weights with {self.tied[layer.name]}"
            self.freeze(layer.inputs, reason)
            self.freeze(layer.outputs, reason)
        is_again = layer.name in self.called
        self.called.add(layer.name)
        earlier = self.layers.get(layer.name)
        if earlier is None:
            self.layers[layer.name] = layer
            return layer.outputs
        self.numbering.unite(earlier.inputs, layer.inputs)
        self.numbering.unite(earlier.outputs, layer.outputs)
        follower = None if is_again else earlier.normalised_by
        self.layers[layer.name] = replace(
            earlier, positions=earlier.positions + layer.positions, normalised_by=follower
        )
        return earlier.outputs


def _tied_modules(model: nn.Module) -> dict[str, str]:
    """Find the modules that share a parameter with another one: name -> the other's name."""
    first: dict[int, tuple[str, nn.Module]] = {}
    tied: dict[str, str] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            other, owner = first.setdefault(id(parameter), (name, module))
            if owner is not module:
                tied[name], tied[other] = other, name
    return tied


def _shape(node: fx.Node) -> torch.Size:
    shape: torch.Size = node.meta["shape"]
    return shape


def _is_tensor(node: fx.Node) -> bool:
    return "shape" in node.meta


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _is_statistics(node: fx.Node) -> bool:
    return node.all_input_nodes[0].target in ops.STATISTICS | {"std_mean", "var_mean"}


def _compares_tensors(node: fx.Node) -> bool:
    """Tell whether max or min is that of two tensors."""
    return len(node.args) > 1 and isinstance(node.args[1], fx.Node)


def _argument(node: fx.Node, place: int, *names: str, default: Any = None) -> Any:
    """Return an argument by its place, the operand included, or by one of its names."""
    if len(node.args) > place:
        return node.args[place]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def _dims_along(node: fx.Node) -> list[int]:
    """Return the dimensions along which a node works; none if it does not say which."""
    place = ops.ALONG[node.target][0]
    dims = _argument(node, place, "dim", "dims", "axis")
    rank = len(_shape(node.all_input_nodes[0]))
    further = node.args[place + 1 :] if node.target == "flip" else ()
    listed = list(dims) if isinstance(dims, (tuple, list)) else [dims, *further]
    if any(not isinstance(d, int) or isinstance(d, bool) for d in listed):
        return []
    return [int(d) % rank for d in listed]


def _parameters(module: nn.Module) -> tuple[str, ...]:
    state = module.state_dict()
    uncut = module.uncut if isinstance(module, Gathered) else ()
    return tuple(name for name, tensor in state.items() if tensor.dim() > 0 and name not in uncut)


def _keep_inputs_whole(walk: Walk, name: str, numbers: ChannelNumbers) -> None:
    module = walk.modules[name]
    if isinstance(module, Gathered) and module.stays_whole:
        walk.freeze(numbers, f"{name} {module.stays_whole}")


def _convolution(walk: Walk, node: fx.Node) -> ChannelNumbers:
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
        positions=math.prod(_shape(node)[2:]),
        parameters=_parameters(module),
        rank=len(_shape(node)),
        normalised_by=_following_norm(walk, node),
    )
    walk.check_layer(node, layer)
    for numbers in (inputs, outputs):
        walk.numbering.divide(numbers, blocks, name)
    _keep_inputs_whole(walk, name, inputs)
    return walk.record(node, layer)


def _constant(walk: Walk, node: fx.Node) -> ChannelNumbers:
    name = str(node.target)
    known = walk.layers.get(name)
    width, rank = _shape(node)[1], len(_shape(node))
    outputs = known.outputs if known else walk.numbering.new(width, name, produced=False)
    return walk.record(node, constant_layer(name, outputs, (name,), rank))


def _linear(walk: Walk, node: fx.Node) -> ChannelNumbers:
    name = str(node.target)
    module = walk.modules[name]
    assert isinstance(module, nn.Linear)
    if len(_shape(node)) != 2:
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


def _following_norm(walk: Walk, node: fx.Node) -> str | None:
    """Name the batch norm that alone reads the node."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    target = str(users[0].target)
    return target if isinstance(walk.modules[target], ops.BATCH_NORMS) else None


def _batch_norm(walk: Walk, node: fx.Node) -> ChannelNumbers:
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
        positions=math.prod(_shape(node)[2:]),
        parameters=_parameters(module),
        rank=len(_shape(node)),
    )
    walk.check_layer(node, layer)
    if not getattr(module, "affine", False):
        walk.freeze(outputs, f"{name} has no scale")
    if name in walk.called:
        walk.freeze(outputs, f"{name} is called several times")
    _keep_inputs_whole(walk, name, outputs)
    return walk.record(node, layer)


def _gathered_index(module: nn.Module, width: int) -> ChannelNumbers:
    return module.index.cpu().numpy() if isinstance(module, Gathered) else np.arange(width)


def _channelwise(walk: Walk, node: fx.Node) -> ChannelNumbers:
    return walk.source(node)


def _gate(walk: Walk, node: fx.Node) -> ChannelNumbers:
    return walk.source(node)


def _elementwise(walk: Walk, node: fx.Node) -> ChannelNumbers:
    raise AssertionError("stands for _channelwise or _gate")


def _whole(walk: Walk, node: fx.Node) -> ChannelNumbers:
    walk.freeze(walk.source(node), f"{_name(node)} needs all its channels")
    return walk.source(node)


def _prelu(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow one slope for all channels; slopes of their own are cut by nobody."""
    is_one = walk.modules[str(node.target)].num_parameters == 1
    return walk.source(node) if is_one else _whole(walk, node)


def _fresh(walk: Walk, node: fx.Node) -> None:
    """Follow nothing: the operand's values are not looked at."""


def _container(walk: Walk, node: fx.Node) -> None:
    """Keep whole what a named tuple or a dataclass holds, which is a network's output."""
    for source in node.all_input_nodes:
        if source in walk.channels:
            walk.freeze(walk.channels[source], f"it is part of a {_name(node)}")


def _sizes(walk: Walk, node: fx.Node) -> None:
    """Follow which numbers are made of numbers of channels.

    Raises:
        UnsupportedNetwork: It is not known what else the node does with a tensor.
    """
    first = node.all_input_nodes[0]
    attribute = node.args[1] if node.target in ops.ATTRIBUTES else node.target
    numbers = walk.channels.get(first, walk.sizes.get(first))
    if first in walk.channels and _is_tensor(first):
        if attribute in ops.FACTS:
            return
        if attribute not in ops.SIZES:
            raise walk.unsupported(node, "is not an operation that this project knows")
        dims: tuple[int, ...] = tuple(range(len(_shape(first))))
        index = _argument(node, 1, "dim") if attribute == "size" else None
    elif first in walk.dims and node.target in ops.SLICES:
        dims, index = walk.dims[first], node.args[1]
    else:
        raise walk.unsupported(node, "is not an operation that this project knows")
    if isinstance(index, int):
        dims = (dims[index],)
    elif isinstance(index, slice) and not node.all_input_nodes[1:]:
        dims = dims[index]
    elif index is not None:
        raise walk.unsupported(node, "takes a size that is computed")
    walk.dims[node] = dims
    if 1 in dims and numbers is not None:
        walk.sizes[node] = numbers


def _sum(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Unite the channels of all sides; a number makes something of zero channels."""
    numbers = _united(walk, node, keeps_zero_beside=False)
    others = [*node.args, *(v for k, v in node.kwargs.items() if k not in ("alpha", "value"))]
    if any(isinstance(a, (int, float)) and a != 0 for a in others):
        walk.freeze(numbers, "a number is added to it")
    return numbers


def _product(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Unite the channels of all sides; what is divided by must not be zero."""
    numbers = _united(walk, node, keeps_zero_beside=True)
    if node.target in ops.DIVISIONS:
        divisor = _argument(node, 1, "other")
        if isinstance(divisor, fx.Node) and divisor in walk.channels:
            walk.freeze(numbers, f"{node.name} divides by it")
            walk.freeze(walk.channels[divisor], f"{node.name} divides by it")
    return numbers


def _united(walk: Walk, node: fx.Node, keeps_zero_beside: bool) -> ChannelNumbers:
    """Unite the channels of the sides; one that is broadcast leaves zeros if it is a factor."""
    rank, width = len(_shape(node)), _shape(node)[1]
    sides, reasons = [], []
    for side in node.all_input_nodes:
        if not _is_tensor(side):
            continue
        own = _shape(side)
        is_wide = len(own) >= rank - 1 and own[1 - rank] == width
        if side not in walk.channels and is_wide and width > 1:
            reasons.append(f"{node.name} combines it with {side.target}, which no layer makes")
        elif side not in walk.channels:
            reasons += [] if keeps_zero_beside else [f"{side.target} is broadcast over it"]
        elif len(walk.channels[side]) == width and len(own) == rank:
            sides.append(walk.channels[side])
        else:
            walk.freeze(walk.channels[side], f"it is broadcast in {node.name}")
            reasons += [] if keeps_zero_beside else [f"{side.name} is broadcast over it"]
    if not sides:
        raise walk.unsupported(node, "broadcasts all its operands")
    for other in sides[1:]:
        walk.numbering.unite(sides[0], other)
    for reason in reasons:
        walk.freeze(sides[0], reason)
    return sides[0]


def _concatenation(walk: Walk, node: fx.Node) -> ChannelNumbers:
    tensors = _argument(node, 0, "tensors")
    dim = _argument(node, 1, "dim", "axis", default=0)
    missing = [side.name for side in tensors if side not in walk.channels]
    if missing or not isinstance(dim, int):
        raise walk.unsupported(node, f"has an operand without channels, {missing or dim}")
    rank = len(_shape(node))
    if dim % rank == 1:
        return np.concatenate([walk.channels[side] for side in tensors])
    for side in tensors[1:]:
        walk.numbering.unite(walk.channels[tensors[0]], walk.channels[side])
    return walk.channels[tensors[0]]


def _pad(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow padding of positions, and zeros as further channels."""
    sizes = _argument(node, 1, "pad")
    mode = _argument(node, 2, "mode", default="constant")
    if mode == "constant" and _argument(node, 3, "value") not in (None, 0):
        return _whole(walk, node)
    rank = len(_shape(node))
    ends = [0] * 2 * rank
    ends[: len(sizes)] = sizes
    before, after = ends[2 * (rank - 2) : 2 * (rank - 1)]
    if any(isinstance(end, fx.Node) for end in (before, after)):
        raise walk.unsupported(node, "pads channels by a number that is computed")
    if min(before, after) < 0 or any(ends[2 * (rank - 1) :]):
        raise walk.unsupported(node, "pads the batch or cuts channels")
    names = (f"{node.name}.before", f"{node.name}.behind")
    zeros = [walk.numbering.zeros(*each) for each in zip((before, after), names, strict=True)]
    return np.concatenate([zeros[0], walk.source(node), zeros[1]])


def _slice(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow positions that are taken, such as x[:, :, ::2, ::2], x[..., 0, 0], x[:, :, None]."""
    index: Any = node.args[1]
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        taken = sum(part is not None and part is not Ellipsis for part in parts)
        missing = len(_shape(node.all_input_nodes[0])) - taken
        parts[place : place + 1] = [slice(None)] * missing
    in_front = [part != slice(None) for part in parts[:2]]
    if any(in_front) or not all(part is None or type(part) in (int, slice) for part in parts):
        raise walk.unsupported(node, "takes part of the channels or of the batch")
    return walk.source(node)


def _squeeze(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow positions that are squeezed out; without a dimension channels must not be one."""
    dims = _argument(node, 1, "dim", "axis")
    rank = len(_shape(node.all_input_nodes[0]))
    if dims is None:
        walk.freeze(walk.source(node), f"{node.name} would take out a single channel; name its dim")
        return walk.source(node)
    listed = dims if isinstance(dims, (tuple, list)) else [dims]
    if any(dim % rank < 2 for dim in listed):
        raise walk.unsupported(node, "squeezes out the batch or the channels")
    return walk.source(node)


def _unsqueeze(walk: Walk, node: fx.Node) -> ChannelNumbers:
    if _argument(node, 1, "dim", "axis") % len(_shape(node)) < 2:
        raise walk.unsupported(node, "puts a dimension in front of the channels")
    return walk.source(node)


def _permute(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow positions that change places."""
    rank = len(_shape(node))
    given = node.args[1:] or [node.kwargs.get(name) for name in ("dim0", "dim1")]
    listed = list(given[0]) if isinstance(given[0], (tuple, list)) else list(given)
    order = [dim % rank if isinstance(dim, int) else 0 for dim in listed]
    stays = order[:2] == [0, 1] if "permute" in _name(node) else min(order) >= 2
    if not stays:
        raise walk.unsupported(node, "moves the channels to another dimension")
    return walk.source(node)


def _select(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow a gather of fixed channels; which ones is of no matter, as the source stays whole."""
    if _argument(node, 1, "dim") != 1:
        raise walk.unsupported(node, "selects along another dimension than the channels")
    source = walk.source(node)
    walk.freeze(source, f"{node.name} gathers fixed channels of it")
    return np.resize(source, _shape(node)[1])


def _shuffle(walk: Walk, node: fx.Node) -> ChannelNumbers:
    module = walk.modules[str(node.target)]
    assert isinstance(module, nn.ChannelShuffle)
    numbers = walk.source(node)
    walk.freeze(numbers, f"{node.target} shuffles it")
    return numbers.reshape(module.groups, -1).T.reshape(-1)


def _flatten(walk: Walk, node: fx.Node) -> ChannelNumbers:
    before, after = _shape(node.all_input_nodes[0]), _shape(node)
    if after[:2] == before[:2]:
        return walk.source(node)
    if len(after) != 2 or after[0] != before[0]:
        raise walk.unsupported(node, f"turns {tuple(before)} into {tuple(after)}")
    return walk.source(node).repeat(math.prod(before[2:]))


def _reshape(walk: Walk, node: fx.Node) -> ChannelNumbers:
    """Follow view, reshape and expand; sizes written into the code forbid a smaller tensor."""
    numbers = _flatten(walk, node)
    if node.target in ops.LIKE:
        like = _argument(node, 1, "other")
        if like not in walk.channels or len(walk.channels[like]) != len(numbers):
            raise walk.unsupported(node, "takes the shape of a tensor with other channels")
        walk.numbering.unite(numbers, walk.channels[like])
        return numbers
    given = node.args[1:] or (_argument(node, 1, "shape", "size"),)
    sizes = list(given[0]) if isinstance(given[0], (tuple, list)) else list(given)
    width = sizes[1] if len(sizes) > 1 else None
    if isinstance(width, fx.Node) and walk.dims.get(width) == (1,) and width in walk.sizes:
        walk.numbering.unite(numbers, walk.sizes[width])
    elif not isinstance(width, int) or width != -1:
        walk.freeze(numbers, f"{node.name} has its number of features written into the code")
    return numbers


_MODULES: list[tuple[Any, Handler]] = [
    (ops.CONVOLUTIONS, _convolution),
    (nn.Linear, _linear),
    (ops.BATCH_NORMS, _batch_norm),
    (nn.Flatten, _flatten),
    (nn.ChannelShuffle, _shuffle),
    (nn.PReLU, _prelu),
    (ops.CHANNELWISE_MODULES, _channelwise),
    (ops.ELEMENTWISE_MODULES, _elementwise),
    (ops.GATE_MODULES, _gate),
    (ops.WHOLE_MODULES, _whole),
]
_CALLS: list[tuple[frozenset[Any], Handler]] = [
    (ops.CHANNELWISE_FUNCTIONS | ops.CHANNELWISE_METHODS, _channelwise),
    (ops.ELEMENTWISE, _elementwise),
    (ops.GATES, _gate),
    (ops.SUMS | ops.SUM_METHODS | ops.PAIRS | {torch.max, torch.min, "max", "min"}, _sum),
    (ops.PRODUCTS | ops.PRODUCT_METHODS, _product),
    (ops.CONCATENATIONS, _concatenation),
    (ops.PADS, _pad),
    (ops.SLICES | ops.ATTRIBUTES, _slice),
    (ops.SQUEEZES, _squeeze),
    (ops.UNSQUEEZES, _unsqueeze),
    (ops.PERMUTATIONS, _permute),
    (ops.SELECTIONS | {"index_select"}, _select),
    (ops.FLATTENS | {"flatten"}, _flatten),
    (ops.RESHAPES | ops.EXPANSIONS | ops.LIKE | {"reshape", "view"}, _reshape),
    (ops.FRESH, _fresh),
]
_READ_SIZES = (_reshape, _fresh)
_PASS_ON = (
    *(_channelwise, _slice, _squeeze, _unsqueeze),
    *(_permute, _flatten, _reshape),
)
