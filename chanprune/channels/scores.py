"""Scores of channels: high means keep."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from chanprune.channels.graph import ChannelGroup


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


def _scale(model: nn.Module, norm: str) -> Tensor:
    weight = model.get_submodule(norm).weight
    assert isinstance(weight, Tensor)
    return weight.detach().abs().cpu()
