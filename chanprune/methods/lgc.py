"""Learned group convolution (Huang et al., CVPR 2018): each group learns which inputs it reads.

The filters of a dense 1x1 convolution are in G groups; filter o belongs to group o mod G. Training
begins with all inputs. In C - 1 steps, spread over its first half, every group drops the inputs
that its filters weigh least, until it reads I // C of I (section 3.2; C is the condensation). The
other half of the training goes on with what is left. Then the network is converted: gather, grouped
convolution, shuffle compute the same (section 3.3), and the classifier may be cut to the half of
its features with the largest weights, as the authors' code does, without training after it.

Differs from the authors: where C does not divide I, the remainder is spread over the drops; a drop
that a short schedule would skip is made up for, at the latest at the last step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from chanprune.channels import ChannelGraph
from chanprune.components import NotNegative, method
from chanprune.methods.base import Conversion, Method, Setting, Step
from chanprune.processes.errors import UserError
from chanprune.show.charts import Chart, sorted_profiles

SMALLEST_SQUARE = 1e-6
READERS = "groups that read an input"


@runtime_checkable
class Condensable(Protocol):
    """A network whose 1x1 convolutions can be put in groups (see `models.condensenet`)."""

    groups: int
    condensation: int

    def learned_convolutions(self) -> dict[str, nn.Conv2d]:
        """Return the convolutions by name; none once they are in groups."""

    def converted_state(
        self, inputs: dict[str, Tensor], features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the tensors of the converted network."""


