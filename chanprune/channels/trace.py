"""Find the channel graph of a network by tracing it (torch.fx).

Every tensor of the traced network carries the numbers of its channels. Convolutions and linear
layers make new numbers; sums unite them, concatenations join them, batch norms keep them, or make
new ones behind a gather where they read a stream that others read as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import fx, nn

from chanprune.channels.calls import UnsupportedNetwork, record_calls, record_training
from chanprune.channels.graph import ChannelGraph
from chanprune.channels.plain import computes_its_weights
from chanprune.channels.rules.follow import follow
from chanprune.channels.rules.walk import Walk

# By name, as importing torch.compile takes a second.
WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
}


def trace(model: nn.Module, input_shape: Sequence[int]) -> ChannelGraph:
    """Find all channel groups of a network.

    What is followed is `model(images)` in eval mode and in train mode: every other argument of its
    forward keeps its default.

    Args:
        model: The network; it is not changed, its hooks are not called, and it may live on the meta
            device.
        input_shape: (C, H, W) of one image.

    Raises:
        UnsupportedNetwork: The network has control flow that depends on data, or an operation on
            channels whose effect is not known.
    """
    _refuse_what_stands_in_front(model)
    calls = record_calls(model, input_shape)
    in_training = _calls_in_training(model, input_shape, calls)
    try:
        walk = _followed(model, calls, in_training)
    except UnsupportedNetwork as error:
        if isinstance(in_training, str) or in_training is calls:
            raise
        in_training = str(error)
        walk = _followed(model, calls, in_training)
    groups, renumbered = walk.numbering.groups()
    layers = {
        name: replace(layer, inputs=renumbered[layer.inputs], outputs=renumbered[layer.outputs])
        for name, layer in walk.layers.items()
    }
    return ChannelGraph(groups, layers, calls, in_training, tuple(input_shape))


def _followed(model: nn.Module, calls: fx.Graph, in_training: fx.Graph | str) -> Walk:
    walk = Walk(model)
    follow(walk, calls)
    if isinstance(in_training, fx.Graph) and in_training is not calls:
        follow(walk, in_training, training=True)
    return walk


def _calls_in_training(
    model: nn.Module, input_shape: Sequence[int], calls: fx.Graph
) -> fx.Graph | str:
    try:
        return record_training(model, input_shape, calls)
    except UnsupportedNetwork as error:
        return str(error)


def _refuse_what_stands_in_front(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kind = next((k.__name__ for k in type(module).__mro__ if k.__name__ in WRAPPERS), None)
        if kind is not None:
            what = f"layer {name}" if name else "the network"
            inside = f"{name or 'model'}.{WRAPPERS[kind]}"
            raise UnsupportedNetwork(
                f"{what} is wrapped in {kind}; give what it wraps, {inside}, and wrap "
                "what comes out"
            )
        if computes_its_weights(module):
            raise UnsupportedNetwork(
                f"layer {name} ({type(module).__name__}) computes its weights from others (weight "
                "norm, spectral norm, a mask, another parametrization); make them plain first, as "
                "remove_weight_norm and remove_parametrizations of torch.nn.utils do"
            )
