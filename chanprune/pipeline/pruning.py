"""What a prune stage tells: how many channels went, which floors held, what was absorbed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from chanprune.channels import Absorption, Budget, ChannelGraph, Refit, Selection
from chanprune.channels.budget import COSTS
from chanprune.channels.selection import first_of
from chanprune.methods import PruneOptions


def with_budget(
    options: PruneOptions, section: Mapping[str, Any], model: nn.Module, graph: ChannelGraph
) -> PruneOptions:
    """Let a selection meet the budget that the section prune of a configuration asks for, if any.

    Args:
        options: How channels are selected.
        section: prune.*.
        model: The network that is pruned.
        graph: Its channel graph.

    Raises:
        ValueError: It leaves no network.
    """
    for cost in COSTS:
        amount = section[f"target_{cost}"]
        if amount is not None:
            return replace(options, budget=Budget.of(model, graph, cost, amount))
    return options


@dataclass(frozen=True)
class PruneReport:
    """One prune stage.

    Attributes:
        selection: What was decided.
        scores: Group name -> (C,) the scores it rests on.
        implied: Number of channels that go besides, as nothing is left that writes or reads them.
        max_error: Of the self-check, compact against masked in float64.
        absorbed: Group name -> what became of the dropped channels' constants.
        too_narrow: Groups that stay whole as they have no smaller width that prune.round_to allows.
    """

    selection: Selection
    scores: Mapping[str, Tensor]
    implied: int
    max_error: float
    absorbed: Mapping[str, Absorption]
    too_narrow: Sequence[str] = ()

    def all_scores(self) -> list[float]:
        """Return the scores of all groups in one list."""
        return [value for score in self.scores.values() for value in score.tolist()]

    def lines(self) -> list[str]:
        """Return the lines for the terminal."""
        selection = self.selection
        has_threshold = not math.isnan(selection.threshold)
        threshold = f", threshold {selection.threshold:.3g}" if has_threshold else ""
        lines = [
            f"prune: {selection.removed} of {selection.total} channels go{threshold}; "
            f"compact == masked to {self.max_error:.1g}"
        ]
        if self.absorbed:
            exact = [name for name, absorbed in self.absorbed.items() if absorbed.exact]
            border = max(absorbed.border_error for absorbed in self.absorbed.values())
            spread = max(absorbed.spread for absorbed in self.absorbed.values())
            lines.append(
                f"  constants of dropped channels: exact in {len(exact)} of {len(self.absorbed)} "
                f"groups; elsewhere off by at most {border:.2g} at the border, and the channels "
                f"still varied by {spread:.2g}"
            )
        emptied = [name for name, kept in selection.kept.items() if not kept]
        if emptied:
            lines.append(
                f"  emptied: {', '.join(emptied)}; {self.implied} more channels go with them"
            )
        if selection.at_floor:
            lines.append(f"  at their floor: {first_of(selection.at_floor)}")
        if self.too_narrow:
            lines.append(f"  whole, as narrow as round_to allows: {first_of(self.too_narrow)}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        threshold = self.selection.threshold
        return {
            "removed": self.selection.removed,
            "total": self.selection.total,
            "implied": self.implied,
            "threshold": None if math.isnan(threshold) else threshold,
            "at_floor": self.selection.at_floor,
            "self_check_error": self.max_error,
            "absorbed": {name: asdict(absorbed) for name, absorbed in self.absorbed.items()},
            "scores": {name: score.tolist() for name, score in self.scores.items()},
        }


def told_of(refits: Mapping[str, Refit]) -> tuple[str, ...]:
    """Return the lines on what least squares reached."""
    new = [fitted for fitted in refits.values() if fitted.left is None]
    left = [name for name, fitted in refits.items() if fitted.left is not None]
    lines = []
    if new:
        errors = [fitted.before for fitted in new], [fitted.after for fitted in new]
        before, after = (
            f"{100 * max(of):.3g} % at worst, {100 * statistics.median(of):.3g} % in the middle"
            for of in errors
        )
        lines.append(f"least squares: outputs of {len(new)} layers off by {before} -> {after}")
    if left:
        reasons = ", ".join(f"{name} ({refits[name].left})" for name in left)
        lines.append(f"  not solved: {reasons}")
    return tuple(lines)
