"""Data sets by name, and batches of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chanprune.components import Registry, find, make
from chanprune.data.batches import (
    MemoryBatches,
    StreamBatches,
    eval_batches,
    sample_batches,
    train_batches,
)
from chanprune.data.dataset import Dataset, DatasetInfo, FileLoader, Loader, SplitName, assemble
from chanprune.data.source import MemorySource
from chanprune.processes.errors import UserError

DATASETS = Registry("dataset")


def describe(name: str, **options: Any) -> DatasetInfo:
    """Describe a data set without reading its images.

    Args:
        name: One of `DATASETS`.
        options: See `Loader`.
    """
    info: DatasetInfo = _loader(name, options).describe()
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
    dataset: Dataset = _loader(name, options).load(seed)
    return dataset


def _loader(name: str, options: Mapping[str, Any]) -> Any:
    component = find("dataset", name)
    if component is None:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    return make(component, **options)


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
