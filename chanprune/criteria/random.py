"""Random scores: what a criterion must be better than."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from chanprune.channels import ChannelGroup, Scores
from chanprune.components import criterion
from chanprune.criteria.base import Criterion, Subject


@criterion("random")
class Random(Criterion):
    """Draw a score for every channel, by the seed of the run."""

    what = "random score"

    def __init__(self) -> None:
        super().__init__()

    def scores(self, subject: Subject, groups: Iterable[ChannelGroup]) -> Scores:
        """Draw, the groups in their order."""
        draws = torch.Generator().manual_seed(subject.seed)
        drawn = {group.name: torch.rand(group.size, generator=draws) for group in groups}
        return Scores(drawn, subject.graph.blocks)
