"""Multi-fidelity fine-tuning (Chang et al. 2018, eq. 4): one network, trained at several levels.

The loss is the sum of the cross-entropies of all levels. Batch norms are frozen, scales, shifts and
statistics alike; only convolutions and linear layers learn. Each level computes with views of the
first channels, so that a step costs sum p^2 of a whole step, not one whole step for each level.

Beyond the paper, the sandwich rule with in-place distillation (Yu and Huang 2019): every step takes
the lowest level, the highest, and two between them at random; the highest learns from the labels,
the others from what it says.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from chanprune.channels import ChannelGraph, Fidelity, executed_macs, narrow, prefix_plan
from chanprune.channels.operations import BATCH_NORMS
from chanprune.components import CountOrZero, Levels
from chanprune.methods.base import Method, Setting, Step

BETWEEN = 2


class Coefficients:
    """Fixed factors on some of a network's tensors, kept apart from what is trained.

    Args:
        factors: Parameter name -> factor that broadcasts against it.
    """

    def __init__(self, factors: Mapping[str, Tensor]):
        self.factors = dict(factors)

    def applied(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the network's parameters and buffers by name, with the factors on them."""
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, factor in self.factors.items():
            state[name] = state[name] * factor.to(state[name])
        return state

    @torch.no_grad()
    def folded(self, model: nn.Module) -> nn.Module:
        """Return a copy of the network with the factors multiplied into its tensors."""
        copied = copy.deepcopy(model)
        for name, parameter in copied.named_parameters():
            if name in self.factors:
                parameter.mul_(self.factors[name].to(parameter))
        return copied


class Leveled(Method):
    """A method whose product may run at several fidelity levels.

    Args:
        levels: Shares of the channels that are fine-tuned together, in (0, 1]; 1 alone is ordinary
            fine-tuning.
        sandwich: Each step trains the lowest level, the highest and two random ones, all but the
            highest distilled from it.
        level_statistics: Training images for each level's own batch-norm statistics; 0: shared.
    """

    after_training: tuple[str, ...] = ("levels", "sandwich", "level_statistics")

    def __init__(
        self,
        levels: Levels = (1.0,),
        sandwich: bool = False,
        level_statistics: CountOrZero = 0,
    ):
        self.levels = tuple(levels)
        self.sandwich = sandwich
        self.level_statistics = level_statistics
        self.coefficients = Coefficients({})

    @staticmethod
    def demands(method: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Refuse options that do not go together."""
        levels = method["levels"]
        if method["sandwich"] and len(levels) < 2:
            raise ValueError(
                f"method.sandwich=true needs several levels, not method.levels={levels}"
            )

    def finetune_hooks(self, graph: ChannelGraph) -> Method | None:
        """Fine-tune all levels at once, if there are several."""
        if self.levels == (1.0,):
            return super().finetune_hooks(graph)
        return MultiFidelity(
            graph, self.levels, sandwich=self.sandwich, coefficients=self.coefficients
        )


class MultiFidelity(Method):
    """Sum the losses of all levels, with frozen batch norms.

    Args:
        graph: Channel graph of the network that is fine-tuned.
        levels: Shares of the channels, in (0, 1].
        sandwich: Replace the levels between the lowest and the highest by random ones, and let all
            but the highest learn from its output.
        coefficients: Fixed factors on the network's tensors.

    Raises:
        ValueError: A level is out of range, or the network has depthwise convolutions, whose groups
            would have to change from level to level, or cannot run part of its channels in place.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        levels: Sequence[float],
        *,
        sandwich: bool = False,
        coefficients: Coefficients | None = None,
    ):
        depthwise = [layer.name for layer in graph.layers.values() if layer.depthwise]
        if depthwise:
            raise ValueError(f"{depthwise[0]} is depthwise, which fidelity levels do not train")
        self.graph = graph
        self.levels = tuple(sorted(levels))
        self.cuts = {level: graph.cut(prefix_plan(graph, level)) for level in levels}
        for cut in self.cuts.values():
            cut.refuse_other_calls()
        self.sandwich = sandwich
        self.repeats = not sandwich
        self.coefficients = coefficients or Coefficients({})
        self.norms: list[nn.Module] = []

    def before_training(
        self, model: nn.Module, graph: ChannelGraph, setting: Setting
    ) -> dict[str, float]:
        """Find the batch norms that are to be frozen."""
        self.norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
        return {}

    def before_step(self, step: Step) -> None:
        """Freeze the statistics."""
        for norm in self.norms:
            norm.eval()

    def loss(
        self, model: nn.Module, images: Tensor, labels: Tensor, label_smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of the levels' losses (eq. 4) and the logits of the highest level."""
        state = self.coefficients.applied(model)
        self._executed = 0

        def logits_at(level: float) -> Tensor:
            cut = self.cuts.get(level) or self.graph.cut(prefix_plan(self.graph, level))
            narrowed = narrow(state, cut)
            self._executed += executed_macs(narrowed, self.graph)
            logits: Tensor = functional_call(model, narrowed, (images,))
            return logits

        *lower, highest = self._sampled() if self.sandwich else self.levels
        logits = logits_at(highest)
        total = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        targets = logits.detach().softmax(1) if self.sandwich else labels
        smoothing = 0.0 if self.sandwich else label_smoothing
        for level in lower:
            total = total + F.cross_entropy(logits_at(level), targets, label_smoothing=smoothing)
        return total, logits

    def macs_per_image(self, macs: int) -> int:
        """Return what all levels of the last step took together."""
        return self._executed

    def _sampled(self) -> list[float]:
        """Draw the levels of a step by the sandwich rule."""
        lowest, highest = self.levels[0], self.levels[-1]
        between = torch.empty(BETWEEN).uniform_(lowest, highest).tolist()
        return [lowest, *between, highest]

    def after_backward(self, step: Step) -> None:
        """Freeze the scales and shifts."""
        for norm in self.norms:
            for parameter in norm.parameters():
                parameter.grad = None

    def product(self, model: nn.Module) -> nn.Module:
        """Return the network, with the coefficients multiplied into its tensors."""
        return self.coefficients.folded(model) if self.coefficients.factors else model

    def validated(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the network at every level; 1 is logged without a name."""
        fidelity = Fidelity(self.product(model), self.graph)
        return {
            "" if level == 1 else f"_at_{level:g}": fidelity.extract(level) for level in self.levels
        }
