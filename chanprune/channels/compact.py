"""Compaction: the physically smaller network that a plan leaves, checked against the masked one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.absorb import Absorption, absorb_constants
from chanprune.channels.copies import copying_layers
from chanprune.channels.emptied import constant_of
from chanprune.channels.gathered import read
from chanprune.channels.graph import ChannelGraph, Layer
from chanprune.channels.plan import Plan
from chanprune.channels.slicing import gather

TOLERANCE = 1e-9


class CompactionError(RuntimeError):
    """Compact and masked network disagree: the channel graph does not describe the network."""


@dataclass
class Compaction:
    """A compact network.

    Attributes:
        model: The smaller network; it shares nothing with the original.
        graph: Its channel graph.
        max_error: Largest difference to the masked network's output in float64, relative to the
            largest output; nan if not checked.
        absorbed: What became of the constants that the dropped channels leave, per channel group;
            empty unless asked for.
    """

    model: nn.Module
    graph: ChannelGraph
    max_error: float
    absorbed: dict[str, Absorption] = field(default_factory=dict)


def compact(
    model: nn.Module,
    graph: ChannelGraph,
    plan: Plan,
    absorb: Literal["none", "bias"] = "none",
    check: bool = True,
) -> Compaction:
    """Build the network without the dropped channels.

    Args:
        model: The network that `graph` describes; it is not changed. On the meta device the result
            has the right shapes and no values.
        graph: Its channel graph.
        plan: What is kept.
        absorb: "none" drops the constants that dropped channels emit (ReLU of the batch norm's
            shift); "bias" adds them to what follows.
        check: Compare with the masked network on random images in float64.

    Raises:
        ValueError: The plan does not fit the graph.
        CompactionError: The outputs differ by more than 1e-9.
    """
    after = graph.after(plan)
    small = _shrunk(model, graph, after, plan)
    max_error = _self_check(model, graph, after, plan) if check else float("nan")
    absorbed = absorb_constants(model, small, graph, plan) if absorb == "bias" else {}
    return Compaction(small, after, max_error, absorbed)


def masked(model: nn.Module, graph: ChannelGraph, plan: Plan) -> nn.Module:
    """Return a copy of the network that emits zeros on the dropped channels.

    The filters, scales and shifts of dropped channels are zero; the shapes stay. This is the
    reference for `compact`, not a smaller network.
    """
    keep = torch.from_numpy(graph.kept_mask(plan))
    copied = copy.deepcopy(model)
    state = copied.state_dict()
    with torch.no_grad():
        for layer in graph.layers.values():
            dropped = ~keep[torch.from_numpy(layer.outputs)]
            for parameter in {"weight", "bias"}.intersection(layer.parameters):
                tensor = state[f"{layer.name}.{parameter}"]
                tensor[dropped.to(tensor.device)] = 0
    return copied


def _shrunk(model: nn.Module, graph: ChannelGraph, after: ChannelGraph, plan: Plan) -> nn.Module:
    """Copy `model` with the tensors, and the calls, that the plan leaves."""
    small = copy.deepcopy(model)
    gathered = gather(small.state_dict(), graph, plan)
    state = {key: tensor.contiguous() for key, tensor in gathered.items()}
    keep = graph.kept_mask(plan)
    for name, layer in after.layers.items():
        if layer.made_of and not graph.layers[name].made_of:
            kept = torch.from_numpy(keep[graph.layers[name].outputs].nonzero()[0])
            small.set_submodule(name, constant_of(model, layer.made_of, kept))
            continue
        put(small.get_submodule(name), layer, state)
    for copying in copying_layers(small).values():
        copying.drop_idle_shifts()
    if after.calls is graph.calls:
        return small
    return fx.GraphModule(small, after.calls, type(model).__name__).train(model.training)


def put(module: nn.Module, layer: Layer, state: Mapping[str, torch.Tensor]) -> None:
    """Let a layer's module hold other tensors, and say so in its attributes.

    Args:
        module: The module, changed in place.
        layer: The layer as it is afterwards.
        state: Its tensors by full name; they are not copied, and a parameter is taken as it is.
    """
    for name in layer.parameters:
        tensor = state[f"{layer.name}.{name}"]
        if name in module._parameters:
            old = module._parameters[name]
            assert old is not None
            if not isinstance(tensor, nn.Parameter):
                tensor = nn.Parameter(tensor, old.requires_grad)
            module._parameters[name] = tensor
        else:
            module._buffers[name] = tensor
    if isinstance(module, ops.CONVOLUTIONS):
        module.in_channels, module.out_channels = len(layer.inputs), len(layer.outputs)
        if layer.depthwise:
            module.groups = len(layer.inputs)
    elif isinstance(module, nn.Linear):
        module.in_features, module.out_features = len(layer.inputs), len(layer.outputs)
    elif isinstance(module, ops.BATCH_NORMS):
        module.num_features = len(layer.outputs)
        everything = np.arange(len(layer.inputs))
        reads_all = layer.index is None or np.array_equal(layer.index, everything)
        read(module, None if reads_all else torch.from_numpy(layer.index))


def _self_check(model: nn.Module, graph: ChannelGraph, after: ChannelGraph, plan: Plan) -> float:
    """Compare compact and masked network on random images; return the largest difference.

    In a network that was never trained, the batch norms' initial statistics let the signal die
    away, and any two such networks agree. So the comparison is made again with the statistics of
    the images.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    shape = (2, *graph.input_shape)
    images = torch.randn(shape, dtype=torch.float64, generator=generator).to(device)
    exact = copy.deepcopy(model).double().eval()
    first = _difference(exact, graph, after, plan, images)
    lively = _with_statistics_of(images, exact)
    return max(first, _difference(lively, graph, after, plan, images))


