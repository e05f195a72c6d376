"""Taylor importance of filters: what the loss would change without one (Molchanov et al.)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from chanprune.channels import ChannelGroup, Scores, few_at_once
from chanprune.channels.baked import bake
from chanprune.channels.modes import copied
from chanprune.components import Count, criterion
from chanprune.criteria.base import Criterion, Grouping, Normalise, Subject


@criterion("taylor")
class Taylor(Criterion):
    """The sum over a channel's weights of weight times gradient (CVPR 2019, eq. 8).

    The score is the root of the mean square over batches of a few images: gradients of many images
    cancel at a minimum.

    Args:
        grouping: Of coupled layers that make a channel, whether all of them count, or the first.
        normalise: What the scores of a group are divided by: their mean, their largest, or nothing.
        images: Number of training images.
    """

    needs = "labels"
    what = "Taylor importance of filters"

    def __init__(
        self,
        grouping: Grouping = "group",
        normalise: Normalise = "none",
        images: Count = 1000,
    ):
        super().__init__(grouping, normalise)
        self.images = images

    def scores(self, subject: Subject, groups: Iterable[ChannelGroup]) -> Scores:
        """Add up weight times gradient by channel, batch by batch."""
        assert subject.images is not None
        groups, graph = list(groups), subject.graph
        model = copied(bake(subject.model, graph.baked)).eval().requires_grad_(True)
        own = replace(subject, model=model)
        layers = [x.name for x in graph.layers.values() if x.kind in ("conv", "linear")]
        weights = [model.get_parameter(f"{name}.weight") for name in layers]
        squares = {group.name: torch.zeros(group.size).double() for group in groups}
        number = 0
        for images, labels in few_at_once(subject.images(self.images)):
            loss = F.cross_entropy(model(images), labels)
            slopes = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            changes: dict[Tensor, Tensor] = {
                w: (w * slope).detach() for w, slope in zip(weights, slopes, strict=True)
            }
            for group in groups:
                change = self.filters(own, group, changes.__getitem__).double().sum(1)
                squares[group.name] += change.square()
            number += 1
        if groups and not number:
            raise ValueError("Taylor importance cannot be estimated from no images")
        scores = {name: self._normalised((s / number).sqrt()) for name, s in squares.items()}
        return Scores(scores, graph.blocks)
