"""Selective units: a convolution whose input comes from one batch norm and ReLU, and nothing else.

Such a convolution may lose inputs, and have some of them replaced by copies, without any other
layer's noticing (Jeong and Shin, ICML 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.graph import ChannelGraph
from chanprune.channels.layers import ChannelGroup
from chanprune.rewiring.copies import Copying

PASSING_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d)
PASSING_FUNCTIONS = (F.dropout, F.dropout2d, "contiguous")


@dataclass(frozen=True)
class Unit:
    """A batch norm and the convolution behind it.

    Attributes:
        norm: Name of the batch norm.
        conv: Name of the convolution.
        group: Name of the channel group that the convolution reads.
        map_size: Height and width of the convolution's input in pixels.
        is_pointwise: Its kernel is 1x1.
    """

    norm: str
    conv: str
    group: str
    map_size: tuple[int, int]
    is_pointwise: bool


def selective_units(model: nn.Module, graph: ChannelGraph) -> tuple[list[Unit], dict[str, str]]:
    """Find the units of a network.

    Args:
        model: The network that `graph` describes.
        graph: Its channel graph.

    Returns:
        The units, in the order of the network, and the other convolutions with the reason.
    """
    modules = dict(model.named_modules())
    group_of = {norm: group for group in graph.groups.values() for norm in group.norms}
    units, others = [], {}
    for node in graph.calls.nodes:
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d):
            continue
        name = str(node.target)
        found = _norm_in_front(node, modules)
        if conv.groups > 1:
            others[name] = "it is in groups"
        elif isinstance(found, str):
            others[name] = found
        elif reason := _why_whole(group_of[str(found.target)], modules[str(found.target)]):
            others[name] = reason
        elif len([n for n in graph.calls.nodes if n.target == node.target]) > 1:
            others[name] = "it is called several times"
        else:
            size = node.all_input_nodes[0].meta["shape"][2:]
            group = group_of[str(found.target)]
            is_pointwise = conv.kernel_size == (1, 1)
            units.append(Unit(str(found.target), name, group.name, tuple(size), is_pointwise))
    return units, others


def _why_whole(group: ChannelGroup, norm: nn.Module) -> str:
    """Say why a convolution must keep all its inputs, if it must; copies are no reason."""
    if group.coupled:
        return "several layers are summed to its input"
    return "" if isinstance(norm, Copying) else group.fixed or ""


def _norm_in_front(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | str:
    """Return the batch norm that a convolution reads through one ReLU, or why there is none."""
    activated = False
    while True:
        node = node.all_input_nodes[0]
        if len(node.users) > 1:
            return "others read its input as well"
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.ReLU) or ops.name_of(node) == "relu":
            if activated:
                return "two activations stand in front of it"
            activated = True
        elif isinstance(module, nn.BatchNorm2d):
            if not activated:
                return "no ReLU stands between a batch norm and it"
            return node if module.affine else f"{node.target} has no scale"
        elif not isinstance(module, PASSING_MODULES) and node.target not in PASSING_FUNCTIONS:
            before = node.target if module else node.name
            return f"{before} stands in front of it, not batch norm and ReLU"