@torch.no_grad()
def _with_statistics_of(images: torch.Tensor, model: nn.Module) -> nn.Module:
    """Estimate the batch norms' statistics on `images`, in place."""
    for module in model.modules():
        if isinstance(module, ops.BATCH_NORMS) and module.track_running_stats:
            module.train()
            module.momentum = 1.0
    model(images)
    return model.eval()


def _difference(
    model: nn.Module, graph: ChannelGraph, after: ChannelGraph, plan: Plan, images: torch.Tensor
) -> float:
    """Return the largest difference to the masked network, relative to its largest output.

    Raises:
        CompactionError: It is above the tolerance.
    """
    reference = masked(model, graph, plan)
    compacted = _shrunk(model, graph, after, plan)
    with torch.inference_mode():
        expected = _first(reference(images))
        got = _first(compacted(images))
    scale = expected.abs().max().item() or 1.0
    error = (got - expected).abs().max().item() / scale
    if not error <= TOLERANCE:
        raise CompactionError(
            f"compact and masked network differ by {error:.2g} (allowed {TOLERANCE:g}); "
            f"{_where_they_part(reference, compacted, graph, after, plan, images)}"
        )
    return error


def _where_they_part(
    reference: nn.Module,
    compacted: nn.Module,
    graph: ChannelGraph,
    after: ChannelGraph,
    plan: Plan,
    images: torch.Tensor,
) -> str:
    """Name the first layer whose kept outputs differ."""
    keep = torch.from_numpy(graph.kept_mask(plan))
    outputs = [_layer_outputs(network, after, images) for network in (reference, compacted)]
    for name, full in outputs[0].items():
        if after.layers[name].kind == "constant":
            continue
        kept = full[:, keep[torch.from_numpy(graph.layers[name].outputs)].to(full.device)]
        if (kept - outputs[1][name]).abs().max() > TOLERANCE * max(1.0, full.abs().max().item()):
            return f"they part at layer {name}"
    return "they part behind the last layer"


def _layer_outputs(
    network: nn.Module, graph: ChannelGraph, images: torch.Tensor
) -> dict[str, torch.Tensor]:
    outputs: dict[str, torch.Tensor] = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: outputs.__setitem__(name, output)
        )
        for name in graph.layers
    ]
    with torch.inference_mode():
        network(images)
    for handle in handles:
        handle.remove()
    return outputs


def _first(output: Any) -> torch.Tensor:
    """Take the first tensor of a network's output."""
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output
