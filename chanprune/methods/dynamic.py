"""Dynamic channel execution: every step runs and trains a part of the channels.

The base of CUCB and of the random choices it is compared with. A subclass says how the channels are
ranked, at a step and at the end; here the ranking becomes a plan of exactly the asked size. The
channels that are not active keep every bit (see `Bank`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.channels import ChannelGraph, Cut, Plan, Selection
from chanprune.components import CountOrZero, ShareOrAll
from chanprune.methods.base import Method, PruneOptions, Setting, Step, select
from chanprune.processes.errors import UserError
from chanprune.show.charts import Chart, SharesByEpoch, of_kind

Scores = dict[str, Tensor]


class DynamicChannels(Method):
    """Choose channels anew while training; keep the best at the end.

    As many channels are active as prune.ratio leaves: 1 - ratio of those that may go.

    Args:
        every: Steps between two choices; 0 for an epoch.
        freeze: Share of the stage after which the choice stays.
        floor: Every group keeps at least this share of what a uniform cut would leave it.
    """

    prunes = True
    trains_for_pruning = True
    score = "random score"

    def __init__(
        self,
        every: CountOrZero = 1,
        freeze: ShareOrAll = 1.0,
        floor: ShareOrAll = 0.5,
    ):
        self.every = every
        self.freeze = freeze
        self.floor = floor
        self.generator = torch.Generator()
        self.sizes: dict[str, int] = {}
        self.cut: Cut | None = None
        self._epoch = -1
        self._changes: list[float] = []

    @staticmethod
    def demands(method: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Refuse what a choice at every step cannot meet."""
        prune = config["prune"]
        for target, value in prune.items():
            if target.startswith("target_") and value is not None:
                raise ValueError(
                    f"prune.{target} is met after training; {method['name']} chooses channels "
                    "while it trains, as many as prune.ratio leaves"
                )

    def before_training(
        self, model: nn.Module, graph: ChannelGraph, setting: Setting
    ) -> dict[str, float]:
        """Check that so many channels can be active, and seed the choices."""
        self.graph = graph
        self.options = self._with_floor(setting.prune)
        self.generator.manual_seed(setting.seed)
        groups = graph.prunable(self.options.coupled)
        self.sizes = {group.name: group.size for group in groups}
        if not self.sizes:
            raise UserError("dynamic execution needs channels that may go, and there are none")
        active = self._choose(self.random_ranks())
        graph.cut(active).refuse_other_calls()
        number = sum(len(kept) for kept in active.kept.values())
        return {"active_channels": number, "of": sum(self.sizes.values())}

    def active_channels(self, step: Step) -> Cut | None:
        """Choose anew when it is time."""
        is_due = step.index % self.every == 0 if self.every else step.epoch > self._epoch
        self._epoch = step.epoch
        if self.cut is not None and (not is_due or step.progress >= self.freeze):
            return None
        before, self.cut = self.cut, self.graph.cut(self._choose(self.scores(step)))
        if before is not None:
            self._changes.append(_churn(before.plan, self.cut.plan))
        return self.cut

    def after_epoch(self, step: Step) -> dict[str, float]:
        """Report the mean share of the active channels that a choice replaced, and the widths."""
        changes, self._changes = self._changes, []
        kept = self._active()
        widths = {f"active_share.{name}": len(kept[name]) / self.sizes[name] for name in kept}
        return {"churn": sum(changes) / max(1, len(changes)), **widths}

    def charts(
        self, model: nn.Module, graph: ChannelGraph, metrics: Sequence[Mapping[str, Any]]
    ) -> list[Chart]:
        """Show how much of the active set changed, and how wide the groups were."""
        epochs = [line["epoch"] for line in metrics]
        churn = "replaced at a choice", [line["churn"] for line in metrics]
        widths = of_kind(metrics, "active_share")
        heading = "active channels"
        return [SharesByEpoch("active", heading, epochs, churn, widths, f"{heading} of each group")]

    def select_channels(
        self, model: nn.Module, graph: ChannelGraph, options: PruneOptions
    ) -> tuple[Selection, Scores]:
        """Keep the channels with the best final scores."""
        scores = self.final_scores()
        return select(scores, graph, self._with_floor(options)), scores

    def scores(self, step: Step) -> Scores:
        """Return the scores (C,) that decide what is active from this step on."""
        raise NotImplementedError

    def final_scores(self) -> Scores:
        """Return the scores (C,) that decide what stays at the end."""
        raise NotImplementedError

    def by_group(self, values: Tensor) -> Scores:
        """Cut values (num_channels,) of all channels into those of each group."""
        starts = {name: self.graph.groups[name].start for name in self.sizes}
        return {name: values[starts[name] : starts[name] + n] for name, n in self.sizes.items()}

    def random_ranks(self) -> Scores:
        """Return random scores that lead to equal shares in all groups."""
        return ranks(
            {
                name: torch.rand(size, generator=self.generator, dtype=torch.float64)
                for name, size in self.sizes.items()
            }
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the generator's state and what is active."""
        state = {
            "generator": self.generator.get_state(),
            "epoch": torch.tensor(self._epoch),
            "changes": torch.tensor(self._changes, dtype=torch.float64),
        }
        for name, kept in self._active().items():
            state[f"active.{name}"] = torch.tensor(kept)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up where `state_dict` left off."""
        self.generator.set_state(state["generator"])
        self._epoch = int(state["epoch"])
        self._changes = state["changes"].tolist()
        active = {
            name.removeprefix("active."): kept.tolist()
            for name, kept in state.items()
            if name.startswith("active.")
        }
        if active:
            self.cut = self.graph.cut(Plan(active))

    def _active(self) -> dict[str, tuple[int, ...]]:
        """Return the active channels of each group; nothing before the first choice."""
        return self.cut.plan.kept if self.cut else {}

    def _with_floor(self, options: PruneOptions) -> PruneOptions:
        share = self.floor * (1 - options.ratio)
        return replace(options, min_share=max(options.min_share, share))

    def _choose(self, scores: Scores) -> Plan:
        try:
            return Plan(select(scores, self.graph, self.options).kept)
        except ValueError as error:
            raise UserError(str(error)) from error


def ranks(scores: Mapping[str, Tensor]) -> Scores:
    """Replace scores by their ranks in the group, in (0, 1), so that groups keep equal shares."""
    return {
        name: (score.argsort(stable=True).argsort() + 0.5).double() / len(score)
        for name, score in scores.items()
    }


def _churn(before: Plan, after: Plan) -> float:
    """Return the share of the channels in `after` that are not in `before`."""
    new = sum(len(set(kept).difference(before.kept[name])) for name, kept in after.kept.items())
    return new / sum(len(kept) for kept in after.kept.values())
