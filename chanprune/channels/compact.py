"""Compaction: the physically smaller network that a plan leaves, checked against the masked one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from chanprune.channels import operations as ops
from chanprune.channels.absorb import Absorption, absorb_constants
from chanprune.channels.baked import bake
from chanprune.channels.double import InDouble
from chanprune.channels.emptied import constant_of
from chanprune.channels.gathered import Gathered, read
from chanprune.channels.graph import ChannelGraph, Cut
from chanprune.channels.layers import Layer
from chanprune.channels.modes import copied, keeping_random_numbers
from chanprune.channels.outputs import leaves
from chanprune.channels.plan import Plan
from chanprune.channels.rebuilt import rebuilt
from chanprune.channels.slicing import gather

TOLERANCE = 1e-9
_WIDTHS = frozenset({"num_parameters", "num_features", "num_channels", "num_groups"})


Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class CompactionError(RuntimeError):
    """Compact and masked network disagree: the channel graph does not describe the network."""


@dataclass
class Compaction:
    """A compact network.

    Attributes:
        model: The smaller network; it shares nothing with the original.
        graph: Its channel graph.
        max_error: Largest difference to the masked network's outputs in float64, relative to the
            largest value of each; nan if not checked.
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
        CompactionError: An output differs by more than 1e-9, or is another kind of thing.
    """
    cut = graph.cut(plan)
    small = shrunk(model, cut)
    max_error = _self_check(model, cut) if check else float("nan")
    absorbed = absorb_constants(model, small, cut) if absorb == "bias" else {}
    return Compaction(small, cut.after, max_error, absorbed)


def masked(model: nn.Module, cut: Cut) -> nn.Module:
    """Return a copy of the network in which every layer reads zeros in place of dropped channels.

    The shapes stay. This is the reference for `compact`, not a smaller network. What normalises
    over channels reads no dropped channel, as these channels all stay.
    """
    keep = torch.from_numpy(cut.keep)
    reference = copied(bake(model, cut.before.baked))
    for name, layer in cut.before.layers.items():
        dropped = ~keep[torch.from_numpy(layer.inputs)]
        if layer.kind in ("conv", "linear") and dropped.any():
            module = reference.get_submodule(name)
            hook = partial(_without, dropped, layer.axis)
            module.register_forward_pre_hook(hook, with_kwargs=True)
    return reference


def _without(
    dropped: Tensor, axis: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Put zeros in place of the channels (C,) that are dropped."""
    images, *others = (*args, *kwargs.values())
    shape = [1] * images.dim()
    shape[axis] = len(dropped)
    return (images.masked_fill(dropped.to(images.device).view(shape), 0), *others), {}


def shrunk(model: nn.Module, cut: Cut) -> nn.Module:
    """Copy `model` with the tensors, and the calls, that are left; nothing is checked."""
    before, after = cut.before, cut.after
    small = copied(bake(model, before.baked))
    tensors = {**dict(small.named_parameters()), **dict(small.named_buffers())}
    gathered = gather({name: tensor.detach() for name, tensor in tensors.items()}, cut)
    state = {key: tensor.contiguous() for key, tensor in gathered.items()}
    for name, layer in after.layers.items():
        if layer.made_of and not before.layers[name].made_of:
            kept = torch.from_numpy(cut.keep[before.layers[name].outputs].nonzero()[0])
            small.set_submodule(name, constant_of(model, layer.made_of, kept, layer.rank))
            continue
        module = small.get_submodule(name)
        put(module, layer, state)
        if isinstance(module, Gathered):
            module.compacted(len(layer.inputs))
    for name in after.tensors:
        put_tensor(small, name, state[name])
    is_same = after.calls is before.calls and not before.is_exported
    return small if is_same else rebuilt(small, after)


