"""Methods by name: they decide which channels to keep."""

from collections.abc import Callable

from chanprune.methods.base import Method, PruneOptions, Step
from chanprune.methods.idp import IncompleteDotProducts
from chanprune.methods.multi_fidelity import MultiFidelity
from chanprune.methods.prioritized import Prioritized
from chanprune.methods.slimming import Slimming

METHODS: dict[str, Callable[..., Method]] = {
    "none": Method,
    "slimming": Slimming,
    "prioritized": Prioritized,
    "idp": IncompleteDotProducts,
}

__all__ = [
    "METHODS",
    "IncompleteDotProducts",
    "Method",
    "MultiFidelity",
    "Prioritized",
    "PruneOptions",
    "Slimming",
    "Step",
]
