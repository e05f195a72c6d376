"""What a criterion is: it gives every channel of a network a score, high means keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from chanprune.channels import ChannelGraph, ChannelGroup, Scores, filters
from chanprune.components import criterion

Grouping = Literal["group", "first"]
Normalise = Literal["none", "mean", "max"]


@dataclass(frozen=True)
class Subject:
    """What a criterion may look at.

    Attributes:
        model: The network; it is left as it is.
        graph: Its channel graph.
        images: Number of images -> about so many, in batches (images, labels) on the network's
            device; None where there are none.
        seed: Of the run.
    """

    model: nn.Module
    graph: ChannelGraph
    images: Callable[[int], Iterable[tuple[Tensor, Tensor]]] | None = None
    seed: int = 0


class Criterion:
    """A score for every channel. A subclass says what it is of one group, in `of_group`.

    Args:
        grouping: Of coupled channels: all layers that make them count, or the "first".
        normalise: What the scores of a group are divided by, so that groups can be compared: their
            "mean", their "max", or "none".

    Attributes:
        needs: "nothing" but the weights, or "labels", with their images.
        what: What the score is, for pictures.
        is_own: Whether the method ranks channels itself.
    """

    needs: Literal["nothing", "labels"] = "nothing"
    what = "score"
    is_own = False

    def __init__(self, grouping: Grouping = "group", normalise: Normalise = "none"):
        self.grouping = grouping
        self.normalise = normalise

    def scores(self, subject: Subject, groups: Iterable[ChannelGroup]) -> Scores:
        """Score the channels of some groups.

        Returns:
            Group name -> (C,) finite scores on the CPU.

        Raises:
            ValueError: The criterion needs what the network, or the data, has not.
        """
        scores = {group.name: self.of_group(subject, group) for group in groups}
        return Scores({g: self._normalised(s) for g, s in scores.items()}, subject.graph.blocks)

    def of_group(self, subject: Subject, group: ChannelGroup) -> Tensor:
        """Return the score (C,) of each channel of a group."""
        raise NotImplementedError(f"{type(self).__name__} scores no channels")

    def filters(
        self,
        subject: Subject,
        group: ChannelGroup,
        values: Callable[[Tensor], Tensor] = Tensor.detach,
    ) -> Tensor:
        """Return the weights (C, n) that make each channel; see `chanprune.channels.filters`."""
        is_first = self.grouping == "first"
        return filters(subject.model, subject.graph, group, is_first, values)

    def _normalised(self, score: Tensor) -> Tensor:
        if self.normalise == "none":
            return score
        divisor = score.mean() if self.normalise == "mean" else score.max()
        return score / divisor if divisor > 0 else score


@criterion("own")
class Own(Criterion):
    """The method's own."""

    is_own = True

    def __init__(self) -> None:
        super().__init__()
