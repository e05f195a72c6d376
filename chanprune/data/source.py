"""Where images come from: a tensor in memory, or files that are read when they are needed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from chanprune.data.image import fit
from chanprune.processes.errors import UserError


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

    def digest(self) -> str:
        """Return a hash of labels and images that is the same wherever they are."""

    def times(self) -> str:
        """Return a hash that changes with every change of files which `digest` may miss."""


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

    def digest(self) -> str:
        """Return a hash of labels and pixels."""
        hashed = hashlib.sha256(self.labels.cpu().numpy().tobytes())
        hashed.update(repr(tuple(self.images.shape)).encode())
        hashed.update(self.images.cpu().contiguous().numpy().data)
        return hashed.hexdigest()

    def times(self) -> str:
        """Return the same for all: every pixel is in the digest."""
        return ""

    def resized(self, size: int) -> MemorySource:
        """Return the images at `size` x `size` pixels."""
        return MemorySource(fit(self.images, size), self.labels)


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
    members = torch.bincount(labels, minlength=len(class_names))
    for number, name in zip(members.tolist(), class_names, strict=True):
        if _part(share, number) >= number:
            raise UserError(
                f"class {name!r} has {number} training images, too few to hold out "
                f"{100 * share:g} % for validation; add images or lower dataset.val_share"
            )
    held_out = stratified(labels, share, seed)
    is_left = torch.ones(len(labels), dtype=torch.bool)
    is_left[held_out] = False
    return is_left.nonzero().flatten(), held_out


def stratified(labels: Tensor, share: float, seed: int) -> Tensor:
    """Choose a share of every class, at least one image unless it is 0: ascending indices."""
    random = np.random.default_rng([seed, 20171])
    chosen = []
    for label in labels.unique().tolist():
        members = np.flatnonzero(labels.numpy() == label)
        chosen.append(random.permutation(members)[: _part(share, len(members))])
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def _part(share: float, number: int) -> int:
    return max(1, round(share * number)) if share > 0 else 0
