"""What is known while the calls of a network are followed one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.calls import UnsupportedNetwork
from chanprune.channels.layers import ChannelNumbers, Layer
from chanprune.channels.plain import has_code_of_its_own, treats_channels_alone
from chanprune.channels.rules.nodes import name_of, shape_of
from chanprune.channels.unite import Numbering


class Walk:
    """One pass over the calls of a network, and another over those in train mode.

    Attributes:
        channels: Call -> the channel numbers of its result, along dimension 1; of several tensors
            that are returned together, those of each.
        sizes: Call whose result is made of numbers of channels -> those channels.
        dims: Call that gives sizes of a tensor -> the dimensions that they are of.
        nonzero: Calls that make something of channels of zeros.
        layers: Name -> layer, as far as the calls went.
        called: Names of the layers that this pass has met.
        training: The calls are those in train mode.
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
        self.called: set[str] = set()
        self.training = False

    def source(self, node: fx.Node) -> ChannelNumbers:
        """Return the channel numbers of the node's first operand."""
        first = node.all_input_nodes[0]
        if first not in self.channels:
            raise self.unsupported(node, f"has an operand without channels, {first.name}")
        return self.channels[first]

    def freeze(self, numbers: ChannelNumbers, reason: str) -> None:
        """Keep these channels whole."""
        self.numbering.freeze(numbers, reason)

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the layer that a node calls, if it calls one."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def unsupported(self, node: fx.Node, what: str) -> UnsupportedNetwork:
        """Name the layer of a node in an error."""
        module = self.module(node)
        if module is not None:
            where = f"layer {node.target} ({type(module).__name__})"
        else:
            path = list(node.meta.get("nn_module_stack", {}).values())
            owner = path[-1][0] if path else ""
            where = f"operation {name_of(node)} in {owner or 'the network'}"
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
        positions = shape_of(node.all_input_nodes[0])[2:]
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


Rule = Callable[[Walk, fx.Node], ChannelNumbers | None]
