"""CUCB: dynamic channel execution with a bandit (Spasov and Lio, 2019).

Every channel is an arm of a combinatorial bandit. At a step the channels with the largest upper
confidence bound

    mean saliency + exploration * sqrt(3 ln t / (2 T))

are executed and trained, T being how often a channel was, and t the number of steps; the saliency
of each is observed. First a phase of random channels sees every channel. At the end the channels
with the largest mean, without the bonus, stay.

The saliency is the first-order Taylor expansion of the change of the loss when the channel's output
h goes, |mean of h * dL/dh|. Behind a batch norm with scale g and shift b it equals
|g * dL/dg + b * dL/db| / (height * width), and ReLU and max-pooling pass the same number on: the
gradients that training computes anyway say it all. A layer without a batch norm gives the same from
its filters, sum w * dL/dw. (Molchanov et al., 2016, take the absolute value for each image first,
which would need the feature maps.)

Differs from the poster, which leaves it open: saliencies are divided by the layer's norm over its
active channels, as Molchanov et al. do, since without it layers cannot be compared; the random
phase takes the channels seen least, so that none is left out; and every group keeps at least half
of what a uniform cut would leave it (`floor`), or a layer could be emptied by its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chanprune.channels import ChannelGraph
from chanprune.components import CountOrZero, NotNegative, method
from chanprune.methods.base import Setting, Step
from chanprune.methods.dynamic import DynamicChannels, Scores, ranks
from chanprune.processes.errors import UserError
from chanprune.show.charts import Chart, sorted_profiles

SHORT_RUN = 20_000
UNSEEN = 1e6

Normalisation = Literal["l2", "max", "rms", "none"]


@method("cucb")
class Cucb(DynamicChannels):
    """Train the channels with the largest upper confidence bounds.

    Args:
        exploration: Factor on the bonus; 1 on the poster. Null scales it to the length of the run:
            the last bonus of an average channel is then a tenth of a typical saliency.
        explore: Steps of the random phase; null: 100, or 20 / active share if that is more.
        scope: Whether channels compete in the whole network ("global") or in their group ("layer").
        normalise: Norm that the saliencies of a group are divided by, see `normalised`.
        dynamic: See `DynamicChannels`.
    """

    score = "mean saliency"

    def __init__(
        self,
        exploration: NotNegative | None = 1.0,
        explore: CountOrZero | None = None,
        scope: Literal["global", "layer"] = "global",
        normalise: Normalisation = "l2",
        **dynamic: Any,
    ):
        super().__init__(**dynamic)
        self.exploration = exploration
        self.explore = explore
        self.scope = scope
        self.normalise = normalise
        self.factor = exploration

    def before_training(
        self, model: nn.Module, graph: ChannelGraph, setting: Setting
    ) -> dict[str, float]:
        """Find where saliencies are read, and fix the random phase for this schedule."""
        facts = super().before_training(model, graph, setting)
        groups = [graph.groups[name] for name in self.sizes]
        places = {place for group in groups for place in group.norms or group.producers}
        self.places = [(model.get_submodule(n), graph.layers[n].outputs) for n in sorted(places)]
        self.group_of = torch.full((graph.num_channels,), -1)
        for number, group in enumerate(groups):
            self.group_of[group.start : group.start + group.size] = number
        share = facts["active_channels"] / facts["of"]
        self.exploring = max(100, math.ceil(20 / share)) if self.explore is None else self.explore
        self.num_steps = setting.num_steps
        if self.exploring >= self.num_steps:
            raise UserError(
                f"method.explore={self.exploring}: the random phase must be shorter than the "
                f"training, which has {self.num_steps} steps; train longer or explore less"
            )
        if self.exploration == 1 and self.num_steps < SHORT_RUN:
            self.advice = (
                f"method.exploration=1 suits runs of 125,000 steps; in {self.num_steps} steps the "
                "choice will not settle (null scales it to the run)"
            )
        self.arms = Arms(graph.num_channels, self.generator)
        return {**facts, "random_steps": self.exploring}

    def scores(self, step: Step) -> Scores:
        """Return the upper confidence bounds; in the random phase, what was seen least first."""
        if step.index < self.exploring:
            random, seen = self.random_ranks(), self.by_group(self.arms.counts)
            return ranks({name: random[name] - seen[name] for name in seen})
        if self.factor is None:
            self.factor = self._scaled_exploration()
        return self._competing(self.arms.upper_bounds(step.index + 1, self.factor))

    def final_scores(self) -> Scores:
        """Return the means, without the bonus."""
        return self._competing(self.arms.means)

    def charts(
        self, model: nn.Module, graph: ChannelGraph, metrics: Sequence[Mapping[str, Any]]
    ) -> list[Chart]:
        """Show how often each channel was active as well."""
        times = sorted_profiles("times active", self.by_group(self.arms.counts))
        return [times, *super().charts(model, graph, metrics)]

    def _competing(self, scores: Tensor) -> Scores:
        """Let channels compete in the whole network, or within their group."""
        groups = self.by_group(scores)
        return ranks(groups) if self.scope == "layer" else groups

    def _scaled_exploration(self) -> float:
        """Return the factor that makes the last bonus a tenth of a typical mean."""
        is_arm = self.group_of >= 0
        typical = self.arms.means[is_arm].median().item()
        times_active = self.arms.counts[is_arm].mean() / self.exploring * self.num_steps
        return min(1.0, 0.1 * typical / bonus(times_active, self.num_steps).item())

    @torch.no_grad()
    def after_backward(self, step: Step) -> None:
        """Observe the saliencies of the active channels."""
        assert self.cut is not None
        total = torch.zeros(self.graph.num_channels, dtype=torch.float64)
        for module, outputs in self.places:
            rows = torch.from_numpy(outputs[self.cut.keep[outputs]])
            total.index_add_(0, rows, self._saliency(module).double().cpu())
        active = torch.from_numpy(self.cut.keep) & (self.group_of >= 0)
        observed = normalised(total[active], self.group_of[active], self.normalise)
        self.arms.observe(active, observed)

    def after_epoch(self, step: Step) -> dict[str, float]:
        """Report the churn and the factor on the bonus."""
        return {**super().after_epoch(step), "exploration": self.factor or 0.0}

    def _saliency(self, module: nn.Module) -> Tensor:
        """Return the saliencies (C,) of what a layer emits, up to a factor of the layer."""
        expansion = torch.zeros(())
        for parameter in module.parameters(recurse=False):
            assert parameter.grad is not None
            terms = parameter * parameter.grad
            expansion = expansion + terms.reshape(len(terms), -1).sum(1)
        return expansion.abs()

    def state_dict(self) -> dict[str, Tensor]:
        """Return counts, means and the factor on the bonus as well."""
        state = super().state_dict()
        state |= {f"arms.{key}": value for key, value in vars(self.arms).items()}
        if self.factor is not None:
            state["factor"] = torch.tensor(self.factor, dtype=torch.float64)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up where `state_dict` left off."""
        super().load_state_dict(state)
        for key in vars(self.arms):
            setattr(self.arms, key, state[f"arms.{key}"])
        if "factor" in state:
            self.factor = state["factor"].item()


