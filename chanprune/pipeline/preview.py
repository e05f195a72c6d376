"""What a budget would leave of a network, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.channels import ChannelGraph, Counts, Plan, count_plan
from chanprune.criteria import Subject
from chanprune.methods import PruneOptions, select
from chanprune.models import build
from chanprune.pipeline.prepare import load_given_weights, make_criterion
from chanprune.pipeline.pruning import with_budget
from chanprune.processes.errors import UserError


@dataclass(frozen=True)
class Preview:
    """What would be left.

    Attributes:
        widths: Channel group -> its channels now, and then.
        counts: Of the network that is left.
        how: By what channels were ranked.
    """

    widths: Mapping[str, tuple[int, int]]
    counts: Counts
    how: str


def preview(
    config: Mapping[str, Any],
    model: nn.Module,
    graph: ChannelGraph,
    built_from: Mapping[str, Any] | None,
) -> Preview | None:
    """Select channels as a run would; None if neither a budget nor a criterion asks for it.

    A criterion that needs no data is asked, of the weights that the network is given or begins
    with. What a method, or data, would decide is not known; every group loses the same share then.

    Args:
        config: The configuration.
        model: The network, on the meta device.
        graph: Its channel graph.
        built_from: Arguments of `models.build` for it; None if it is what a run left.

    Raises:
        UserError: The budget cannot be met.
    """
    section, criterion = config["prune"], make_criterion(config)
    targets = [section[key] for key in section if key.startswith("target_")]
    if criterion.is_own and not any(targets):
        return None
    if section["target_latency_ms"] is not None:
        raise UserError(
            "prune.target_latency_ms is met by measuring networks, which summarize does not; "
            "python -m chanprune.prune does"
        )
    try:
        graph = graph.keeping(section["keep"])
        options = with_budget(PruneOptions.of(section, graph), section, model, graph)
        groups = graph.prunable(options.coupled)
        if built_from is None or criterion.is_own or criterion.needs != "nothing":
            how = "the same share of every group, as what ranks them is not known yet"
            options = replace(options, scope="layer")
            scores: Mapping[str, Tensor] = {g.name: torch.zeros(g.size) for g in groups}
        else:
            torch.manual_seed(config["seed"])
            whole = build(**built_from)
            said = load_given_weights(whole, config["model"])
            how = f"{criterion.what} of {said[0] if said else 'the initial weights'}"
            scores = criterion.scores(Subject(whole, graph, seed=config["seed"]), groups)
        kept = select(scores, graph, options).kept
    except ValueError as error:
        raise UserError(str(error)) from error
    widths = {name: (graph.groups[name].size, len(own)) for name, own in kept.items()}
    return Preview(widths, count_plan(model, graph, Plan(kept)), how)
