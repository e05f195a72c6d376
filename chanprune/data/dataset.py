"""A data set: labelled images in three splits, and what to do with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch

from chanprune.components import CountOrZero, FilePath, Ge, Gt, Le, Lt, PartOrAll
from chanprune.data.source import MemorySource, Source, stratified, stratified_split
from chanprune.files.digest import digest
from chanprune.processes.errors import UserError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STREAM_SAMPLE = 10_000
SplitName = Literal["train", "val", "test"]
Pixels = Annotated[int, Ge(1), Le(8192)]
Border = Annotated[int, Ge(0), Le(1024)]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known without reading images: (C, H, W), and a name for each class."""

    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Loader:
    """How a data set is described and loaded: its options. A data set is a subclass.

    Attributes:
        image_size: Height and width in pixels; null: the size that the data set has here.
        val_share: Share of the training set that is held out to choose epochs; the test set
            chooses nothing.
        share: Share of the images of every split that is used, by class; less for a quick look.
        memory_limit: Bytes of images that are kept in memory; beyond, they are streamed.
        workers: Processes that stream.
        pad: Random crops are taken from the image with so many pixels of zeros around it.
        flip: Half of the images are mirrored.
        mean: What is taken off an image, per channel, of values in [0, 1]; null: the mean of the
            training images. Trained weights want what they were trained with.
        std: What it is divided by then; null: their standard deviation.
    """

    image_size: Pixels | None = None
    val_share: Annotated[float, Gt(0), Lt(1)] = 0.1
    share: PartOrAll = 1.0
    memory_limit: CountOrZero = 2**31
    workers: Annotated[int, Ge(0), Le(256)] = 2
    pad: Border = 4
    flip: bool = True
    mean: Sequence[float] | None = None
    std: Sequence[Annotated[float, Gt(0)]] | None = None

    def describe(self) -> DatasetInfo:
        """Describe the data set without reading all of its images."""
        raise NotImplementedError

    def load(self, seed: int) -> Dataset:
        """Load the data set, see `assemble`.

        Args:
            seed: Decides what is held out for validation.

        Raises:
            UserError: Its files are neither there nor to be had, or damaged.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FileLoader(Loader):
    """The same of a data set that lies in files.

    Attributes:
        root: Where the files are, or are downloaded to.
    """

    root: FilePath = "data"


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
    options: Loader
    streams: bool
    notes: tuple[str, ...] = ()

    @property
    def has_labels(self) -> bool:
        """Whether there are labelled images to train and to measure with."""
        return "test" in self.splits

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
    options: Loader,
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
    mean, std = normalisation(info, options, lambda: _statistics(splits["train"]))
    return Dataset(name, info, mean, std, splits, options, streams)


def unlabelled(
    name: str, info: DatasetInfo, splits: dict[SplitName, Source], options: Loader
) -> Dataset:
    """Make a data set whose images, if there are any, have no labels."""

    def usual() -> tuple[tuple[float, ...], tuple[float, ...]]:
        channels = info.input_shape[0]
        return IMAGENET if channels == 3 else ((0.5,) * channels, (0.5,) * channels)

    pixels = sum(len(split.labels) for split in splits.values()) * math.prod(info.input_shape)
    streams = pixels > options.memory_limit
    if not streams:
        splits = {key: split.in_memory() for key, split in splits.items()}
    mean, std = normalisation(info, options, usual)
    return Dataset(name, info, mean, std, splits, options, streams)


def normalisation(
    info: DatasetInfo,
    options: Loader,
    otherwise: Callable[[], tuple[tuple[float, ...], tuple[float, ...]]],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the deviation that are given, or those that are taken otherwise.

    Raises:
        UserError: There is not one of each for every channel of an image.
    """
    mean, std = otherwise()
    mean = mean if options.mean is None else tuple(options.mean)
    std = std if options.std is None else tuple(options.std)
    channels = info.input_shape[0]
    for key, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise UserError(
                f"dataset.{key}={list(values)}: one for each of the {channels} channels of an image"
            )
    return mean, std


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
