"""Data sets by name, and batches of them."""

from __future__ import annotations

from typing import Any

from chanprune.components import Registry
from chanprune.data.batches import (
    MemoryBatches,
    StreamBatches,
    eval_batches,
    sample_batches,
    train_batches,
)
from chanprune.data.dataset import Dataset, DatasetInfo, FileLoader, Loader, SplitName, assemble
from chanprune.data.source import MemorySource

DATASETS = Registry("dataset")


def describe(name: str, **options: Any) -> DatasetInfo:
    """Describe a data set without reading its images.

    Args:
        name: One of `DATASETS`.
        options: See `Loader`.
    """
    info: DatasetInfo = DATASETS[name](**options).describe()
    return info


def load(name: str, *, seed: int, **options: Any) -> Dataset:
    """Load a data set.

    Args:
        name: One of `DATASETS`.
        seed: Decides what is held out for validation.
        options: See `Loader`.

    Raises:
        UserError: The data is not there, cannot be downloaded, or is damaged.
    """
    dataset: Dataset = DATASETS[name](**options).load(seed)
    return dataset


__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetInfo",
    "FileLoader",
    "Loader",
    "MemoryBatches",
    "MemorySource",
    "SplitName",
    "StreamBatches",
    "assemble",
    "describe",
    "eval_batches",
    "load",
    "sample_batches",
    "train_batches",
]
