"""The network as it goes from stage to stage, and what a stage says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from chanprune.channels import ChannelGraph, Fidelity, Plan
from chanprune.pipeline.cost import Cost
from chanprune.pipeline.pruning import PruneReport
from chanprune.rewiring import Form
from chanprune.show.charts import Chart
from chanprune.show.table import Row


@dataclass(frozen=True)
class Network:
    """A network between two stages.

    Attributes:
        plan: What it keeps of the original.
        widths: Channel group that may be pruned -> channels of the original.
        options: Options of the model that a conversion changed.
        form: What training made of it, see `rewiring.settle`.
        order: Channel group -> the original's channels in the order in which they are now, where
            that was changed.
        fidelity: Its levels, as they were measured last.
    """

    model: nn.Module
    graph: ChannelGraph
    plan: Plan
    widths: Mapping[str, int]
    options: Mapping[str, Any] = field(default_factory=dict)
    form: Form = field(default_factory=dict)
    order: Mapping[str, Sequence[int]] = field(default_factory=dict)
    fidelity: Fidelity | None = None

    @property
    def channels(self) -> int:
        """Number of channels that are left in the groups that may be pruned."""
        return sum(self.graph.groups[name].size for name in self.widths)


@dataclass(frozen=True)
class Facts:
    """What stages say.

    Attributes:
        rows: Of the table.
        charts: What there is to see.
        lines: For the log.
        costs: Stage -> what its training cost.
        prunings: What was decided, and what came of it.
    """

    rows: tuple[Row, ...] = ()
    charts: tuple[Chart, ...] = ()
    lines: tuple[str, ...] = ()
    costs: Mapping[str, Cost] = field(default_factory=dict)
    prunings: tuple[PruneReport, ...] = ()

    def __add__(self, later: Facts) -> Facts:
        """Return what was said before, and then."""
        return Facts(
            self.rows + later.rows,
            self.charts + later.charts,
            self.lines + later.lines,
            {**self.costs, **later.costs},
            self.prunings + later.prunings,
        )
