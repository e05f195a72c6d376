"""Batch-norm scales (Network Slimming), and scales times their gradients (Molchanov et al.)."""

from __future__ import annotations

from collections.abc import Iterable

from chanprune.channels import ChannelGroup, Scores, scale_scores, taylor_scores
from chanprune.channels.modes import copied
from chanprune.components import Count, criterion
from chanprune.criteria.base import Criterion, Normalise, Subject


@criterion("scale")
class Scale(Criterion):
    """The size of a channel's batch-norm scales, as they are (Liu et al., ICCV 2017, section 3).

    Args:
        normalise: What the scores of a group are divided by: their mean, their largest, or nothing.
    """

    what = "|batch-norm scale|"

    def __init__(self, normalise: Normalise = "none"):
        super().__init__(normalise=normalise)

    def scores(self, subject: Subject, groups: Iterable[ChannelGroup]) -> Scores:
        """Sum over the batch norms of coupled channels; groups that have none are left out."""
        found = scale_scores(subject.model, subject.graph, groups)
        return Scores({name: self._normalised(s) for name, s in found.items()}, found.blocks)


@criterion("scale_gradient")
class ScaleGradient(Criterion):
    """What the loss would change without a channel, to first order, by its batch-norm scale.

    See `chanprune.channels.taylor_scores` (Molchanov et al., CVPR 2019, eq. 8).

    Args:
        normalise: What the scores of a group are divided by: their mean, their largest, or nothing.
        images: Number of training images.
    """

    needs = "labels"
    what = "scale x gradient"

    def __init__(self, normalise: Normalise = "none", images: Count = 2000):
        super().__init__(normalise=normalise)
        self.images = images

    def scores(self, subject: Subject, groups: Iterable[ChannelGroup]) -> Scores:
        """Score the groups that have a batch norm."""
        assert subject.images is not None
        model = copied(subject.model).requires_grad_(True)
        found = taylor_scores(model, subject.graph, groups, subject.images(self.images))
        return Scores({name: self._normalised(s) for name, s in found.items()}, found.blocks)
