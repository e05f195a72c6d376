"""A share of each layer, chosen once after ordinary training: by filters' norms, or at random.

L1-norm filter pruning (Li et al., ICLR 2017, section 3) drops, in each layer, the filters with the
smallest sum of absolute weights, each layer by its own weights, and fine-tunes. How much each layer
loses is given: the paper's plans A and B come from looking at how sensitive the layers are.
Channels behind a gather, in pre-activation networks, have no filters of their own; the columns that
read them count instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.channels import ChannelGraph, ChannelGroup, Selection, filter_scores
from chanprune.components import Share, method
from chanprune.methods.base import Method, PruneOptions, Setting, select
from chanprune.processes.errors import UserError


@method("l1norm")
class L1Norm(Method):
    """Drop the filters with the smallest L1 norm, a given share of each channel group.

    Args:
        shares: Regular expression for whole names of channel groups -> the share that goes, in
            [0, 1), rounded to keep floor(C (1 - share)) channels; the first that matches counts,
            and groups that none matches stay whole. Empty: every group loses prune.ratio. Where
            prune.widths names a run, its widths are taken instead.
    """

    prunes = True
    repeats = True
    trains_as = "nothing but the loss"
    score = "L1 norm of filters"

    def __init__(self, shares: Mapping[str, Share] = {}):
        self.shares = dict(shares)

    @staticmethod
    def demands(method: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Refuse a budget beside shares that say what every layer loses."""
        targets = [value for key, value in config["prune"].items() if key.startswith("target_")]
        if method["shares"] and any(targets):
            raise ValueError(
                "method.shares says what every layer loses; beside a budget (prune.target_*) give "
                "prune.shares, which leaves the others to it"
            )

    def before_training(
        self, model: nn.Module, graph: ChannelGraph, setting: Setting
    ) -> dict[str, float]:
        """Refuse shares that match nothing.

        Raises:
            UserError: A share's expression is none, or matches no channel group that may go.
        """
        names = [group.name for group in graph.prunable(setting.prune.coupled)]
        for pattern in self.shares:
            try:
                found = any(re.fullmatch(pattern, name) for name in names)
            except re.error as error:
                raise UserError(f"method.shares: {pattern} is no expression: {error}") from error
            if not found:
                listed = ", ".join(names)
                raise UserError(f"method.shares: {pattern} matches none of {listed}")
        return {}

    def select_channels(
        self, model: nn.Module, graph: ChannelGraph, options: PruneOptions
    ) -> tuple[Selection, dict[str, Tensor]]:
        """Keep the best channels of each group."""
        groups = graph.prunable(options.coupled)
        scores = self.scores(model, graph, groups)
        if options.widths is None and (self.shares or not options.budget):
            widths = {g.name: self._width(g, options) for g in groups if g.name in scores}
            options = replace(options, widths=widths)
        return select(scores, graph, replace(options, scope="layer")), scores

    def scores(
        self, model: nn.Module, graph: ChannelGraph, groups: Iterable[ChannelGroup]
    ) -> dict[str, Tensor]:
        """Return the score (C,) of each channel, by group."""
        return filter_scores(model, graph, groups)

    def _width(self, group: ChannelGroup, options: PruneOptions) -> int:
        own = [share for p, share in self.shares.items() if re.fullmatch(p, group.name)]
        share = own[0] if own else 0.0 if self.shares else options.ratio
        return options.width(group, options.shares.get(group.name, share))


@method("random")
class RandomOnce(L1Norm):
    """Drop random channels: what a criterion must be better than at the same widths."""

    score = "random score"

    def before_training(
        self, model: nn.Module, graph: ChannelGraph, setting: Setting
    ) -> dict[str, float]:
        """Take the seed of the run."""
        self.seed = setting.seed
        return super().before_training(model, graph, setting)

    def scores(
        self, model: nn.Module, graph: ChannelGraph, groups: Iterable[ChannelGroup]
    ) -> dict[str, Tensor]:
        """Draw."""
        draws = torch.Generator().manual_seed(self.seed)
        return {group.name: torch.rand(group.size, generator=draws) for group in groups}
