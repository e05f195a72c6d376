"""Images without labels, as they lie in a folder or zip archive."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from chanprune.components import FilePath, dataset
from chanprune.data.archive import Archive
from chanprune.data.dataset import Dataset, FileLoader, unlabelled
from chanprune.data.folder_index import EXTENSIONS
from chanprune.data.imagefolder import FileSource
from chanprune.data.none import NoImages
from chanprune.processes.errors import UserError


@dataset("images")
@dataclass(frozen=True, kw_only=True)
class Images(NoImages, FileLoader):
    """Images of any size, below a folder or in a zip archive, without labels.

    They serve statistics and least squares; no accuracy is measured.

    Attributes:
        root: The folder or archive; it is not unpacked.
        image_size: Height and width in pixels that images are resized to; null: 224.
        channels: Of an image; 3.
    """

    root: FilePath

    def load(self, seed: int) -> Dataset:
        """Index the images.

        Raises:
            UserError: There is none, or the folder cannot be read.
        """
        archive, info = Archive(Path(self.root)), self.describe()
        if info.input_shape[0] != 3:
            raise UserError(f"dataset.channels={info.input_shape[0]}: images are read with 3")
        members = sorted(m for m in archive.members() if Path(m).suffix.lower() in EXTENSIONS)
        if not members:
            raise UserError(f"dataset.root={self.root}: no images are there")
        labels = torch.full((len(members),), -1)
        source = FileSource(archive, members, labels, info.input_shape[1], resizes=True)
        number = min(len(members), max(1, round(self.share * len(members))))
        order = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed))
        chosen = source.subset(order[:number].sort().values)
        made = unlabelled(Path(self.root).name, info, {"train": chosen}, self)
        return replace(made, notes=(f"{number} images without labels",))
