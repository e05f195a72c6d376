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

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chanprune.channels import ChannelGraph, Selection, scale_scores, taylor_scores
from chanprune.components import Count, NotNegative, method
from chanprune.methods.base import PruneOptions, Setting, Step, TrainingImages, select
from chanprune.methods.multi_fidelity import Leveled
from chanprune.methods.scales import (
    NEARLY_ZERO,
    advice_on_travel,
    penalty_weight,
    remarks_on_cut,
    scaled_norms,
    typical,
)

TAYLOR_IMAGES = 2000


@method("slimming")
class Slimming(Leveled):
    """Sparsity on every batch-norm scale while training; a global percentile afterwards.

    Args:
        sparsity_weight: Weight of the L1 penalty (lambda in eq. 1).
        travel: The same, as the distance that the penalty moves a scale over the whole schedule. If
            neither is given, the travel of the paper's VGG recipe in proportion to where scales
            start, with a weight of at most 0.01.
        criterion: What channels are ranked by: "scale", the paper's, or "taylor" (`taylor_scores`).
        passes: Rounds of train, prune, finetune.
        fidelity: See `Leveled`; beyond the paper.
    """

    prunes = True
    repeats = True
    percentages = ("nearly_zero_scales",)

    after_training = (*Leveled.after_training, "criterion")

    def __init__(
        self,
        sparsity_weight: NotNegative | None = None,
        travel: NotNegative | None = None,
        criterion: Literal["scale", "taylor"] = "scale",
        passes: Count = 1,
        **fidelity: Any,
    ):
        super().__init__(**fidelity)
        self.passes = passes
        self._given_weight = sparsity_weight
        self._given_travel = travel
        self.sparsity_weight = 0.0
        self.scales: list[nn.Parameter] = []
        self.is_by_scale = criterion == "scale"
        self.importance: dict[str, Tensor] = {}
        if not self.is_by_scale:
            self.score = "Taylor importance"

    @staticmethod
    def demands(method: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Refuse options that do not go together."""
        levels, is_ordered = method["levels"], config["prune"]["order"]
        if method["sparsity_weight"] is not None and method["travel"] is not None:
            raise ValueError("give method.sparsity_weight or method.travel, not both")
        if levels != [1.0] and not is_ordered:
            raise ValueError(
                f"method.levels={levels} with method=slimming needs prune.order=true, so that the "
                "first channels are the important ones"
            )
        targets = [value for key, value in config["prune"].items() if key.startswith("target_")]
        if method["passes"] > 1 and any(targets):
            raise ValueError("a budget (prune.target_*) goes with method.passes=1 only")
        if is_ordered and method["passes"] > 1:
            raise ValueError("prune.order=true goes with method.passes=1 only")

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
        start = typical(self.scales)
        self.sparsity_weight = penalty_weight(*given, setting.lr_travel, start)
        travel = self.sparsity_weight * setting.lr_travel
        self.advice = advice_on_travel(self.sparsity_weight, setting.lr_travel, start)
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
        if not self.is_by_scale:
            scores = {group.name: self.importance[group.name] for group in groups if group.norms}
            return select(scores, graph, options), scores
        scores = scale_scores(model, graph, groups)
        selection = select(scores, graph, options)
        self.remarks = remarks_on_cut(scores, selection)
        return selection, scores
