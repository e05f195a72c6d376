"""Contexts that a forward opens, which calls that are made anew are not made in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx

AUTOCAST = "torch.autocast"
NO_GRADIENT = "torch.no_grad or the like"


@contextmanager
def seen() -> Iterator[int]:
    """Let `opened` see whichever context is opened meanwhile; yield what it is to be given."""
    with torch.inference_mode(False), torch.enable_grad():
        yield _depth()


def opened(outside: int) -> str | None:
    """Name the context that is open now, if there is one.

    Args:
        outside: What `seen` yielded.
    """
    if _depth() > outside:
        return AUTOCAST
    return None if torch.is_grad_enabled() else NO_GRADIENT


@contextmanager
def noting_inference_mode() -> Iterator[list[torch.inference_mode]]:
    """Note where inference mode is opened, which torch.export does not tell."""
    found: list[torch.inference_mode] = []
    enter = torch.inference_mode.__enter__

    def note(self: torch.inference_mode) -> None:
        if self.mode:
            found.append(self)
        enter(self)

    torch.inference_mode.__enter__ = note  # type: ignore[method-assign]
    try:
        yield found
    finally:
        torch.inference_mode.__enter__ = enter  # type: ignore[method-assign]


def _depth() -> int:
    depth = int(torch.autocast_increment_nesting()) - 1
    torch.autocast_decrement_nesting()
    return depth


def lost_context(calls: fx.Graph) -> str | None:
    """Say which context would be lost; None where none is, or it decides over nothing.

    Without gradients nothing is lost where nothing is learned: what is made of sizes, or of the
    network's inputs.

    Args:
        calls: Calls with shapes, and with the context that each is made in in `meta["context"]`.
    """
    learned: set[fx.Node] = set()
    for node in calls.nodes:
        is_first = node.op == "call_module" or node.meta.get("is_parameter")
        if is_first or ("value" not in node.meta and not learned.isdisjoint(node.all_input_nodes)):
            learned.add(node)
        context = node.meta.get("context")
        is_call = node.op.startswith("call_")
        if context is not None and is_call and (context == AUTOCAST or node in learned):
            return f"its forward calls {node.name} within {context}, which would be lost"
    return None
