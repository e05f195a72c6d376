"""Scores of channels: high means keep."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from chanprune.channels.graph import ChannelGraph, ChannelGroup


def scale_scores(model: nn.Module, groups: Iterable[ChannelGroup]) -> dict[str, Tensor]:
    """Score channels by their batch-norm scale (Network Slimming, section 3).

    Args:
        model: The network.
        groups: The groups to score; those without a batch norm of their own width are left out.

    Returns:
        Group name -> (C,) |scale| on the CPU, summed over the batch norms of coupled channels.
    """
    scores = {}
    for group in groups:
        scales = [_scale(model, norm).reshape(group.size, -1).sum(1) for norm in group.norms]
        if scales:
            scores[group.name] = torch.stack(scales).sum(0)
    return scores


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
    scores = {}
    for group in groups:
        if not group.producers:
            continue
        score = torch.zeros(group.size, dtype=torch.float64)
        for producer in group.producers:
            weight = model.get_submodule(producer).weight
            assert isinstance(weight, Tensor)
            norms = weight.detach().double().abs().flatten(1).sum(1).cpu()
            own = torch.from_numpy(graph.layers[producer].outputs) - group.start
            score.index_add_(0, own, norms)
        scores[group.name] = score
    return scores


def _scale(model: nn.Module, norm: str) -> Tensor:
    weight = model.get_submodule(norm).weight
    assert isinstance(weight, Tensor)
    return weight.detach().abs().cpu()
