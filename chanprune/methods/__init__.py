"""Methods by name: they decide which channels to keep."""

from collections.abc import Callable

from chanprune.methods.base import Method, PruneOptions, Step
from chanprune.methods.slimming import Slimming

METHODS: dict[str, Callable[..., Method]] = {"none": Method, "slimming": Slimming}

__all__ = ["METHODS", "Method", "PruneOptions", "Slimming", "Step"]
