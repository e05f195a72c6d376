"""A budget: what the network that is left may cost, and what a choice of channels costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from chanprune.channels.counting import count, count_plan
from chanprune.channels.graph import ChannelGraph
from chanprune.channels.modes import copied
from chanprune.channels.plan import Plan
from chanprune.channels.shrunk import shrunk
from chanprune.channels.steps import Offer

Cost = Literal["macs", "params", "memory"]
COSTS: tuple[Cost, ...] = get_args(Cost)
UNITS = {"macs": "multiply-accumulates", "params": "parameters", "memory": "bytes"}
WITHIN = 0.01


class Target(ABC):
    """A goal that chooses the widths of all groups together, such as a time."""

    @abstractmethod
    def meet(
        self,
        offers: Mapping[str, Offer],
        kept: Callable[[Mapping[str, int]], dict[str, list[int]]],
    ) -> Mapping[str, int]:
        """Choose the width of every group.

        Args:
            offers: Group name -> the widths that it can have.
            kept: Widths of all groups -> group name -> the channels that stay.

        Raises:
            ValueError: No widths meet the goal.
        """


@dataclass(frozen=True)
class Budget:
    """What the network that is left may cost at most.

    Attributes:
        model: The network, on the meta device.
        graph: Its channel graph.
        cost: What is counted: "macs" and "params" as `count` does; "memory": the bytes that
            parameters, buffers and the largest set of tensors that are alive at once take, for one
            image.
        whole: The cost of the whole network.
        limit: What is allowed.
    """

    model: nn.Module
    graph: ChannelGraph
    cost: Cost
    whole: int
    limit: int

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, cost: Cost, amount: float) -> Budget:
        """Make a budget.

        Args:
            model: The network; it is not changed.
            graph: Its channel graph.
            cost: See above.
            amount: Up to 1: a share of the cost of the whole network; more: an amount.

        Raises:
            ValueError: The amount is not above 0.
        """
        if not amount > 0:
            raise ValueError(f"a budget of {amount} {UNITS[cost]} leaves no network")
        skeleton = copied(model, device="meta")
        whole = _cost(skeleton, graph, cost, Plan({}))
        return cls(skeleton, graph, cost, whole, int(amount * whole if amount <= 1 else amount))

    def cost_of(self, kept: Mapping[str, Iterable[int]]) -> int:
        """Return the cost of the network that keeps these channels of its groups."""
        return _cost(self.model, self.graph, self.cost, Plan(kept))

    def share(self, cost: int) -> float:
        """Return a cost as a share of the whole network's."""
        return cost / self.whole

    def told(self, cost: int) -> str:
        """Say how much a cost is."""
        return f"{cost:,} {UNITS[self.cost]} ({self.share(cost):.4f} of {self.whole:,})"


def _cost(model: nn.Module, graph: ChannelGraph, cost: Cost, plan: Plan) -> int:
    if cost != "memory":
        counts = count_plan(model, graph, plan)
        return counts.macs if cost == "macs" else counts.params
    small = shrunk(model, graph.cut(plan)) if plan.kept else model
    tally = count(small, graph.example).tally
    assert tally is not None
    held = [*small.parameters(), *small.buffers()]
    return tally.peak_bytes + sum(tensor.numel() * tensor.element_size() for tensor in held)
