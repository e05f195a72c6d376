"""LAMP: a filter's squared length among those that are at least as long (Lee et al., ICLR 2021)."""

from __future__ import annotations

from torch import Tensor

from chanprune.channels import ChannelGroup
from chanprune.components import criterion
from chanprune.criteria.base import Criterion, Grouping, Subject


@criterion("lamp")
class Lamp(Criterion):
    """Squared length over the sum of all that are not shorter (eq. 4, of filters for weights).

    The longest filter of every group has score 1, so that no group is emptied before another.

    Args:
        grouping: Of coupled layers that make a channel, whether all of them count, or the first.
    """

    what = "LAMP score"

    def __init__(self, grouping: Grouping = "group"):
        super().__init__(grouping)

    def of_group(self, subject: Subject, group: ChannelGroup) -> Tensor:
        """Divide by what is left from there on."""
        squares = self.filters(subject, group).double().square().sum(1)
        ascending, order = squares.sort(stable=True)
        left = ascending.flip(0).cumsum(0).flip(0).clamp_min(1e-300)
        scores = squares.new_empty(squares.shape)
        scores[order] = ascending / left
        return scores
