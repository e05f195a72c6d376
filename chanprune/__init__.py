"""chanprune: convolutional networks with channels taken out, with proof.

graph = chanprune.trace(model, example)
plan = chanprune.select(model, graph, target_macs=0.5, criterion="l1")
small = chanprune.compact(model, graph, plan)
chanprune.carry(model, small, graph, plan, optimizer, ema)
chanprune.save(small, "small/")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chanprune.api.carrying import carry
    from chanprune.api.pruning import compact, refit, select, trace
    from chanprune.api.saving import load, save
    from chanprune.channels import (
        ChannelGraph,
        CompactionError,
        Plan,
        UnsupportedNetwork,
        count,
        example_of,
        masked,
    )
    from chanprune.criteria import Criterion
    from chanprune.pipeline.model_file import extract
    from chanprune.processes.errors import UserError

__version__ = "0.1.0"
_MODULES = {
    "api.carrying": ("carry",),
    "api.pruning": ("compact", "refit", "select", "trace"),
    "api.saving": ("load", "save"),
    "channels": (
        *("ChannelGraph", "CompactionError", "Plan", "UnsupportedNetwork", "count", "example_of"),
        "masked",
    ),
    "criteria": ("Criterion",),
    "pipeline.model_file": ("extract",),
    "processes.errors": ("UserError",),
}
__all__ = [
    "ChannelGraph",
    "CompactionError",
    "Criterion",
    "Plan",
    "UnsupportedNetwork",
    "UserError",
    "carry",
    "compact",
    "count",
    "example_of",
    "extract",
    "load",
    "masked",
    "refit",
    "save",
    "select",
    "trace",
]


def __getattr__(name: str) -> Any:
    """Import what is public, and torch with it, when it is first used."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"chanprune.{module}"), name)
    raise AttributeError(f"module 'chanprune' has no attribute {name!r}")
