"""Random channels while training: what a bandit's choice must be better than."""

from __future__ import annotations

import torch

from chanprune.components import ShareOrAll, method
from chanprune.methods.base import Step
from chanprune.methods.cucb import Cucb
from chanprune.methods.dynamic import DynamicChannels, Scores


@method("random_every_step")
class RandomEveryStep(DynamicChannels):
    """Random channels at every choice, and at the end; equal shares of all groups."""

    def scores(self, step: Step) -> Scores:
        """Draw."""
        return self.random_ranks()

    def final_scores(self) -> Scores:
        """Draw once more."""
        return self.random_ranks()


@method("fixed_random")
class FixedRandom(DynamicChannels):
    """One random choice before the first step: a small network, trained from its start.

    Equal shares of all groups, or the widths of another run (prune.widths).

    Args:
        floor: As for CUCB.
    """

    def __init__(self, floor: ShareOrAll = 0.5):
        super().__init__(freeze=0.0, floor=floor)

    def scores(self, step: Step) -> Scores:
        """Draw the one choice."""
        return self.random_ranks()

    def final_scores(self) -> Scores:
        """Score what was chosen by 1."""
        assert self.cut is not None
        scores = {name: torch.zeros(size).double() for name, size in self.sizes.items()}
        for name, kept in self.cut.plan.kept.items():
            scores[name][list(kept)] = 1
        return scores


@method("final_random")
class FinalRandom(Cucb):
    """Train as CUCB does; keep random channels at the end, equal shares of all groups."""

    score = "random score"

    def final_scores(self) -> Scores:
        """Draw."""
        return self.random_ranks()
