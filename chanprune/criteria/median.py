"""Geometric median: filters that others can stand for go (FPGM, He et al., CVPR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from chanprune.channels import ChannelGroup
from chanprune.components import criterion
from chanprune.criteria.base import Criterion, Grouping, Normalise, Subject


@criterion("median")
class GeometricMedian(Criterion):
    """The sum of a filter's distances to all others of its group (eq. 6).

    Args:
        grouping: Of coupled layers that make a channel, whether all of them count, or the first.
        normalise: What the scores of a group are divided by: their mean, their largest, or nothing.
    """

    what = "distance to other filters"

    def __init__(self, grouping: Grouping = "group", normalise: Normalise = "mean"):
        super().__init__(grouping, normalise)

    def of_group(self, subject: Subject, group: ChannelGroup) -> Tensor:
        """Sum the distances, in double precision."""
        own = self.filters(subject, group).double()
        return torch.cdist(own, own, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
