"""Channel-prioritized CNNs (Chang et al., ICLR workshop 2018): scales in order, for any fidelity.

The scales of every batch norm start in decreasing order (eq. 1). While training, an L1 penalty
drives them to zero (eq. 2) and a second penalty punishes every scale that exceeds the one before it
(eq. 3), so that the first channels become the important ones. Channels whose scale is not above a
threshold go, in order; then the network is fine-tuned at several levels at once (eq. 4, see
multi_fidelity).

Differs from the paper: scales are kept from becoming negative. The order is one of signed scales
and the threshold one of absolute values, so that a tail below zero would be in order and yet
survive. With SGD the weights are given by their travel (see slimming); the paper's 1e-3 belongs to
Adam at a rate of 5e-4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.channels import ChannelGraph, Selection, scale_scores
from chanprune.components import Levels, NotNegative, method
from chanprune.methods.base import PruneOptions, Setting, Step, select
from chanprune.methods.multi_fidelity import Leveled
from chanprune.methods.scales import (
    advice_on_travel,
    penalty_weight,
    remarks_on_cut,
    scaled_norms,
    typical,
)

NEARLY_ZERO = 0.05


@method("prioritized")
class Prioritized(Leveled):
    """Decreasing scales, sparsity and order while training; levels while fine-tuning.

    Args:
        sparsity_weight: Weight of the L1 penalty (lambda_s in eq. 2).
        travel: The same as a distance; if neither is given, slimming's default.
        monotonicity_weight: Weight of the penalty on rising scales (lambda_m in eq. 3); None takes
            the sparsity weight, as the paper does.
        decreasing: Let the scales start in decreasing order (eq. 1); False leaves them as they are.
        levels: Shares of the channels that are fine-tuned together, in (0, 1].
        fidelity: See `Leveled`.
    """

    prunes = True
    repeats = True
    percentages = ("scales_below_0.05",)

    def __init__(
        self,
        sparsity_weight: NotNegative | None = None,
        travel: NotNegative | None = None,
        monotonicity_weight: NotNegative | None = None,
        decreasing: bool = True,
        levels: Levels = (0.25, 0.5, 0.75, 1.0),
        **fidelity: Any,
    ):
        super().__init__(levels, **fidelity)
        self._given = (sparsity_weight, travel)
        self._given_monotonicity = monotonicity_weight
        self._decreasing = decreasing
        self.sparsity_weight = 0.0
        self.monotonicity_weight = 0.0
        self.scales: list[nn.Parameter] = []

    @staticmethod
    def demands(method: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Refuse options that do not go together."""
        if method["sparsity_weight"] is not None and method["travel"] is not None:
            raise ValueError("give method.sparsity_weight or method.travel, not both")

    def before_training(
        self, model: nn.Module, graph: ChannelGraph, setting: Setting
    ) -> dict[str, float]:
        """Let the scales start in decreasing order, and fix the weights of the penalties."""
        norms = scaled_norms(model)
        self.scales = [norm.weight for norm in norms]
        with torch.no_grad():
            for norm in norms if self._decreasing else ():
                norm.weight.copy_(decreasing_scales(norm.num_features))
                norm.bias.zero_()
        self.sparsity_weight = penalty_weight(*self._given, setting.lr_travel)
        travel = self.sparsity_weight * setting.lr_travel
        start = typical(self.scales)
        self.advice = advice_on_travel(self.sparsity_weight, setting.lr_travel, start)
        given = self._given_monotonicity
        self.monotonicity_weight = self.sparsity_weight if given is None else given
        return {
            "sparsity_weight": self.sparsity_weight,
            "travel": travel,
            "monotonicity_weight": self.monotonicity_weight,
        }

    @torch.no_grad()
    def after_backward(self, step: Step) -> None:
        """Add the sub-gradients of both penalties (eq. 2 and 3) to the gradient of every scale."""
        for scale in self.scales:
            assert scale.grad is not None
            scale.grad.add_(scale.sign(), alpha=self.sparsity_weight)
            scale.grad.add_(monotonicity_gradient(scale), alpha=self.monotonicity_weight)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Keep the scales from becoming negative."""
        for scale in self.scales:
            scale.clamp_(min=0)

    @torch.no_grad()
    def after_epoch(self, step: Step) -> dict[str, float]:
        """Report the share of scales below 0.05, their order, and how much rises."""
        scales = torch.cat([scale.detach() for scale in self.scales])
        orders = [order_of(scale) for scale in self.scales]
        return {
            "scales_below_0.05": (scales < NEARLY_ZERO).float().mean().item(),
            "order": sum(orders) / len(orders),
            "violation": sum(monotonicity_penalty(scale).item() for scale in self.scales),
        }

    def select_channels(
        self, model: nn.Module, graph: ChannelGraph, options: PruneOptions
    ) -> tuple[Selection, dict[str, Tensor]]:
        """Keep the channels whose scale is above the threshold, in order (section 3)."""
        scores = scale_scores(model, graph, graph.prunable(options.coupled))
        selection = select(scores, graph, options)
        self.remarks = remarks_on_cut(scores, selection)
        return selection, scores


def decreasing_scales(number: int) -> Tensor:
    """Return (C,) 2 (1 - (k - 1) / C) for k = 1 ... C (eq. 1)."""
    return 2 * (1 - torch.arange(number) / number)


def monotonicity_penalty(scale: Tensor) -> Tensor:
    """Sum what each scale (C,) exceeds the one before it by (eq. 3)."""
    return (scale[1:] - scale[:-1]).relu().sum()


def monotonicity_gradient(scale: Tensor) -> Tensor:
    """Return the sub-gradient (C,) of `monotonicity_penalty`; inside a rise it cancels."""
    rises = (scale[1:] > scale[:-1]).to(scale.dtype)
    gradient = torch.zeros_like(scale)
    gradient[1:] += rises
    gradient[:-1] -= rises
    return gradient


def order_of(scale: Tensor) -> float:
    """Return Kendall's tau-b between channel index and scale (C,): -1 in order, 0 without order.

    Scales below 0.05 count as equal.
    """
    values = scale.detach().double().cpu()
    values = torch.where(values.abs() < NEARLY_ZERO, 0.0, values)
    if len(values.unique()) < 2:
        return 0.0
    from scipy.stats import kendalltau

    return float(kendalltau(range(len(values)), values.numpy()).statistic)
