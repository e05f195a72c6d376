"""Compaction: the physically smaller network that a plan leaves, checked against the masked one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from chanprune.channels.absorb import Absorption, absorb_constants
from chanprune.channels.graph import ChannelGraph
from chanprune.channels.plan import Plan
from chanprune.channels.refusals import refusing
from chanprune.channels.selfcheck import self_check
from chanprune.channels.shrunk import shrunk


@dataclass
class Compaction:
    """A compact network.

    Attributes:
        model: The smaller network; it shares nothing with the original.
        graph: Its channel graph.
        max_error: Largest difference to the masked network's outputs in float64, relative to the
            largest value of each; nan if not checked, as on the meta device.
        absorbed: What became of the constants that the dropped channels leave, per channel group;
            empty unless asked for.
    """

    model: nn.Module
    graph: ChannelGraph
    max_error: float
    absorbed: dict[str, Absorption] = field(default_factory=dict)


def compact(
    model: nn.Module,
    graph: ChannelGraph,
    plan: Plan,
    absorb: Literal["none", "bias"] = "none",
    check: bool = True,
) -> Compaction:
    """Build the network without the dropped channels.

    Args:
        model: The network that `graph` describes; it is not changed. On the meta device the result
            has the right shapes and no values.
        graph: Its channel graph.
        plan: What is kept.
        absorb: "none" drops the constants that dropped channels emit (ReLU of the batch norm's
            shift); "bias" adds them to what follows.
        check: Compare with the masked network on random images in float64.

    Raises:
        ValueError: The plan does not fit the graph.
        UnsupportedNetwork: The network that is left cannot be built.
        CompactionError: An output differs by more than 1e-9, or is another kind of thing.
    """
    cut = graph.cut(plan)
    after = cut.after
    with refusing("the network that this plan leaves cannot be built"):
        small = shrunk(model, cut)
    has_values = not any(tensor.is_meta for tensor in model.parameters())
    max_error = self_check(model, cut) if check and has_values else float("nan")
    absorbed = absorb_constants(model, small, cut) if absorb == "bias" else {}
    return Compaction(small, after, max_error, absorbed)
