"""The marks by which a component is found: `@method("slimming")` on a class, and its like.

The scan reads them, with their names, in the text of a file that nothing has imported. So they
change nothing at run time, and names are written out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Marked = TypeVar("Marked")


def method(*names: str) -> Callable[[Marked], Marked]:
    """Mark a subclass of `chanprune.methods.Method` as the method of these names."""
    return _unchanged


def criterion(*names: str) -> Callable[[Marked], Marked]:
    """Mark a subclass of `chanprune.criteria.Criterion` as the criterion of these names."""
    return _unchanged


def model(*names: str) -> Callable[[Marked], Marked]:
    """Mark a function, or class, that builds a network, as the models of these names.

    It takes `num_classes`, and of `name`, `in_channels` and `image_size` what it needs; what else
    it takes are its options.
    """
    return _unchanged


def dataset(*names: str) -> Callable[[Marked], Marked]:
    """Mark a subclass of `chanprune.data.Loader` as the data set of these names."""
    return _unchanged


def _unchanged(marked: Marked) -> Marked:
    return marked
