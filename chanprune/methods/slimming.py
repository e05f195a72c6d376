"""Network slimming: L1 on batch-norm scales, then one global cut (Liu et al., ICCV 2017).

Training minimises the loss plus sparsity_weight * sum |scale| over all batch-norm scales (eq. 1) by
sub-gradient descent; sign(0) = 0. Ordinary weight decay acts on the scales as well, as in the
authors' code. Then the channels with the smallest |scale| over the whole network go (section 3).

The penalty moves an unused scale by sparsity_weight * S over the schedule, S = sum_t lr_t / (1 -
momentum). This distance, the travel, is 6.6 in the paper's recipe for VGG (1e-4 over 160 epochs)
from a start at 0.5. A short schedule needs a larger weight for the same travel, or no scale gets
near zero; but beyond a weight of about 0.01 the penalty outweighs the data's gradient, and every
scale vanishes.

Differs from the authors: exactly floor(ratio * N) channels go (their PyTorch port removes one more,
and all ties), and no channel group falls below a floor.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from chanprune.channels import ChannelGraph, Selection, scale_scores, taylor_scores
from chanprune.channels.operations import BATCH_NORMS, BatchNorm
from chanprune.errors import UserError
from chanprune.methods.base import PruneOptions, Setting, Step, TrainingImages, select
from chanprune.methods.multi_fidelity import Leveled

PAPER_TRAVEL = 6.6
LARGEST_DEFAULT_WEIGHT = 0.01
NEARLY_ZERO = 0.01
TAYLOR_IMAGES = 2000


def scaled_norms(model: nn.Module) -> list[BatchNorm]:
    """Find the batch norms that have scales.

    Raises:
        UserError: There is none, so that no channel has a scale to be chosen by.
    """
    norms = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.affine]
    if not norms:
        raise UserError(
            f"{type(model).__name__} has no batch norms, whose scales this method chooses channels "
            "by; take a network that has (for VGG model.norm=true), or method=none"
        )
    return norms


def penalty_weight(weight: float | None, travel: float | None, lr_travel: float) -> float:
    """Return the weight of a penalty on scales, given as such, as travel, or not at all."""
    if weight is not None:
        return weight
    if travel is not None:
        return travel / lr_travel
    return min(PAPER_TRAVEL / lr_travel, LARGEST_DEFAULT_WEIGHT)


class Slimming(Leveled):
    """Sparsity on every batch-norm scale while training; a global percentile afterwards.

    Args:
        sparsity_weight: Weight of the L1 penalty (lambda in eq. 1).
        travel: The same, as the distance that the penalty moves a scale over the whole schedule. If
            neither is given, the travel of the paper's VGG recipe, with a weight of at most 0.01.
        criterion: What channels are ranked by: "scale", the paper's, or "taylor" (`taylor_scores`).
        fidelity: See `Leveled`; beyond the paper.

    Raises:
        ValueError: Both are given.
    """

    prunes = True
    repeats = True

    after_training = (*Leveled.after_training, "criterion")

    def __init__(
        self,
        sparsity_weight: float | None = None,
        travel: float | None = None,
        criterion: Literal["scale", "taylor"] = "scale",
        **fidelity: Any,
    ):
        super().__init__(**fidelity)
        if sparsity_weight is not None and travel is not None:
            raise ValueError("give method.sparsity_weight or method.travel, not both")
        self._given_weight = sparsity_weight
        self._given_travel = travel
        self.sparsity_weight = 0.0
        self.scales: list[nn.Parameter] = []
        self.is_by_scale = criterion == "scale"
        self.importance: dict[str, Tensor] = {}
        if not self.is_by_scale:
            self.score = "Taylor importance"

    def before_training(
        self, model: nn.Module, graph: ChannelGraph, setting: Setting
    ) -> dict[str, float]:
        """Find the scales and fix the weight of the penalty for this schedule.

        Raises:
            ValueError: No channel that may go has a scale to be chosen by.
        """
        self.scales = [norm.weight for norm in scaled_norms(model)]
        scale_scores(model, graph, graph.prunable(setting.prune.coupled))
        given = (self._given_weight, self._given_travel)
        self.sparsity_weight = penalty_weight(*given, setting.lr_travel)
        travel = self.sparsity_weight * setting.lr_travel
        return {"sparsity_weight": self.sparsity_weight, "travel": travel}

    @torch.no_grad()
    def after_backward(self, step: Step) -> None:
        """Add the sub-gradient of the penalty (eq. 1) to the gradient of every scale."""
        for scale in self.scales:
            assert scale.grad is not None
            scale.grad.add_(scale.sign(), alpha=self.sparsity_weight)

    def after_epoch(self, step: Step) -> dict[str, float]:
        """Report the share of scales that are nearly zero (below 0.01) and their mean."""
        scales = torch.cat([scale.detach().abs() for scale in self.scales])
        return {
            "nearly_zero_scales": (scales < NEARLY_ZERO).float().mean().item(),
            "mean_scale": scales.mean().item(),
        }

    def before_pruning(
        self, model: nn.Module, graph: ChannelGraph, training_images: TrainingImages
    ) -> None:
        """Measure what channels matter for the loss, if they are ranked by that."""
        if not self.is_by_scale:
            groups = graph.groups.values()
            self.importance = taylor_scores(model, graph, groups, training_images(TAYLOR_IMAGES))

    def select_channels(
        self, model: nn.Module, graph: ChannelGraph, options: PruneOptions
    ) -> tuple[Selection, dict[str, Tensor]]:
        """Keep the channels with the largest |scale|, or importance, of the whole network."""
        groups = graph.prunable(options.coupled)
        if self.is_by_scale:
            scores = scale_scores(model, graph, groups)
        else:
            scores = {group.name: self.importance[group.name] for group in groups if group.norms}
        return select(scores, graph, options), scores
