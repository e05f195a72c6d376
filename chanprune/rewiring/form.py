"""What training made of a network, as model.json has it: "expanded" and "copies"."""

from __future__ import annotations

from typing import Any

from torch import nn

from chanprune.rewiring.copies import rewire, wiring
from chanprune.rewiring.expanded import expand, rebuild

Form = dict[str, dict[str, Any]]


def settle(model: nn.Module) -> Form:
    """Make larger kernels, in place, of what copies can be (`expand`), and describe the network.

    Returns:
        What `restore` takes; each part is empty where training rewired nothing.
    """
    return {"expanded": expand(model), "copies": wiring(model)}


def restore(model: nn.Module, form: Form) -> None:
    """Give an original network, in place, the form that `settle` described, without values.

    Raises:
        ValueError: It has no such layers or channels.
    """
    rebuild(model, form.get("expanded", {}))
    rewire(model, form.get("copies", {}))
