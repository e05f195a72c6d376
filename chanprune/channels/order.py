"""Ordering: the channels of a network renumbered, so that the first are the most important.

Renumbering changes nothing that the network computes. Behind it, any pruned network runs at
fidelity levels (see fidelity): ordered by the scales of network slimming, it is the baseline of a
network that was trained to be in order.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from chanprune.channels.fidelity import fidelity_groups
from chanprune.channels.graph import ChannelGraph
from chanprune.channels.slicing import renumber


def order_by(
    model: nn.Module, graph: ChannelGraph, scores: Mapping[str, Tensor]
) -> tuple[nn.Module, dict[str, list[int]]]:
    """Put the channels with the highest scores first, in every group that levels narrow.

    Groups that a grouped convolution splits stay as they are, as do those without scores. Equal
    scores keep their order.

    Args:
        model: The network; it is not changed.
        graph: Its channel graph, which also describes the result.
        scores: Group name -> (C,) score.

    Returns:
        The renumbered network, and group name -> where each of its channels was before.
    """
    order = {
        name: scores[name].argsort(descending=True, stable=True).tolist()
        for name in fidelity_groups(graph)
        if name in scores and graph.groups[name].blocks == 1
    }
    ordered = copy.deepcopy(model)
    with torch.no_grad():
        ordered.load_state_dict(renumber(model.state_dict(), graph, order))
    return ordered, order
