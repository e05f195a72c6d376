"""What is known while the calls of a network are followed one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from chanprune.channels.layers import ChannelNumbers, Layer
from chanprune.channels.rules.nodes import shape_of
from chanprune.channels.spread import aligned, axes_of, on_axis
from chanprune.channels.unite import Numbering

Numbers = ChannelNumbers | tuple[ChannelNumbers | None, ...]


@dataclass(frozen=True, eq=False)
class Bare:
    """Parameters or buffers that no layer holds, on their way to the channels that they meet.

    Attributes:
        names: Their names; of several what is made element by element.
        places: Which of their elements stand at each place; see `spread`.
    """

    names: tuple[str, ...]
    places: ChannelNumbers


class Walk:
    """One pass over the calls of a network, and another over those in train mode.

    Attributes:
        channels: Call -> the channel numbers of its result (see `spread`); of several tensors that
            are returned together, those of each. What is not here has channels that all stay.
        bare: Call -> the parameters or buffers that it returns, or makes something of.
        sizes: Call whose result is made of sizes of tensors -> the channels of these.
        nonzero: Calls that make something of zeros, as gates do.
        grids: Arrays of numbers that vary along several axes, of which one may lose channels.
        layers: Name -> layer, as far as the calls went.
        tensors: Name of a bare tensor -> its axis that runs over channels, and their numbers.
        whole: Names of bare tensors that something reads as they are.
        inputs: Name of an input -> its channels.
        called: Names of the layers that this pass has met.
        baked: Names of the layers that a plain one has to replace (see `baked`).
        batch: How many images the network was given; None: what it is given has no common batch.
        training: The calls are those in train mode.
    """

    def __init__(self, model: nn.Module, batch: int | None):
        self.model = model
        self.batch = batch
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.tied = _tied_modules(model)
        self.channels: dict[fx.Node, Numbers] = {}
        self.bare: dict[fx.Node, Bare] = {}
        self.sizes: dict[fx.Node, list[ChannelNumbers]] = {}
        self.nonzero: set[fx.Node] = set()
        self.grids: list[ChannelNumbers] = []
        self.layers: dict[str, Layer] = {}
        self.tensors: dict[str, tuple[int, ChannelNumbers]] = {}
        self.whole: set[str] = set()
        self.numbering = Numbering()
        self.inputs: dict[str, ChannelNumbers] = {}
        self.called: set[str] = set()
        self.baked: set[str] = set()
        self.training = False

    @property
    def read_apart(self) -> set[str]:
        """Names of the parameters and buffers that are read otherwise than by their layers."""
        return self.whole | self.tensors.keys()

    def numbers(self, node: fx.Node) -> ChannelNumbers | None:
        """Return the channel numbers of the tensor that a node returns, if they are followed."""
        numbers = self.channels.get(node)
        return None if isinstance(numbers, tuple) else numbers

    def module(self, node: fx.Node) -> Any:
        """Return the layer that a node calls, if it calls one."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def read(self, node: fx.Node, axis: int, reader: str) -> ChannelNumbers:
        """Return (C,) the channels along one axis of a tensor, all of which stay along others."""
        shape = shape_of(node)
        axis %= len(shape)
        numbers = self.numbers(node)
        for other in [] if numbers is None else axes_of(numbers):
            if other != axis and numbers is not None:
                numbers = self.whole_along(numbers, other, f"{reader} reads another dimension")
        if numbers is None or axes_of(numbers) not in ([], [axis]):
            reason = f"{node.name}, which {reader} reads, has channels that all stay"
            return self.numbering.fixed(shape[axis], f"{node.name} of {reader}", reason)
        return np.broadcast_to(numbers.reshape(-1), shape[axis])

    def positions(self, node: fx.Node, axis: int) -> int:
        """Return how many positions a tensor has for one image, beside its channels."""
        shape = shape_of(node)
        everything = math.prod(shape[dim] for dim in range(len(shape)) if dim != axis % len(shape))
        return everything // (self.batch or shape[0])

    def whole_along(self, numbers: ChannelNumbers, axis: int, reason: str) -> ChannelNumbers:
        """Let no channel go along one axis; return the numbers without it."""
        if axes_of(numbers) == [axis]:
            self.freeze(numbers, reason)
            return numbers
        first = numbers.take([0], axis)
        self.numbering.unite(numbers, first)
        return first

    def keep_whole(self, node: fx.Node, reason: str) -> None:
        """Keep all channels of what a node reads."""
        for source in node.all_input_nodes:
            numbers = self.channels.get(source, ())
            for each in numbers if isinstance(numbers, tuple) else (numbers,):
                if each is not None:
                    self.freeze(each, reason)
            self.keep_bare_whole(source)
        self.freeze_sizes(node, reason)

    def keep_bare_whole(self, source: fx.Node) -> None:
        """Keep the parameter or buffer whole that a node returns, if it returns one."""
        if source in self.bare:
            self.whole.update(self.bare[source].names)

    def freeze_sizes(self, node: fx.Node, reason: str) -> None:
        """Keep the channels whole of whose number a node is given something."""
        for source in node.all_input_nodes:
            for numbers in self.sizes.get(source, ()):
                self.freeze(numbers, reason)

    def freeze(self, numbers: ChannelNumbers, reason: str) -> None:
        """Keep these channels whole."""
        self.numbering.freeze(numbers, reason)

    def put(self, node: fx.Node, numbers: Numbers) -> None:
        """Store the channel numbers of what a node returns."""
        self.channels[node] = numbers
        for each in numbers if isinstance(numbers, tuple) else (numbers,):
            if each is not None and len(axes_of(each)) > 1:
                self.grids.append(each)

    def meet(self, bare: Bare, numbers: ChannelNumbers, rank: int) -> None:
        """Let a bare tensor have the channels of what it is combined with, element by element."""
        places, own = np.broadcast_arrays(aligned(bare.places, rank), numbers)
        for name in bare.names:
            self._meet(name, places, own)

    def _meet(self, name: str, places: ChannelNumbers, own: ChannelNumbers) -> None:
        by_place = np.full(self._tensor(name), -1)
        flat = by_place.reshape(-1)
        flat[places.ravel()] = own.ravel()
        self.numbering.unite(flat[places], own)
        known = self.tensors.get(name)
        axes = [d for d in range(by_place.ndim) if _varies(by_place, d)]
        if not axes:
            return
        along = [axes[0]] if known is None else [known[0]]
        if axes != along or (by_place < 0).any():
            self.freeze(own, f"it is combined with a part of {name}")
            self.whole.add(name)
            return
        of_axis = np.moveaxis(by_place, axes[0], 0).reshape(by_place.shape[axes[0]], -1)[:, 0]
        if known is not None:
            self.numbering.unite(known[1], of_axis)
        else:
            self.tensors[name] = (axes[0], of_axis)

    def holds(self, name: str) -> bool:
        """Tell whether the network has a parameter or buffer of a name; calls may read others."""
        owner, _, last = name.rpartition(".")
        module = self.modules.get(owner)
        return module is not None and isinstance(getattr(module, last, None), Tensor)

    def _tensor(self, name: str) -> tuple[int, ...]:
        owner, _, last = name.rpartition(".")
        return tuple(getattr(self.model.get_submodule(owner), last).shape)

    def record(self, layer: Layer) -> ChannelNumbers:
        """Store a layer, or unite its channels with those of its earlier calls."""
        if self.training:
            layer = replace(layer, positions=0, output_positions=0)
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
        norms = earlier.normalised_by
        if is_again:
            norms = norms | layer.normalised_by if norms and layer.normalised_by else frozenset()
        self.layers[layer.name] = replace(
            earlier,
            positions=earlier.positions + layer.positions,
            output_positions=earlier.output_positions + layer.output_positions,
            normalised_by=norms,
        )
        return earlier.outputs

    def put_along(self, node: fx.Node, outputs: ChannelNumbers, axis: int = 1) -> None:
        """Store channels (C,) that run along one axis of what a node returns."""
        rank = len(shape_of(node))
        self.put(node, on_axis(outputs, rank, axis % rank))


def _varies(numbers: ChannelNumbers, dim: int) -> bool:
    return bool((numbers != numbers.take([0], dim)).any())


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


Rule = Callable[[Walk, fx.Node], None]
