"""Scores of channels: high means keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from chanprune.channels.graph import ChannelGraph, ChannelGroup


def scale_scores(
    model: nn.Module, graph: ChannelGraph, groups: Iterable[ChannelGroup]
) -> dict[str, Tensor]:
    """Score channels by their batch-norm scale (Network Slimming, section 3).

    Args:
        model: The network.
        graph: Its channel graph.
        groups: The groups to score; those without a batch norm are left out.

    Returns:
        Group name -> (C,) |scale| on the CPU, summed over the batch norms of coupled channels.
    """

    def scales(norm: nn.Module) -> Tensor:
        assert isinstance(norm.weight, Tensor)
        return norm.weight.detach().abs()

    return {g.name: _summed(model, graph, g, g.norms, scales) for g in groups if g.norms}


def filter_scores(
    model: nn.Module, graph: ChannelGraph, groups: Iterable[ChannelGroup]
) -> dict[str, Tensor]:
    """Score channels by the sum of |weights| of their filters (Li et al., ICLR 2017, section 3.1).

    Args:
        model: The network.
        graph: Its channel graph.
        groups: The groups to score; those behind a gather have no filters and are left out.

    Returns:
        Group name -> (C,) L1 norm on the CPU, summed over the filters of coupled channels.
    """

    def norms(producer: nn.Module) -> Tensor:
        assert isinstance(producer.weight, Tensor)
        return producer.weight.detach().abs().flatten(1).sum(1)

    return {g.name: _summed(model, graph, g, g.producers, norms) for g in groups if g.producers}


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
