"""A folder or zip archive of images, split/class/name.ext, read without unpacking."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from chanprune.components import FilePath, dataset
from chanprune.data.archive import Archive
from chanprune.data.dataset import Dataset, DatasetInfo, FileLoader, assemble
from chanprune.data.folder_index import FolderIndex, index_of
from chanprune.data.image import fit, pixels
from chanprune.data.source import MemorySource
from chanprune.processes.errors import UserError


@dataclass(frozen=True)
class FileSource:
    """Images of an archive, decoded when they are read.

    Attributes:
        archive: Where they are.
        members: One name per image.
        labels: (N,) int64.
        size: Their height and width in pixels.
        resizes: Whether images of another size are resized and cropped at the centre, or refused.
    """

    archive: Archive
    members: list[str]
    labels: Tensor
    size: int
    resizes: bool

    def read(self, index: int) -> Tensor:
        """Return one image, uint8 (3, H, W).

        Raises:
            UserError: It cannot be read, or has another size than the others.
        """
        image = _read(self.archive, self.members[index])
        if image.shape[-2:] != (self.size, self.size) and not self.resizes:
            raise _of_another_size(self.archive, self.members[index], image)
        return fit(image, self.size)

    def subset(self, indices: Tensor) -> FileSource:
        """Return the images `indices` (M,)."""
        members = [self.members[i] for i in indices.tolist()]
        return replace(self, members=members, labels=self.labels[indices])

    def in_memory(self) -> MemorySource:
        """Decode all images."""
        images = torch.empty((len(self.members), 3, self.size, self.size), dtype=torch.uint8)
        told = tqdm(range(len(images)), desc="reading images", unit="image", disable=None)
        for index in told:
            images[index] = self.read(index)
        return MemorySource(images, self.labels)

    def digest(self) -> str:
        """Return a hash of labels, names and sizes, and of the checksums in an archive."""
        hashed = hashlib.sha256(self.labels.numpy().tobytes())
        for member in self.members:
            about = (member, self.archive.size(member), self.archive.checksum(member))
            hashed.update(repr(about).encode())
        return hashed.hexdigest()

    def times(self) -> str:
        """Return a hash of what changes when a file is written or renamed."""
        return hashlib.sha256(
            repr([self.archive.times(member) for member in self.members]).encode()
        ).hexdigest()


@dataset("imagefolder")
@dataclass(frozen=True, kw_only=True)
class ImageFolder(FileLoader):
    """A folder or archive; an error of `load` may come from `describe`, which reads the index.

    Attributes:
        root: The directory or archive; it is not unpacked.
        image_size: Height and width in pixels; null: that of the images, which must be square.
        val_share: Share of train that is held out where there is no val; the test set chooses
            nothing.
    """

    root: FilePath

    def describe(self) -> DatasetInfo:
        """Describe the data set from its index and its first image; raises as `load` does."""
        archive = Archive(Path(self.root))
        return _info(archive, index_of(archive), self.image_size)

    def load(self, seed: int) -> Dataset:
        """Load an image folder.

        Raises:
            UserError: It does not exist, is damaged, lacks a split, has an empty class, classes
                that differ between splits, or an image that cannot be read.
        """
        archive = Archive(Path(self.root))
        index = index_of(archive)
        info = _info(archive, index, self.image_size)
        sources = {}
        for split, classes in index.splits.items():
            members = [m for name in info.class_names for m in classes[name]]
            labels = [k for k, name in enumerate(info.class_names) for _ in classes[name]]
            resizes = self.image_size is not None
            sources[split] = FileSource(
                archive, members, torch.tensor(labels), info.input_shape[1], resizes
            )
        name = Path(self.root).name
        train, test, val = sources["train"], sources["test"], sources.get("val")
        return replace(assemble(name, info, train, test, self, seed, val), notes=index.notes)


def _info(archive: Archive, index: FolderIndex, size: int | None) -> DatasetInfo:
    if size is None:
        first = next(iter(index.splits["train"].values()))[0]
        image = _read(archive, first)
        size = image.shape[-1]
        if image.shape[-2] != size:
            raise _of_another_size(archive, first, image)
    return DatasetInfo((3, size, size), tuple(index.splits["train"]))


def _read(archive: Archive, member: str) -> Tensor:
    """Return one image as it is, uint8 (3, H, W)."""
    return pixels(archive.read(member), 3)


def _of_another_size(archive: Archive, member: str, image: Tensor) -> UserError:
    height, width = image.shape[-2:]
    return UserError(
        f"{archive.path}: the image {member} has {width} x {height} pixels; where images are not "
        "all square and alike, set dataset.image_size to the size that the network shall see"
    )
