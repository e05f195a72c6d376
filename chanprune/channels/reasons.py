"""Why a compact network differs from the masked one, as far as it can be told."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch
from torch import fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.calls import record_as_is
from chanprune.channels.compared import TOLERANCE, Inputs, compared
from chanprune.channels.graph import ChannelGraph, Cut
from chanprune.channels.operations import name_of
from chanprune.channels.refusals import UnsupportedNetwork


def why(reference: nn.Module, compacted: nn.Module, cut: Cut, images: Inputs) -> str:
    """Say why two networks differ, or where they part.

    Args:
        reference: The masked network.
        compacted: The compact one.
        cut: What was cut.
        images: What they were compared on.
    """
    if draws(reference, images):
        return "the network draws random numbers while it runs, so that nothing can be proven"
    return (
        _unseen_hook(reference, compacted)
        or (_other_number(reference, compacted, cut) if type(reference) is type(compacted) else "")
        or _where_they_part(reference, compacted, cut, images)
    )


def draws(network: nn.Module, images: Inputs) -> bool:
    """Tell whether a network that is run several times puts out several things."""
    return any(not compared(network, network, images)[1] <= TOLERANCE for _ in range(8))


def _other_number(whole: nn.Module, compacted: nn.Module, cut: Cut) -> str:
    """Name a call to which a compact network of its own class gives another number."""
    try:
        pairs = zip_longest(
            *(record_as_is(net, cut.before.example).nodes for net in (whole, compacted))
        )
        for node, own in pairs:
            given, gets = _numbers_in(node), _numbers_in(own)
            if node.op != own.op or node.target != own.target or len(given) != len(gets):
                return ""
            if given != gets:
                other = next((a, b) for a, b in zip(given, gets, strict=True) if a != b)
                return (
                    f"{ops.name_of(node) or node.target} is given {other[1]:.6g} in the compact "
                    f"network and {other[0]:.6g} in the whole one: a number that is made of a "
                    "layer's width, such as out_channels; keep it as a number of the network"
                )
    except (UnsupportedNetwork, AttributeError):
        return ""
    shapes = [n for n in cut.before.calls.nodes if name_of(n) in ops.SIZES and _of_weight(n)]
    if shapes:
        weight = shapes[0].all_input_nodes[0].target
        return f"its forward reads the size of {weight}; keep it as a number of the network"
    return ""


def _numbers_in(node: fx.Node) -> list[float]:
    numbers: list[float] = []

    def note(argument: Any) -> Any:
        if isinstance(argument, (int, float)):
            numbers.append(argument)
        return argument

    fx.node.map_aggregate((node.args, node.kwargs), note)
    return numbers


def _of_weight(node: fx.Node) -> bool:
    return any(source.op == "get_attr" for source in node.all_input_nodes)


def _unseen_hook(whole: nn.Module, compacted: nn.Module) -> str:
    """Name a part whose hooks a network does not call that was built from its calls."""
    left = dict(compacted.named_modules())
    for name, module in whole.named_modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        is_kept = name in left and type(left[name]) is type(module)
        if hooks and not is_kept:
            return (
                f"{name or 'the network'} has forward hooks, which are not called where the "
                "network has to be built from its calls; remove them"
            )
    return ""


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
