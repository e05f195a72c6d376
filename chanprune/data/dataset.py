"""A data set: labelled images in three splits, and what to do with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from chanprune.data.source import MemorySource, Source, stratified, stratified_split
from chanprune.files.digest import digest

STREAM_SAMPLE = 10_000
SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known without reading images: (C, H, W), and a name for each class."""

    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """What every data set takes.

    Attributes:
        root: Where files are looked for, and downloaded to; an image folder's directory or archive.
        image_size: Height and width in pixels; None for the native size.
        val_share: Share of the training set that is held out for validation, in [0, 1).
        share: Share of the images of every split that is used, of each class alike, in (0, 1].
        memory_limit: Bytes of uint8 images up to which everything lives in memory, on the device.
        workers: Processes that read images beyond the limit.
        pad: Pixels of zeros around an image from which a random crop is taken; 0 for none.
        flip: Whether half of the images are mirrored.
    """

    image_size: int | None = None
    val_share: float = 0.1
    share: float = 1.0
    memory_limit: int = 2**31
    workers: int = 2
    pad: int = 4
    flip: bool = True
    root: str = "data"


@dataclass(frozen=True)
class Dataset:
    """Three splits and the numbers that go with them.

    Attributes:
        name: Of the data set.
        info: Shape and class names.
        mean: Per channel of the training images, values in [0, 1].
        std: Per channel, likewise.
        splits: "train", "val", "test" -> images.
        options: Augmentation and loading.
        streams: Whether images are read from their source batch by batch.
        notes: What is to be said of it, such as files that are not read.
    """

    name: str
    info: DatasetInfo
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: dict[SplitName, Source]
    options: Options
    streams: bool
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return a hash of all labels and images, the same wherever they are.

        Images in memory are hashed by their pixels, streamed files by names and sizes and the
        checksums that a zip archive holds.
        """
        return digest([split.digest() for split in self.splits.values()], 32)

    def times(self) -> str:
        """Return a hash that also changes when a streamed file of a directory is written."""
        return digest([split.times() for split in self.splits.values()], 32)

    def on(self, device: torch.device | str) -> Dataset:
        """Return the data set with its images on `device`, unless they are streamed."""
        splits = {
            key: MemorySource(split.images.to(device), split.labels.to(device))
            if isinstance(split, MemorySource) and not self.streams
            else split
            for key, split in self.splits.items()
        }
        return replace(self, splits=splits)


def assemble(
    name: str,
    info: DatasetInfo,
    train: Source,
    test: Source,
    options: Options,
    seed: int,
    val: Source | None = None,
) -> Dataset:
    """Hold out the validation split, load into memory what fits, and measure mean and deviation.

    The seed decides what is held out, and what a share is of the training set; not of the others.
    """
    if options.share < 1:
        train = train.subset(stratified(train.labels, options.share, seed))
        test = test.subset(stratified(test.labels, options.share, 0))
        val = val and val.subset(stratified(val.labels, options.share, 0))
    if val is None:
        rest, held = stratified_split(train.labels, options.val_share, seed, info.class_names)
        train, val = train.subset(rest), train.subset(held)
    splits: dict[SplitName, Source] = {"train": train, "val": val, "test": test}
    channels, height, width = info.input_shape
    num_images = sum(len(split.labels) for split in splits.values())
    streams = num_images * channels * height * width > options.memory_limit
    if not streams:
        splits = {key: split.in_memory() for key, split in splits.items()}
    mean, std = _statistics(splits["train"])
    return Dataset(name, info, mean, std, splits, options, streams)


def _statistics(train: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and deviation per channel; of a stream, from evenly spaced images."""
    if isinstance(train, MemorySource):
        images = train.images
    else:
        number = min(STREAM_SAMPLE, len(train.labels))
        chosen = torch.linspace(0, len(train.labels) - 1, number).long()
        images = torch.stack([train.read(int(i)) for i in chosen])
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.transpose(0, 1):
        share = torch.bincount(channel.flatten(), minlength=256) / channel.numel()
        average = (share * values).sum()
        spread = (share * (values - average).square()).sum().sqrt()
        mean.append(round(average.item(), 4))
        std.append(max(round(spread.item(), 4), 1e-3))
    return tuple(mean), tuple(std)
