"""Batches of normalised images, from memory or from a stream.

The order of the images and their augmentation depend on (seed, epoch) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from chanprune.data.dataset import Dataset, SplitName
from chanprune.data.source import Source
from chanprune.processes.errors import RunError, UserError

Batch = tuple[Tensor, Tensor]
Part = tuple[int, int]
WHOLE: Part = (0, 1)


def train_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    part: Part = WHOLE,
) -> MemoryBatches | StreamBatches:
    """Shuffled, augmented batches of the training split; a last partial batch is left out.

    Args:
        dataset: The data set.
        batch_size: Images per batch; a smaller training split makes one batch.
        seed: Decides order and augmentation, with the epoch.
        device: Where the batches go.
        part: Which part of every batch: (i, n) is images i, i + n, i + 2n and so on.
    """
    kind = StreamBatches if dataset.streams else MemoryBatches
    return kind(dataset, "train", batch_size, device, seed, part)


def eval_batches(
    dataset: Dataset,
    split: SplitName,
    *,
    batch_size: int,
    device: torch.device | str,
    part: Part = WHOLE,
) -> MemoryBatches | StreamBatches:
    """All images of a split, or a part of every batch of them, in order, as they are."""
    kind = StreamBatches if dataset.streams else MemoryBatches
    return kind(dataset, split, batch_size, device, None, part)


def sample_batches(
    dataset: Dataset, *, batch_size: int, seed: int, device: torch.device | str
) -> MemoryBatches | StreamBatches:
    """Training images as they are, shuffled, as a data set may be sorted by class."""
    kind = StreamBatches if dataset.streams else MemoryBatches
    return kind(dataset, "train", batch_size, device, seed, WHOLE, augments=False)


class _Batches:
    """What both kinds share: the split, and the order of its images."""

    def __init__(
        self,
        dataset: Dataset,
        split: SplitName,
        batch_size: int,
        device: torch.device | str,
        seed: int | None,
        part: Part,
        augments: bool = True,
    ):
        self.dataset = dataset
        self.augment_seed = seed if augments else None
        self.part = slice(part[0], None, part[1])
        self.source: Source = dataset.splits[split]
        self.seed = seed
        self.device = torch.device(device)
        num_images = len(self.source.labels)
        self.batch_size = min(batch_size, num_images)
        whole = num_images // self.batch_size
        self.num_batches = whole if seed is not None else -(-num_images // self.batch_size)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self.num_batches

    def _order(self, epoch: int) -> Tensor:
        num_images = len(self.source.labels)
        if self.seed is None:
            return torch.arange(num_images)
        order = torch.randperm(num_images, generator=_generator(self.seed, epoch))
        return order[: self.num_batches * self.batch_size]


class MemoryBatches(_Batches):
    """Batches cut from one uint8 tensor on the device, augmented as a whole."""

    def epoch(self, index: int) -> Iterator[Batch]:
        """Yield (images (N, C, H, W), labels (N,)) of epoch `index`."""
        source = self.source.in_memory()
        images, labels = source.images.to(self.device), source.labels.to(self.device)
        mean, std = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1) * 255
            for values in (self.dataset.mean, self.dataset.std)
        )
        order = self._order(index).to(self.device)
        pad, flip = self.dataset.options.pad, self.dataset.options.flip
        seed = self.augment_seed
        draws = _generator(seed, index, 1) if seed is not None else None
        for chosen in order.split(self.batch_size):
            batch = images[chosen]
            if draws is not None:
                batch = augment(batch, pad, flip, draws)
            yield (batch[self.part].float() - mean) / std, labels[chosen[self.part]]


def augment(images: Tensor, pad: int, flip: bool, draws: torch.Generator) -> Tensor:
    """Crop each image at random from its zero-padded self, and mirror half of them.

    Args:
        images: (N, C, H, W), any type.
        pad: Pixels of zeros on each side.
        flip: Whether to mirror.
        draws: Random numbers, on the CPU.
    """
    count, channels, height, width = images.shape
    top, left = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=draws)
    mirrored = torch.rand(count, 1, generator=draws) < (0.5 if flip else 0.0)
    rows = top + torch.arange(height)
    columns = torch.arange(width).expand(count, width)
    columns = left + torch.where(mirrored, width - 1 - columns, columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    pixels = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]
    pixels = pixels.view(count, 1, -1).expand(count, channels, -1)
    return F.pad(images, (pad,) * 4).flatten(2).gather(2, pixels).view(images.shape)


class StreamBatches(_Batches):
    """Batches read by worker processes, augmented one by one with torchvision's transforms."""

    def epoch(self, index: int) -> Iterator[Batch]:
        """Yield (images (N, C, H, W), labels (N,)) of epoch `index`.

        Raises:
            RunError: An image cannot be read.
        """
        from torchvision.transforms import v2

        options = self.dataset.options
        steps: list[Any] = [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(self.dataset.mean), list(self.dataset.std)),
        ]
        if self.augment_seed is not None:
            height, width = self.dataset.info.input_shape[1:]
            flips = [v2.RandomHorizontalFlip()] if options.flip else []
            crops = [v2.RandomCrop((height, width), padding=options.pad)] if options.pad else []
            steps = [*crops, *flips, *steps]
        batches = [
            chosen[self.part].tolist() for chosen in self._order(index).split(self.batch_size)
        ]
        loader = DataLoader(
            _Stream(self.source, v2.Compose(steps), self.augment_seed, index),
            batch_sampler=batches,
            num_workers=options.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(0),
        )
        try:
            for images, labels in loader:
                yield images.to(self.device, non_blocking=True), labels.to(self.device)
        except UserError as error:
            # A worker's error arrives with its traceback in front of the message.
            message = str(error).strip().splitlines()[-1]
            name = f"{UserError.__module__}.{UserError.__name__}: "
            raise RunError(message.removeprefix(name)) from error


class _Stream(TorchDataset[tuple[Tensor, Tensor]]):
    """One epoch of images; each draws its augmentation from (seed, epoch, index)."""

    def __init__(
        self, source: Source, transform: Callable[[Tensor], Tensor], seed: int | None, epoch: int
    ):
        self.source = source
        self.transform = transform
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.source.read(index)
        with torch.random.fork_rng(devices=[]):
            if self.seed is not None:
                torch.manual_seed(_number(self.seed, self.epoch, index))
            return self.transform(image), self.source.labels[index]


def _number(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def _generator(*entropy: int) -> torch.Generator:
    return torch.Generator().manual_seed(_number(*entropy))
