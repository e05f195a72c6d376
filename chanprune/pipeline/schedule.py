"""Learning-rate schedules as pure functions of progress, right for every number of epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step of a stage.

    Attributes:
        kind: "step" multiplies by `lr_factor` at each milestone; "cosine" falls to zero.
        lr: Learning rate at the start.
        num_steps: Steps of the whole stage.
        milestones: Shares of the stage in (0, 1) (kind "step").
        lr_factor: What the rate is multiplied by at a milestone (kind "step").
        warmup: Share of the stage over which the rate rises linearly to `lr`.
    """

    kind: Literal["step", "cosine"]
    lr: float
    num_steps: int
    milestones: Sequence[float] = (0.5, 0.75)
    lr_factor: float = 0.1
    warmup: float = 0.0

    def at(self, step: int) -> float:
        """Return the learning rate of step 0 .. num_steps - 1."""
        progress = step / self.num_steps
        if progress < self.warmup:
            return self.lr * (step + 1) / (math.ceil(self.warmup * self.num_steps) + 1)
        if self.kind == "cosine":
            rest = (progress - self.warmup) / (1 - self.warmup)
            return self.lr * 0.5 * (1 + math.cos(math.pi * rest))
        passed = sum(step >= round(share * self.num_steps) for share in self.milestones)
        return self.lr * self.lr_factor**passed

    def travel(self, momentum: float) -> float:
        """Return how far a constant unit gradient moves a parameter: sum lr_t / (1 - momentum)."""
        return math.fsum(self.at(step) for step in range(self.num_steps)) / (1 - momentum)
