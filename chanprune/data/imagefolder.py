"""A folder or zip archive of images, split/class/name.ext, read without unpacking."""

from __future__ import annotations

import io
import os
import zipfile
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from chanprune.data.dataset import Dataset, DatasetInfo, Options, assemble
from chanprune.data.source import MemorySource
from chanprune.errors import UserError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp"})
SPLITS = ("train", "val", "test")
Index = dict[str, dict[str, list[str]]]


@dataclass
class Archive:
    """A directory or a zip file, read member by member.

    Every process opens the zip file for itself: a handle that a forked worker inherits shares
    its position with the parent's, and two that read at once get each other's bytes.
    """

    path: Path
    _opened: zipfile.ZipFile | None = field(default=None, repr=False)
    _opened_by: int | None = field(default=None, repr=False)

    def members(self) -> list[str]:
        """List all files and directories (ending in /), relative to the archive.

        Raises:
            UserError: The path does not exist, or the archive is damaged.
        """
        if self.path.is_dir():
            found = self.path.glob("*/**/*")
            return [f"{m.relative_to(self.path).as_posix()}{'/' * m.is_dir()}" for m in found]
        if not self.path.exists():
            raise UserError(
                f"dataset.root={self.path} does not exist; give a directory or zip file"
            )
        return self._zip().namelist()

    def read(self, member: str) -> Image.Image:
        """Decode one image as RGB.

        Raises:
            UserError: It cannot be read.
        """
        try:
            if self.path.is_dir():
                data = (self.path / member).read_bytes()
            else:
                data = self._zip().read(member)
            return Image.open(io.BytesIO(data)).convert("RGB")
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{self.path}: the image {member} cannot be read "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
                f"replace or remove it"
            ) from error

    def _zip(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened_by != os.getpid():
            try:
                self._opened, self._opened_by = zipfile.ZipFile(self.path), os.getpid()
            except (OSError, zipfile.BadZipFile) as error:
                raise UserError(
                    f"dataset.root={self.path} is not a readable zip archive: {error}"
                ) from error
        return self._opened

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_opened": None, "_opened_by": None}


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
        image = self.archive.read(self.members[index])
        if image.size != (self.size, self.size):
            if not self.resizes:
                raise _of_another_size(self.archive, self.members[index], image)
            from torchvision.transforms.v2 import functional as F

            image = F.center_crop(
                F.resize(image, [self.size], antialias=True), [self.size, self.size]
            )
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

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


def describe(options: Options) -> DatasetInfo:
    """Describe the data set from its index and its first image; raises as `load` does."""
    archive = Archive(Path(options.root))
    index = _index(archive)
    size = options.image_size or _native_size(archive, index)
    return DatasetInfo((3, size, size), tuple(index["train"]))


def load(options: Options, seed: int) -> Dataset:
    """Load an image folder.

    Raises:
        UserError: It does not exist, is damaged, lacks a split, has an empty class, classes that
            differ between splits, or an image that cannot be read.
    """
    archive = Archive(Path(options.root))
    index = _index(archive)
    info = describe(options)
    size = info.input_shape[1]
    sources = {}
    for split, classes in index.items():
        members = [m for name in info.class_names for m in classes[name]]
        labels = [k for k, name in enumerate(info.class_names) for _ in classes[name]]
        resizes = options.image_size is not None
        sources[split] = FileSource(archive, members, torch.tensor(labels), size, resizes)
    name = Path(options.root).name
    train, test, val = sources["train"], sources["test"], sources.get("val")
    return assemble(name, info, train, test, options, seed, val)


def _index(archive: Archive) -> Index:
    """Collect split -> class -> sorted members, and check them."""
    index: dict[str, defaultdict[str, list[str]]] = {}
    for member in archive.members():
        parts = PurePosixPath(member).parts
        hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
        if hidden or len(parts) < 2 or parts[0] not in SPLITS:
            continue
        is_class = len(parts) == 2 and member.endswith("/")
        is_image = len(parts) == 3 and PurePosixPath(member).suffix.lower() in EXTENSIONS
        if is_class or is_image:
            images = index.setdefault(parts[0], defaultdict(list))[parts[1]]
            images.extend([member] * is_image)
    _check(archive, index)
    return {
        split: {name: sorted(index[split][name]) for name in sorted(index[split])}
        for split in SPLITS
        if split in index
    }


def _check(archive: Archive, index: dict[str, defaultdict[str, list[str]]]) -> None:
    for split in ("train", "test"):
        if split not in index:
            raise UserError(
                f"{archive.path} has no {split} split; images are expected as "
                f"{split}/CLASS/NAME.png (or .jpg, .jpeg, .webp)"
            )
    for split, classes in index.items():
        for name, images in classes.items():
            if not images:
                raise UserError(f"{archive.path}: the class {split}/{name} has no images")
    for split, classes in index.items():
        odd = sorted(set(classes) ^ set(index["train"]))
        if odd:
            raise UserError(f"{archive.path}: train and {split} differ in the class {odd[0]!r}")


def _native_size(archive: Archive, index: Index) -> int:
    first = next(iter(index["train"].values()))[0]
    width, height = archive.read(first).size
    if width != height:
        raise _of_another_size(archive, first, archive.read(first))
    return width


def _of_another_size(archive: Archive, member: str, image: Image.Image) -> UserError:
    width, height = image.size
    return UserError(
        f"{archive.path}: the image {member} has {width} x {height} pixels; where images are not "
        "all square and alike, set dataset.image_size to the size that the network shall see"
    )
