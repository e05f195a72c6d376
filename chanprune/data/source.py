"""Where images come from: a tensor in memory, or files that are read when they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chanprune.errors import UserError


class Source(Protocol):
    """Labelled images: `labels` (N,) int64; image i is uint8 (C, H, W)."""

    @property
    def labels(self) -> Tensor:
        """Class indices."""

    def read(self, index: int) -> Tensor:
        """Return one image, uint8 (C, H, W)."""

    def subset(self, indices: Tensor) -> Source:
        """Return the images `indices` (M,)."""

    def in_memory(self) -> MemorySource:
        """Return all images as one tensor."""


@dataclass(frozen=True)
class MemorySource:
    """Images uint8 (N, C, H, W) and labels int64 (N,)."""

    images: Tensor
    labels: Tensor

    def read(self, index: int) -> Tensor:
        """Return one image, uint8 (C, H, W)."""
        return self.images[index]

    def subset(self, indices: Tensor) -> MemorySource:
        """Return the images `indices` (M,)."""
        return MemorySource(self.images[indices], self.labels[indices])

    def in_memory(self) -> MemorySource:
        """Return itself."""
        return self

    def resized(self, size: int) -> MemorySource:
        """Return the images at `size` x `size` pixels (bilinear)."""
        if self.images.shape[-1] == size and self.images.shape[-2] == size:
            return self
        parts = [
            F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True)
            .round_()
            .clamp_(0, 255)
            .byte()
            for part in self.images.split(4096)
        ]
        return MemorySource(torch.cat(parts), self.labels)


def stratified_split(
    labels: Tensor, share: float, seed: int, class_names: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """Hold out a share of every class.

    Args:
        labels: (N,) class indices.
        share: Share to hold out, in [0, 1); at least one image of a class unless it is 0.
        seed: Decides which.
        class_names: For the error.

    Returns:
        Ascending indices of what is left, and of what is held out.

    Raises:
        UserError: A class is too small to be split.
    """
    random = np.random.default_rng([seed, 20171])
    held = []
    for label, name in enumerate(class_names):
        members = np.flatnonzero(labels.numpy() == label)
        count = max(1, round(share * len(members))) if share > 0 else 0
        if count >= len(members):
            raise UserError(
                f"class {name!r} has {len(members)} training images, too few to hold out "
                f"{100 * share:g} % for validation; add images or lower dataset.val_share"
            )
        held.append(random.permutation(members)[:count])
    held_out = np.sort(np.concatenate(held))
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    return torch.from_numpy(rest), torch.from_numpy(held_out)
