"""The whole network with a compact one's tensors, and zeros in place of what a plan dropped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chanprune.channels.baked import bake
from chanprune.channels.graph import Cut
from chanprune.channels.modes import copied
from chanprune.channels.rebuilt import rebuilt
from chanprune.channels.shrunk import tensors_of
from chanprune.channels.slicing import write


@torch.no_grad()
def widened(model: nn.Module, small: nn.Module, cut: Cut) -> nn.Module:
    """Return a copy of a network that computes what a compact one does, at the whole's cost.

    Args:
        model: The network before the cut; it is not changed, and its own values are not used.
        small: What is left of it, with any values.
        cut: What was dropped.

    Returns:
        A network of the whole's shapes, whose dropped channels are zero.
    """
    wide = copied(bake(model, cut.before.baked))
    if cut.before.is_exported:
        wide = rebuilt(wide, cut.before)
    into, own = tensors_of(wide), tensors_of(small)
    for name, tensor in into.items():
        if name in cut.before.axes and tensor.is_floating_point():
            tensor.detach().fill_(1 if name.endswith("running_var") else 0)
    write({name: own[name] for name in own.keys() & into.keys()}, into, cut)
    for name, layer in cut.after.layers.items():
        before = cut.before.layers[name]
        if layer.made_of and not before.made_of:  # it emits what the last of these layers shifts by
            kept = torch.from_numpy(cut.keep[before.outputs])
            into[f"{layer.made_of[-1]}.bias"][kept] = _bias(small.get_submodule(name))
    return wide


def _bias(constant: nn.Module) -> Tensor:
    bias = constant.bias
    assert isinstance(bias, Tensor)
    return bias
