"""Methods by name: they decide which channels to keep."""

from chanprune.components import Registry
from chanprune.methods.base import (
    Conversion,
    Method,
    Plain,
    PruneOptions,
    Setting,
    Step,
    select,
)

METHODS = Registry("method")

__all__ = [
    "METHODS",
    "Conversion",
    "Method",
    "Plain",
    "PruneOptions",
    "Setting",
    "Step",
    "select",
]
