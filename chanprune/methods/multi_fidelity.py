"""Multi-fidelity fine-tuning (Chang et al. 2018, eq. 4): one network, trained at several levels.

The loss is the sum of the cross-entropies of all levels. Batch norms are frozen, scales, shifts and
statistics alike; only convolutions and linear layers learn. Each level computes with views of the
first channels, so that a step costs sum p^2 of a whole step, not one whole step for each level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from chanprune.channels import ChannelGraph, narrow, prefix_plan
from chanprune.channels.operations import BATCH_NORMS
from chanprune.methods.base import Method, Step


class MultiFidelity(Method):
    """Sum the losses of all levels, with frozen batch norms.

    Args:
        graph: Channel graph of the network that is fine-tuned.
        levels: Shares of the channels, in (0, 1].

    Raises:
        ValueError: A level is out of range, or the network has depthwise convolutions, whose groups
            would have to change from level to level.
    """

    def __init__(self, graph: ChannelGraph, levels: Sequence[float]):
        depthwise = [layer.name for layer in graph.layers.values() if layer.depthwise]
        if depthwise:
            raise ValueError(f"{depthwise[0]} is depthwise, which fidelity levels do not train")
        self.graph = graph
        self.levels = tuple(levels)
        self.plans = {level: prefix_plan(graph, level) for level in levels}
        self.norms: list[nn.Module] = []

    def before_training(self, model: nn.Module, lr_travel: float) -> dict[str, float]:
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
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        total = torch.zeros((), device=images.device)
        logits = images
        for level in sorted(self.levels):
            small = narrow(state, self.graph, self.plans[level])
            logits = functional_call(model, small, (images,))
            total = total + F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        return total, logits

    def after_backward(self, step: Step) -> None:
        """Freeze the scales and shifts."""
        for norm in self.norms:
            for parameter in norm.parameters():
                parameter.grad = None
