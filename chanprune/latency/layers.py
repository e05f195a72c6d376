"""What the layers of a network read and write, as a function of the widths of its groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from chanprune.channels import ChannelGraph
from chanprune.channels import operations as ops
from chanprune.channels.layers import ChannelNumbers

Floats = npt.NDArray[np.float64]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Width:
    """A number of channels: what does not change, and a multiple of each group's width.

    Attributes:
        base: Channels of groups whose width is fixed.
        times: (G,) how often a channel of each group is among them.
        whole: The number when all groups are whole.
    """

    base: float
    times: Floats
    whole: int

    def of(self, widths: Floats) -> Floats:
        """Return the number (...,) for widths (..., G)."""
        number: Floats = self.base + widths @ self.times
        return number


@dataclass(frozen=True, eq=False)
class TimedLayer:
    """A convolution or a linear layer, as it is called.

    Attributes:
        name: Module name.
        module: The module.
        inputs: The shapes that it is called with, whole.
        axis: Their dimension that runs over channels.
        reads: Its input channels.
        writes: Its output channels.
        depthwise: It reads as many as it writes, one by one.
    """

    name: str
    module: nn.Module
    inputs: tuple[Shape, ...]
    axis: int
    reads: Width
    writes: Width
    depthwise: bool

    @property
    def unit(self) -> int:
        """What its numbers of channels are multiples of."""
        return 1 if self.depthwise else int(getattr(self.module, "groups", 1))


@dataclass(frozen=True, eq=False)
class Workload:
    """What a network does for a batch.

    Attributes:
        names: The groups whose widths vary, in the order of all widths below.
        layers: Its convolutions and linear layers.
        elements: How many elements they and the norms put out, as a function of the widths.
    """

    names: tuple[str, ...]
    layers: tuple[TimedLayer, ...]
    elements: Width


def workload(
    model: nn.Module, graph: ChannelGraph, names: Sequence[str], images: Tensor
) -> Workload:
    """Note what the layers of a network are called with.

    Args:
        model: The network, in eval mode.
        graph: Its channel graph.
        names: The groups whose widths vary.
        images: (N, C, H, W).
    """
    calls: dict[str, list[tuple[Shape, Shape]]] = {}

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls.setdefault(name, []).append((tuple(args[0].shape), tuple(output.shape)))

    hooks = [
        model.get_submodule(name).register_forward_hook(partial(note, name))
        for name, layer in graph.layers.items()
        if layer.kind in ("conv", "linear", "norm")
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    owner = _owners(graph, names)
    sizes = np.array([graph.groups[name].size for name in names], dtype=np.float64)
    layers = []
    base, times, whole = 0.0, np.zeros(len(names)), 0
    for name, shapes in calls.items():
        layer, module = graph.layers[name], model.get_submodule(name)
        writes = _width(layer.outputs, owner, sizes)
        if isinstance(module, (*ops.CONVOLUTIONS, *ops.TRANSPOSED, nn.Linear)):
            reads = _width(layer.inputs, owner, sizes)
            inputs = tuple(shape for shape, _ in shapes)
            axis = -1 if isinstance(module, nn.Linear) else 1
            layers.append(TimedLayer(name, module, inputs, axis, reads, writes, layer.depthwise))
        places = sum(int(np.prod(shape)) for _, shape in shapes) / max(1, writes.whole)
        base, times = base + places * writes.base, times + places * writes.times
        whole += round(places * writes.whole)
    return Workload(tuple(names), tuple(layers), Width(base, times, whole))


def _owners(graph: ChannelGraph, names: Sequence[str]) -> ChannelNumbers:
    """Return (channels,) the place in `names` of the group that a channel is in, or -1."""
    most = max(group.start + group.size for group in graph.groups.values())
    owner = np.full(most, -1)
    for place, name in enumerate(names):
        owner[graph.groups[name].numbers] = place
    return owner


def _width(channels: ChannelNumbers, owner: ChannelNumbers, sizes: Floats) -> Width:
    owners = owner[channels]
    times = np.bincount(owners[owners >= 0], minlength=len(sizes)) / sizes
    return Width(float((owners < 0).sum()), times, len(channels))