def put_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Let a network hold another parameter or buffer under a name."""
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    old = module._parameters.get(last)
    if old is None:
        module._buffers[last] = tensor
    elif isinstance(tensor, nn.Parameter):
        module._parameters[last] = tensor
    else:
        module._parameters[last] = nn.Parameter(tensor, old.requires_grad)


def put(module: nn.Module, layer: Layer, state: Mapping[str, torch.Tensor]) -> None:
    """Let a layer's module hold other tensors, and say so in its attributes.

    Args:
        module: The module, changed in place.
        layer: The layer as it is afterwards.
        state: Its tensors by full name; they are not copied, and a parameter is taken as it is.
    """
    for name in layer.parameters:
        put_tensor(module, name, state[f"{layer.name}.{name}"])
    if isinstance(module, (*ops.CONVOLUTIONS, *ops.TRANSPOSED)):
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
    elif layer.kind == "scale":
        for name in _WIDTHS.intersection(vars(module)):
            setattr(module, name, len(layer.outputs))


def _self_check(model: nn.Module, cut: Cut) -> float:
    """Compare compact and masked network on random images; return the largest difference.

    In a network that was never trained, the batch norms' initial statistics let the signal die
    away, and any two such networks agree. So the comparison is made again with the statistics of
    the images.
    """
    device = _device(model)
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=generator)
    images = cut.before.example.filled(normal, torch.float64, device)
    if not cut.before.trains_alike:
        _check_train_mode(model, cut)
    exact = copied(bake(model, cut.before.baked)).double().eval()
    cut = cut.of_plain
    with InDouble():
        first = _difference(exact, cut, images)
        lively = _with_statistics_of(images, exact)
        return max(first, _difference(lively, cut, images))


def _check_train_mode(model: nn.Module, cut: Cut) -> None:
    """Compare the shapes of what both networks put out in train mode, where values may be random.

    Raises:
        CompactionError: They differ, or the compact network cannot be run.
    """
    whole = copied(model).train()
    small = shrunk(whole, cut)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    args, kwargs = cut.before.example.filled(torch.zeros, dtype, _device(model))
    with keeping_random_numbers(), torch.no_grad():
        try:
            expected = _shapes(whole(*args, **kwargs))
        except Exception:  # the network cannot be trained on such images, compact or not
            return
        try:
            got = _shapes(small(*args, **kwargs))
        except Exception as error:
            raise CompactionError(f"in train mode the compact network fails: {error}") from error
    if expected != got:
        raise CompactionError(
            f"in train mode the compact network puts out {got}, not {expected} as the whole one"
        )


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _shapes(output: Any) -> dict[str, Any]:
    return {
        place: tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf
        for place, leaf in leaves(output)
    }


@torch.no_grad()
def _with_statistics_of(images: Inputs, model: nn.Module) -> nn.Module:
    """Estimate the batch norms' statistics on `images`, in place."""
    for module in model.modules():
        if isinstance(module, ops.BATCH_NORMS) and module.track_running_stats:
            module.train()
            module.momentum = 1.0
    model(*images[0], **images[1])
    return model.eval()


def _difference(model: nn.Module, cut: Cut, images: Inputs) -> float:
    """Return the largest difference to the masked network, relative to each output's largest value.

    Raises:
        CompactionError: It is above the tolerance.
    """
    reference, compacted = masked(model, cut), shrunk(model, cut)
    with torch.inference_mode():
        args, kwargs = images
        expected = dict(leaves(reference(*args, **kwargs)))
        got = dict(leaves(compacted(*args, **kwargs)))
    if expected.keys() != got.keys():
        raise CompactionError("the compact network's output has another structure")
    errors = {place: _error(got[place], leaf) for place, leaf in expected.items()}
    place, error = max(errors.items(), key=lambda item: item[1])
    if not error <= TOLERANCE:
        raise CompactionError(
            f"compact and masked network differ by {error:.2g} (allowed {TOLERANCE:g})"
            f"{' in output' + place if place else ''}; "
            f"{_where_they_part(reference, compacted, cut, images)}"
        )
    return error


def _error(got: Any, expected: Any) -> float:
    """Return how far an output is from another, relative to the other's largest value."""
    if not isinstance(expected, Tensor) or not isinstance(got, Tensor):
        return 0.0 if got == expected else math.inf
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return math.inf
    if not expected.numel() or torch.equal(got, expected):
        return 0.0
    if not expected.is_floating_point():
        return math.inf
    scale = expected.abs().max().item() or 1.0
    error = (got - expected).abs().max().item() / scale
    return math.inf if math.isnan(error) else error


def _where_they_part(reference: nn.Module, compacted: nn.Module, cut: Cut, images: Inputs) -> str:
    """Name the first layer whose kept outputs differ."""
    outputs = [_layer_outputs(network, cut.after, images) for network in (reference, compacted)]
    for name, full in outputs[0].items():
        if cut.after.layers[name].kind == "constant":
            continue
        stays = torch.from_numpy(cut.keep[cut.before.layers[name].outputs])
        kept = full.movedim(cut.after.layers[name].axis, 0)[stays.to(full.device)]
        if (
            kept - outputs[1][name].movedim(cut.after.layers[name].axis, 0)
        ).abs().max() > TOLERANCE * max(1.0, full.abs().max().item()):
            return f"they part at layer {name}"
    return "they part behind the last layer"


def _layer_outputs(
    network: nn.Module, graph: ChannelGraph, images: Inputs
) -> dict[str, torch.Tensor]:
    outputs: dict[str, torch.Tensor] = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: outputs.__setitem__(name, output)
        )
        for name in graph.layers
    ]
    with torch.inference_mode():
        network(*images[0], **images[1])
    for handle in handles:
        handle.remove()
    return outputs
