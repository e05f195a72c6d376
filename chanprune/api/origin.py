"""Where a compact network comes from: noted on it, so that it can be saved."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from chanprune.channels import ChannelGraph, Example, Plan

NAME = "chanprune_origin"


@dataclass(frozen=True, eq=False)
class Origin:
    """What a compact network was made of.

    Attributes:
        kind: Class of the whole network.
        example: What it is called with.
        plan: What is left of the whole network, over all rounds.
    """

    kind: type[nn.Module]
    example: Example
    plan: Plan


def note_origin(small: nn.Module, model: nn.Module, graph: ChannelGraph, plan: Plan) -> None:
    """Note on a compact network what it was made of; `plan` counts the channels of `model`."""
    before = origin_of(model)
    if before is not None:
        origin = Origin(before.kind, before.example, before.plan.then(plan))
    else:
        origin = Origin(type(model), graph.example, plan)
    if isinstance(small, fx.GraphModule):
        small.meta[NAME] = origin  # which copies of it keep
    else:
        object.__setattr__(small, NAME, origin)


def origin_of(model: nn.Module) -> Origin | None:
    """Return what a network was made of, if `compact` made it, or a copy of such a one."""
    if isinstance(model, fx.GraphModule):
        found = model.meta.get(NAME)
    else:
        found = getattr(model, NAME, None)
    return found if isinstance(found, Origin) else None
