"""Scores of channels: high means keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chanprune.channels import operations as ops
from chanprune.channels.graph import ChannelGraph
from chanprune.channels.layers import ChannelGroup, ChannelNumbers, Layer, Mask
from chanprune.channels.modes import evaluating
from chanprune.channels.selection import Scores, first_of

FEW = 20


def scale_scores(model: nn.Module, graph: ChannelGraph, groups: Iterable[ChannelGroup]) -> Scores:
    """Score channels by their batch-norm scale (Network Slimming, section 3).

    Args:
        model: The network.
        graph: Its channel graph.
        groups: The groups to score; those without a batch norm are left out.

    Returns:
        Group name -> (C,) |scale| on the CPU, summed over the batch norms of coupled channels.

    Raises:
        ValueError: No group has a batch norm, though there are groups.
    """
    groups = list(groups)
    if groups and not any(group.norms for group in groups):
        raise ValueError(
            f"no scale tells which channels to drop: none of {first_of([g.name for g in groups])} "
            "has a batch norm; criterion=l1 (filter_scores) ranks channels by their filters"
        )

    def scales(norm: nn.Module) -> Tensor:
        assert isinstance(norm.weight, Tensor)
        return norm.weight.detach().abs()

    return Scores(
        {g.name: _summed(model, graph, g, g.norms, scales) for g in groups if g.norms},
        graph.blocks,
    )


def taylor_scores(
    model: nn.Module,
    graph: ChannelGraph,
    groups: Iterable[ChannelGroup],
    batches: Iterable[tuple[Tensor, Tensor]],
) -> Scores:
    """Score channels by what the loss would change without them, to first order.

    A channel's share in the loss of a few images is its batch-norm scale times the gradient by it
    (Molchanov et al., CVPR 2019, eq. 8, with the scale as the gate); the score is the root of the
    mean square over many such images. What a later batch norm makes of a factor common to all
    scales of a group does not change it, so that groups can be compared. The scales alone cannot:
    batch norms behind a group let them shrink together.

    Args:
        model: The network; evaluated as in eval mode and left in the mode that it is in.
        graph: Its channel graph.
        groups: The groups to score; those without a batch norm are left out.
        batches: (images, labels), on the model's device.

    Returns:
        Group name -> (C,) on the CPU, added in squares over the batch norms of coupled channels.

    Raises:
        ValueError: There is no batch.
    """
    groups = [group for group in groups if group.norms]
    names = [name for group in groups for name in group.norms]
    scales = [model.get_parameter(f"{name}.weight") for name in names]
    shares: list[list[Tensor]] = []
    with evaluating(model):
        for images, labels in few_at_once(batches):
            gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), scales)
            shares.append([s.detach() * g for s, g in zip(scales, gradients, strict=True)])
    if names and not shares:
        raise ValueError("Taylor scores cannot be estimated from no images")
    squares = [torch.stack(own).square().mean(0) for own in zip(*shares, strict=True)]
    by_norm = {model.get_submodule(n): square for n, square in zip(names, squares, strict=True)}
    scores = {
        group.name: _summed(model, graph, group, group.norms, by_norm.__getitem__).sqrt()
        for group in groups
    }
    return Scores(scores, graph.blocks)


def few_at_once(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Split batches: gradients of many images cancel at a minimum, and hide what each one needs."""
    for images, labels in batches:
        yield from zip(images.split(FEW), labels.split(FEW), strict=True)


def filter_scores(model: nn.Module, graph: ChannelGraph, groups: Iterable[ChannelGroup]) -> Scores:
    """Score channels by the sum of |weights| of their filters (Li et al., ICLR 2017, section 3.1).

    Args:
        model: The network.
        graph: Its channel graph.
        groups: The groups to score.

    Returns:
        Group name -> (C,) L1 norm on the CPU, summed over the filters of coupled channels.
    """
    scores = {group.name: filters(model, graph, group).abs().sum(1) for group in groups}
    return Scores(scores, graph.blocks)


def filters(
    model: nn.Module,
    graph: ChannelGraph,
    group: ChannelGroup,
    first: bool = False,
    values: Callable[[Tensor], Tensor] = torch.detach,
) -> Tensor:
    """Return the weights that make each channel of a group.

    Args:
        model: The network.
        graph: Its channel graph.
        group: The group. One behind a gather has no filters of its own; its channels have the
            columns that read them, which is beyond the papers.
        first: Of coupled layers the first alone; else all of them, one after the other.
        values: Of a weight: the tensor of its shape that is taken instead.

    Returns:
        (C, n) on the CPU, filled up with zeros where channels have different numbers.
    """
    parts = []
    for name in group.producers[:1] if first else group.producers:
        layer = model.get_submodule(name)
        rows = _by_filter(layer, values).flatten(1)
        parts.append(_by_channel(group, graph.layers[name].outputs, rows))
    if not group.producers:
        readers = [layer for layer in graph.layers.values() if layer.kind in ("conv", "linear")]
        readers = [x for x in readers if _own_places(group, x.inputs).any()]
        for reader in readers[:1] if first else readers:
            columns = _by_column(model.get_submodule(reader.name), reader, values)
            parts.append(_by_channel(group, reader.inputs, columns))
    if not parts:
        return torch.zeros(group.size, 0, dtype=next(model.parameters()).dtype)
    return torch.cat(parts, 1)


def _by_filter(layer: nn.Module, values: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a weight as (C_out, C_in / groups, ...), also of a transposed convolution."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    is_turned = isinstance(layer, ops.TRANSPOSED) and layer.groups == 1
    taken = values(weight).cpu()
    return taken.transpose(0, 1) if is_turned else taken


def _by_column(module: nn.Module, layer: Layer, values: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the weights (C_in, n) that read each input of a layer."""
    weight = _by_filter(module, values)
    blocks = len(layer.inputs) if layer.depthwise else layer.blocks
    by_block = weight.reshape(blocks, -1, *weight.shape[1:])
    return by_block.transpose(1, 2).flatten(0, 1).flatten(1)


def _own_places(group: ChannelGroup, numbers: ChannelNumbers) -> Mask:
    return (numbers >= group.start) & (numbers < group.start + group.size)


def _by_channel(group: ChannelGroup, numbers: ChannelNumbers, rows: Tensor) -> Tensor:
    """Gather the rows (P, n) of each channel of a group, of which row i belongs to numbers[i]."""
    own = numbers - group.start
    if np.array_equal(own, np.arange(group.size)):
        return rows
    places = np.flatnonzero(_own_places(group, numbers))
    places = places[np.argsort(own[places], kind="stable")]
    channels = own[places]
    times = np.bincount(channels, minlength=group.size)
    nth = np.arange(len(channels)) - np.repeat(np.cumsum(times) - times, times)
    gathered = rows.new_zeros(group.size, times.max(initial=0), rows.shape[1])
    gathered[torch.from_numpy(channels), torch.from_numpy(nth)] = rows[torch.from_numpy(places)]
    return gathered.flatten(1)


def _summed(
    model: nn.Module,
    graph: ChannelGraph,
    group: ChannelGroup,
    layers: Iterable[str],
    values: Callable[[nn.Module], Tensor],
) -> Tensor:
    """Add up the values (C_out,) that layers give to the channels of a group."""
    total = torch.zeros(group.size, dtype=next(model.parameters()).dtype)
    for name in layers:
        own = torch.from_numpy(graph.layers[name].outputs - group.start)
        total.index_add_(0, own, values(model.get_submodule(name)).cpu().to(total.dtype))
    return total
