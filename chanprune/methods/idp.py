"""Incomplete dot products (McDanel et al. 2017): fixed, falling coefficients on the channels.

Every channel is multiplied by a coefficient that is not trained and falls from the first channel to
the last. The first channels learn to carry the most, so that the last can be left out when the
network runs. Nothing is pruned. The network is trained whole, and then, unless the only level is 1,
fine-tuned at several levels at once (see multi_fidelity), as the later authors of the prioritized
paper train it.

A coefficient multiplies what a channel emits, which equals multiplying what its readers take in, as
ReLU passes positive factors on. It stands behind the batch norm where there is one, which would
normalise it away, else in the filter and its bias.

Differs from the authors: they start from weights of ImageNet. As we start at random, the weights
are divided by the root mean square of the coefficients first, or the signal of a deep network
without batch norms fades.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from chanprune.channels import ChannelGraph, fidelity_groups
from chanprune.components import Levels, method
from chanprune.methods.base import Setting
from chanprune.methods.multi_fidelity import Coefficients, Leveled
from chanprune.processes.errors import UserError

Profile = Literal["all_one", "linear", "harmonic", "half_exponential"]


@method("idp")
class IncompleteDotProducts(Leveled):
    """Train with falling coefficients; then at several levels.

    Args:
        profile: How the coefficients fall, see `coefficients_of`.
        levels: Shares of the channels that are fine-tuned together, in (0, 1]; with the level 1
            alone there is no fine-tuning.
        fidelity: See `Leveled`.
    """

    repeats = True

    @staticmethod
    def demands(method: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Refuse a criterion, as nothing is pruned."""
        if config["criterion"]["name"] != "own":
            raise ValueError(
                "method=idp runs with the first channels and prunes none; leave out criterion="
            )

    def __init__(
        self,
        profile: Profile = "linear",
        levels: Levels = (0.25, 0.5, 0.75, 1.0),
        **fidelity: Any,
    ):
        super().__init__(levels, **fidelity)
        self.profile: Profile = profile

    def before_training(
        self, model: nn.Module, graph: ChannelGraph, setting: Setting
    ) -> dict[str, float]:
        """Lay the coefficients on the channels, and make up for their size."""
        tensors = dict(model.named_parameters())
        factors = {n: f.to(tensors[n]) for n, f in _factors(graph, self.profile).items()}
        self.coefficients = Coefficients(factors)
        with torch.no_grad():
            for name, factor in factors.items():
                tensors[name].div_(factor.square().mean().sqrt())
        return {}

    def loss(
        self, model: nn.Module, images: Tensor, labels: Tensor, label_smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of the whole network with its coefficients, and the logits."""
        logits = functional_call(model, self.coefficients.applied(model), (images,))
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing), logits

    def product(self, model: nn.Module) -> nn.Module:
        """Return a copy with the coefficients multiplied into its tensors."""
        return self.coefficients.folded(model)


def coefficients_of(profile: Profile, number: int) -> Tensor:
    """Return the coefficients (C,) of C = `number` channels.

    For channel i = 1 ... C: "all_one" 1; "linear" 1 - (i - 1) / C; "harmonic" 1 / i;
    "half_exponential" 1 in the first half, then exp(-(i - C / 2 - 1)).
    """
    i = torch.arange(1, number + 1, dtype=torch.float64)
    if profile == "all_one":
        return torch.ones_like(i)
    if profile == "linear":
        return 1 - (i - 1) / number
    if profile == "harmonic":
        return 1 / i
    return (number // 2 + 1 - i).clamp(max=0).exp()


def _factors(graph: ChannelGraph, profile: Profile) -> dict[str, Tensor]:
    """Lay the coefficients on tensors: name -> factor that broadcasts against it.

    Raises:
        UserError: No channel can carry one.
    """
    by_channel = np.ones(graph.num_channels)
    carriers: list[str] = []
    for name in fidelity_groups(graph):
        group = graph.groups[name]
        falling = coefficients_of(profile, group.size // group.blocks).repeat(group.blocks)
        by_channel[group.start : group.start + group.size] = falling.numpy()
        carriers += group.norms or group.producers
    factors = {}
    for carrier in carriers:
        layer = graph.layers[carrier]
        factor = torch.from_numpy(by_channel[layer.outputs]).float()
        for parameter in {"weight", "bias"}.intersection(layer.parameters):
            extra = 3 if parameter == "weight" and layer.kind == "conv" else 0
            factors[f"{carrier}.{parameter}"] = factor.view(-1, *[1] * extra)
    if not factors:
        raise UserError(
            "incomplete dot products need channels that may be left out, and this network has none "
            "(all are behind residual sums or concatenations)"
        )
    return factors
