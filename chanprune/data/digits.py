"""The embedded data set: scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, enlarged."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chanprune.components import dataset
from chanprune.data.dataset import Border, Dataset, DatasetInfo, Loader, assemble
from chanprune.data.source import MemorySource, stratified_split

SIZE = 32
TEST_SHARE = 0.2
TEST_SEED = 0
CLASS_NAMES = tuple("0123456789")


@dataset("digits")
@dataclass(frozen=True, kw_only=True)
class Digits(Loader):
    """The digits, 32 x 32 unless another size is asked for; not mirrored, as that is no digit."""

    pad: Border = 2
    flip: bool = False

    def describe(self) -> DatasetInfo:
        """Describe the data set: one channel, ten classes."""
        size = self.image_size or SIZE
        return DatasetInfo((1, size, size), CLASS_NAMES)

    def load(self, seed: int) -> Dataset:
        """Load the digits; the same fifth of them is the test set whatever the seed."""
        from sklearn.datasets import load_digits

        info = self.describe()
        digits = load_digits()
        images = (torch.from_numpy(digits.images)[:, None] * (255 / 16)).round().byte()
        labels = torch.from_numpy(digits.target).long()
        everything = MemorySource(images, labels).resized(info.input_shape[1])
        train, test = stratified_split(labels, TEST_SHARE, TEST_SEED, CLASS_NAMES)
        return assemble(
            "digits", info, everything.subset(train), everything.subset(test), self, seed
        )
