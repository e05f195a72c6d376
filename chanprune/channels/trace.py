"""Find the channel graph of a network by tracing it (torch.fx), or by exporting it.

Every tensor of the traced network carries the numbers of its channels. Convolutions and linear
layers make new numbers; whatever moves elements moves them; sums unite them; batch norms keep them,
or make new ones behind a gather where they read a stream that others read as well. What an unknown
operation reads stays whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.nn.modules.lazy import LazyModuleMixin

from chanprune.channels.baked import bake, computes_its_weights
from chanprune.channels.calls import record_calls, record_training
from chanprune.channels.example import Example
from chanprune.channels.exported import Exported, LostContext
from chanprune.channels.graph import ChannelGraph
from chanprune.channels.layers import Axis, ChannelNumbers
from chanprune.channels.refusals import UnsupportedNetwork
from chanprune.channels.rules.follow import follow
from chanprune.channels.rules.walk import Walk
from chanprune.channels.unite import without_repeats

# By name, as importing torch.compile takes a second.
WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
}


def trace(model: nn.Module, example: Any) -> ChannelGraph:
    """Find all channel groups of a network.

    What is followed is what the network does with the example in eval mode and in train mode; every
    argument of its forward that the example does not give keeps its default.

    Args:
        model: The network; it is not changed, its hooks are not called, and it may live on the meta
            device.
        example: (C, H, W) of one image; or a tensor (N, C, H, W); or a tuple of arguments, or a
            mapping of arguments by name, in which lists, tuples and dictionaries may hold tensors.

    Raises:
        UnsupportedNetwork: The network can neither be traced nor exported: what it does depends on
            values, or on random numbers.
    """
    _refuse_wrappers(model)
    _refuse_lazy(model)
    example = Example.of(example)
    computing = [name for name, m in model.named_modules() if computes_its_weights(m)]
    model = bake(model, computing)
    recorded = _record(model, example)
    walk = Walk(model, example.batch)
    walk.baked.update(recorded.plain, computing)
    follow(walk, recorded.calls)
    if isinstance(recorded.in_training, fx.Graph) and recorded.in_training is not recorded.calls:
        follow(walk, recorded.in_training, training=True)
    for name, (_, numbers) in walk.tensors.items():
        if name in walk.whole:
            walk.freeze(numbers, f"the whole of {name} is read elsewhere")
    for layer in walk.layers.values():
        if any(f"{layer.name}.{parameter}" in walk.read_apart for parameter in layer.parameters):
            for numbers in (layer.inputs, layer.outputs):
                walk.freeze(numbers, f"the weights of {layer.name} are read elsewhere")
    walk.numbering.settle(walk.grids)
    groups, renumbered = walk.numbering.groups()
    layers = {
        name: replace(layer, inputs=renumbered[layer.inputs], outputs=renumbered[layer.outputs])
        for name, layer in walk.layers.items()
    }
    _note_channels(walk, renumbered)
    return ChannelGraph(
        groups,
        layers,
        recorded.calls,
        recorded.in_training,
        example,
        tensors={
            name: Axis(dim, renumbered[numbers])
            for name, (dim, numbers) in walk.tensors.items()
            if name not in walk.whole
        },
        baked=frozenset(walk.baked),
        constants=recorded.constants,
        numbered=np.arange(sum(group.size for group in groups.values())),
        is_exported=recorded.is_exported,
    )


class _Recorded:
    """The calls in both modes, and what goes with them."""

    in_training: fx.Graph | str

    def __init__(self, calls: fx.Graph, constants: dict[str, Tensor]):
        self.calls = calls
        self.constants = constants
        self.plain: set[str] = set()
        self.is_exported = False


def _record(model: nn.Module, example: Example) -> _Recorded:
    try:
        if example.has_plain_parts:
            raise UnsupportedNetwork("its arguments hold tensors beside other values")
        constants: dict[str, Tensor] = {}
        calls = record_calls(model, example, constants)
    except UnsupportedNetwork as error:
        return _record_by_export(model, example, error)
    recorded = _Recorded(calls, constants)
    try:
        recorded.in_training = record_training(model, example, constants, calls)
    except UnsupportedNetwork as error:
        recorded.in_training = str(error)
    return recorded


def _record_by_export(model: nn.Module, example: Example, error: UnsupportedNetwork) -> _Recorded:
    """Export the network in both modes.

    Raises:
        UnsupportedNetwork: It cannot be exported; the reason is that of the tracing.
    """
    constants: dict[str, Tensor] = {}
    try:
        exported = Exported(model, example, constants, training=False)
    except UnsupportedNetwork as second:
        is_better = example.has_plain_parts or isinstance(second, LostContext)
        raise (second if is_better else error) from second
    recorded = _Recorded(exported.calls, constants)
    recorded.is_exported = True
    recorded.in_training, recorded.plain = exported.calls, exported.plain
    try:
        training = Exported(model, example, constants, training=True)
    except UnsupportedNetwork as second:
        recorded.in_training = str(second)
    else:
        if _without_names(training.calls) != _without_names(exported.calls):
            recorded.in_training = training.calls
            recorded.plain |= training.plain
    return recorded


def _without_names(calls: fx.Graph) -> list[str]:
    """Return what is called, with numbers in place of the names of results."""
    numbers = {node: f"#{number}" for number, node in enumerate(calls.nodes)}
    return [
        str((node.op, node.target, fx.node.map_arg((node.args, node.kwargs), numbers.get)))
        for node in calls.nodes
    ]


def _note_channels(walk: Walk, renumbered: ChannelNumbers) -> None:
    """Store the channels of every tensor with the call that returns it."""

    def final(numbers: ChannelNumbers | None) -> ChannelNumbers | None:
        return None if numbers is None else without_repeats(renumbered[numbers])

    for node, numbers in walk.channels.items():
        several = isinstance(numbers, tuple)
        node.meta["channels"] = tuple(map(final, numbers)) if several else final(numbers)  # type: ignore[arg-type]


def _refuse_lazy(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
            raise UnsupportedNetwork(
                f"layer {name} ({type(module).__name__}) has no size yet; run the network once"
            )


def _refuse_wrappers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kind = next((k.__name__ for k in type(module).__mro__ if k.__name__ in WRAPPERS), None)
        if kind is not None:
            what = f"layer {name}" if name else "the network"
            inside = f"{name or 'model'}.{WRAPPERS[kind]}"
            raise UnsupportedNetwork(
                f"{what} is wrapped in {kind}; give what it wraps, {inside}, and wrap "
                "what comes out"
            )