class Arms:
    """The arms of a bandit: how often each was seen, and what it gave on average.

    Args:
        number: Number of arms.
        generator: Decides, once, the order of arms that are equal.
    """

    def __init__(self, number: int, generator: torch.Generator):
        self.means = torch.zeros(number, dtype=torch.float64)
        self.counts = torch.zeros(number, dtype=torch.float64)
        self.ties = torch.rand(number, generator=generator, dtype=torch.float64)

    def upper_bounds(self, step: int, exploration: float) -> Tensor:
        """Return (C,) mean + exploration * sqrt(3 ln step / (2 count)); unseen arms come first."""
        bounds = self.means + exploration * bonus(self.counts, step) + 1e-12 * self.ties
        return torch.where(self.counts > 0, bounds, UNSEEN + self.ties)

    def observe(self, active: Tensor, values: Tensor) -> None:
        """Take in the values of the active arms.

        Args:
            active: (C,) which arms were active.
            values: (number of active arms,) what each gave.
        """
        counts = self.counts[active] + 1
        means = self.means[active]
        self.counts[active] = counts
        self.means[active] = means + 1 / counts * (values - means)


def bonus(counts: Tensor, step: int) -> Tensor:
    """Return sqrt(3 ln step / (2 count)) for each count, infinite for none."""
    return (3 * math.log(step) / (2 * counts)).sqrt()


def normalised(saliencies: Tensor, groups: Tensor, by: Normalisation) -> Tensor:
    """Divide saliencies (C,) by a norm over their group; a group of zeros stays zero.

    Args:
        saliencies: Of the active channels, not negative.
        groups: (C,) number of each channel's group.
        by: "l2": the Euclidean norm; "max": the largest; "rms": four times the root mean square,
            cut at 1; "none": nothing.
    """
    if by == "none" or not len(groups):
        return saliencies
    empty = torch.zeros(int(groups.max()) + 1, dtype=saliencies.dtype)
    if by == "max":
        norm = empty.scatter_reduce(0, groups, saliencies, "amax")
    else:
        norm = empty.index_add(0, groups, saliencies.square()).sqrt()
    if by == "rms":
        norm = (
            4 * norm / empty.index_add(0, groups, torch.ones_like(saliencies)).clamp(min=1).sqrt()
        )
    shares = saliencies / norm[groups].clamp(min=torch.finfo(saliencies.dtype).tiny)
    return shares.clamp(max=1)
