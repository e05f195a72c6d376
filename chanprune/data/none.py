"""No data: the shape of an image and the number of classes are all that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from chanprune.components import Ge, Le, dataset
from chanprune.data.dataset import Dataset, DatasetInfo, Loader, unlabelled

SIZE = 224
Channels = Annotated[int, Ge(1), Le(4096)]
Classes = Annotated[int, Ge(1), Le(2**20)]


@dataset("none")
@dataclass(frozen=True, kw_only=True)
class NoImages(Loader):
    """No images: channels are chosen by their weights alone, and nothing is measured.

    Attributes:
        image_size: Height and width in pixels; null: 224.
        channels: Of an image.
        num_classes: What the network tells apart.
        mean: What is taken off an image before the network sees it, per channel, of values in
            [0, 1]; null: ImageNet's, or 0.5 where there are not three channels.
        std: What it is divided by then, likewise.
    """

    channels: Channels = 3
    num_classes: Classes = 1000

    def describe(self) -> DatasetInfo:
        """Describe what the network takes and puts out."""
        size = self.image_size or SIZE
        names = tuple(str(number) for number in range(self.num_classes))
        return DatasetInfo((self.channels, size, size), names)

    def load(self, seed: int) -> Dataset:
        """Return a data set without splits."""
        return unlabelled("no data", self.describe(), {}, self)