@method("lgc")
class LearnedGroups(Method):
    """Drop inputs of each group while training; convert the network at the end.

    Args:
        group_lasso: Weight of the group lasso (section 3.2), which acts until the last drop.
        cut_classifier: Whether the classifier keeps only half of its features.
    """

    prunes = True
    converts = True
    percentages = ("dropped_weights",)
    after_training = ("cut_classifier",)

    def __init__(self, group_lasso: NotNegative = 0.0, cut_classifier: bool = True):
        self.group_lasso = group_lasso
        self.cut_classifier = cut_classifier
        self.stage = 0
        self.weights: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        self._dropped: dict[str, Tensor] = {}

    def before_training(
        self, model: nn.Module, graph: ChannelGraph, setting: Setting
    ) -> dict[str, float]:
        """Find the convolutions; every group begins with all inputs.

        Raises:
            UserError: The network has none.
        """
        found = model.learned_convolutions() if isinstance(model, Condensable) else {}
        if not found:
            raise UserError(
                "method=lgc learns the groups of CondenseNet's 1x1 convolutions, and this network "
                "has none; take model=condensenet50 to condensenet182 with model.converted=false"
            )
        assert isinstance(model, Condensable)
        self.groups, self.condensation = model.groups, model.condensation
        self.weights = {name: conv.weight for name, conv in found.items()}
        self._keep(
            {
                name: torch.ones(self.groups, weight.shape[1], dtype=torch.bool).to(weight.device)
                for name, weight in self.weights.items()
            }
        )
        self._last_step = setting.num_steps - 1
        self.advice = self._advice(setting.num_steps)
        return {"group_lasso": self.group_lasso, "drops": self.condensation - 1}

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Drop inputs when a stage begins."""
        stage = self._stage_at(step)
        if stage > self.stage:
            self.stage = stage
            self._keep(
                {
                    name: most_important(weight, self.kept[name], self._width(weight.shape[1]))
                    for name, weight in self.weights.items()
                }
            )
            self._zero_dropped()

    @torch.no_grad()
    def after_backward(self, step: Step) -> None:
        """Add the gradient of the group lasso; dropped weights have none."""
        for name, weight in self.weights.items():
            assert weight.grad is not None
            if self.group_lasso and self.stage < self.condensation - 1:
                weight.grad.add_(group_lasso_gradient(weight, self.groups), alpha=self.group_lasso)
            weight.grad.masked_fill_(self._dropped[name], 0)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Undo what momentum did to dropped weights."""
        self._zero_dropped()

    def after_epoch(self, step: Step) -> dict[str, float]:
        """Report how many drops there were, and the share of the weights that is gone."""
        dropped = sum(int(mask.sum()) for mask in self._dropped.values())
        total = sum(mask.numel() for mask in self._dropped.values())
        return {"drops": self.stage, "dropped_weights": dropped / total}

    def conversions(self, model: nn.Module) -> list[Conversion]:
        """Put the convolutions in groups; then cut the classifier, if that is asked for."""
        assert isinstance(model, Condensable)
        inputs = {
            name: torch.stack([row.nonzero()[:, 0] for row in kept])
            for name, kept in self.kept.items()
        }
        options = {"converted": True, "half_classifier": False}
        converted = Conversion("converted", options, model.converted_state(inputs), exact=True)
        if not self.cut_classifier:
            return [converted]
        weight = converted.state["classifier.weight"].abs().sum(0)
        best = weight.argsort(descending=True, stable=True)[: len(weight) // 2]
        state = model.converted_state(inputs, best.sort().values)
        return [
            converted,
            Conversion("converted, classifier cut", {**options, "half_classifier": True}, state),
        ]

    def charts(
        self, model: nn.Module, graph: ChannelGraph, metrics: Sequence[Mapping[str, Any]]
    ) -> list[Chart]:
        """Show by how many groups each input is read."""
        return [sorted_profiles(READERS, {name: kept.sum(0) for name, kept in self.kept.items()})]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the stage and which inputs each group keeps."""
        kept = {f"kept.{name}": kept for name, kept in self.kept.items()}
        return {"stage": torch.tensor(self.stage), **kept}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up where `state_dict` left off."""
        self.stage = int(state["stage"])
        self._keep(
            {name: state[f"kept.{name}"].to(weight.device) for name, weight in self.weights.items()}
        )

    def _stage_at(self, step: Step) -> int:
        """Return how many drops there must have been."""
        last = self.condensation - 1
        if step.index >= self._last_step:
            return last
        return min(last, math.floor(2 * last * step.progress + 1e-9))

    def _width(self, inputs: int) -> int:
        """Return how many inputs each group keeps in this stage."""
        goes = inputs - inputs // self.condensation
        return inputs - goes * self.stage // (self.condensation - 1)

    def _keep(self, kept: dict[str, Tensor]) -> None:
        self.kept = kept
        self._dropped = {
            name: ~_by_filter(kept[name], weight) for name, weight in self.weights.items()
        }

    def _zero_dropped(self) -> None:
        for name, weight in self.weights.items():
            weight.masked_fill_(self._dropped[name], 0)

    def _advice(self, num_steps: int) -> str:
        """Say so if the schedule is too short for the drops to come one by one."""
        last = self.condensation - 1
        begins = [math.ceil(drop * num_steps / (2 * last)) for drop in range(1, last + 1)]
        if len({min(begin, num_steps - 1) for begin in begins}) == last:
            return ""
        return (
            f"{num_steps} steps are too few for {last} drops one by one: several fall on the same "
            f"step; {2 * last} steps or more (train.epochs) would do"
        )


def most_important(weight: Tensor, kept: Tensor, number: int) -> Tensor:
    """Return which inputs stay when each group keeps those with the largest sum of |weight|.

    Args:
        weight: (O, I, 1, 1), filter o in group o mod G.
        kept: (G, I) True where the input is not dropped yet.
        number: How many inputs each group keeps; equal ones go from the last to the first.

    Returns:
        (G, I) True where the input stays.
    """
    importance = _in_groups(weight, len(kept)).abs().sum(0).masked_fill(~kept, -1)
    order = importance.argsort(descending=True, stable=True)
    return torch.zeros_like(kept).scatter_(1, order[:, :number], True)


def group_lasso_gradient(weight: Tensor, groups: int) -> Tensor:
    """Return the gradient (O, I, 1, 1) of the group lasso.

    That is the sum over groups and inputs of sqrt(max(1e-6, sum of squares over the group's
    filters)), as in the authors' code.
    """
    squares = _in_groups(weight, groups).square().sum(0)
    factors = (squares > SMALLEST_SQUARE) / squares.clamp(min=SMALLEST_SQUARE).sqrt()
    return weight * _by_filter(factors, weight)


def _in_groups(weight: Tensor, groups: int) -> Tensor:
    """Look at weights (O, I, 1, 1) as (O / G, G, I)."""
    return weight[:, :, 0, 0].view(-1, groups, weight.shape[1])


def _by_filter(values: Tensor, weight: Tensor) -> Tensor:
    """Repeat the values (G, I) of groups for their filters, as (O, I, 1, 1)."""
    return values.repeat(len(weight) // len(values), 1)[:, :, None, None]
