"""A copy of a network with the tensors, and the calls, that a plan leaves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from chanprune.channels import operations as ops
from chanprune.channels.baked import bake
from chanprune.channels.emptied import constant_of
from chanprune.channels.gathered import Gathered, read
from chanprune.channels.graph import Cut
from chanprune.channels.layers import Layer
from chanprune.channels.modes import copied
from chanprune.channels.rebuilt import rebuilt
from chanprune.channels.slicing import gather

_WIDTHS = frozenset({"num_parameters", "num_features", "num_channels", "num_groups"})


def shrunk(model: nn.Module, cut: Cut, shares: bool = False) -> nn.Module:
    """Copy `model` with the tensors, and the calls, that are left; nothing is checked.

    Args:
        model: The network before the cut; it is not changed.
        cut: What is left.
        shares: The copy has the network's own tensors where these are not cut.
    """
    before, after = cut.before, cut.after
    small = copied(bake(model, before.baked), shares)
    tensors = tensors_of(small)
    gathered = gather({name: tensor.detach() for name, tensor in tensors.items()}, cut)
    state = {
        name: tensors[name]
        if tensor.shape == tensors[name].shape
        else laid_out(tensor, tensors[name])
        for name, tensor in gathered.items()
    }
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


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name; one that is shared by each of its names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor that is contiguous, with channels last where another one has them last."""
    if not like.is_contiguous():
        for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if like.dim() == rank and like.is_contiguous(memory_format=layout):
                # So that one channel is last as well, which `contiguous` leaves as it is.
                return torch.empty_like(tensor, memory_format=layout).copy_(tensor)
    return tensor.contiguous()


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
