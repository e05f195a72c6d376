"""Norms of filters: L1 (Li et al., ICLR 2017, section 3.1) and L2."""

from __future__ import annotations

from torch import Tensor

from chanprune.channels import ChannelGroup
from chanprune.components import criterion
from chanprune.criteria.base import Criterion, Grouping, Normalise, Subject


@criterion("l1")
class L1(Criterion):
    """The sum of |weights| of a channel's filters.

    Args:
        grouping: Of coupled layers that make a channel, whether all of them count, or the first.
        normalise: What the scores of a group are divided by: their mean, their largest, or nothing;
            filters of different sizes have different norms.
    """

    what = "L1 norm of filters"

    def __init__(self, grouping: Grouping = "group", normalise: Normalise = "mean"):
        super().__init__(grouping, normalise)

    def of_group(self, subject: Subject, group: ChannelGroup) -> Tensor:
        """Sum."""
        return self.filters(subject, group).abs().sum(1)


@criterion("l2")
class L2(L1):
    """The Euclidean length of a channel's filters."""

    what = "L2 norm of filters"

    def of_group(self, subject: Subject, group: ChannelGroup) -> Tensor:
        """Take the root of the sum of squares."""
        return self.filters(subject, group).square().sum(1).sqrt()
