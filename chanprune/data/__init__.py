"""Data sets by name, and batches of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chanprune.data import digits, imagefolder
from chanprune.data.batches import (
    MemoryBatches,
    StreamBatches,
    eval_batches,
    sample_batches,
    train_batches,
)
from chanprune.data.dataset import Dataset, DatasetInfo, Options, SplitName
from chanprune.data.torchvision_sets import TORCHVISION_SETS

_LOADERS: dict[str, tuple[Callable[[Options], DatasetInfo], Callable[[Options, int], Dataset]]] = {
    "digits": (digits.describe, digits.load),
    "imagefolder": (imagefolder.describe, imagefolder.load),
    **{name: (each.describe, each.load) for name, each in TORCHVISION_SETS.items()},
}
DATASETS = tuple(_LOADERS)


def describe(name: str, **options: Any) -> DatasetInfo:
    """Describe a data set without reading its images.

    Args:
        name: One of `DATASETS`.
        options: See `Options`.
    """
    return _LOADERS[name][0](Options(**options))


def load(name: str, *, seed: int, **options: Any) -> Dataset:
    """Load a data set.

    Args:
        name: One of `DATASETS`.
        seed: Decides what is held out for validation.
        options: See `Options`.

    Raises:
        UserError: The data is not there, cannot be downloaded, or is damaged.
    """
    return _LOADERS[name][1](Options(**options), seed)


__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetInfo",
    "MemoryBatches",
    "Options",
    "SplitName",
    "StreamBatches",
    "describe",
    "eval_batches",
    "load",
    "sample_batches",
    "train_batches",
]
