"""The embedded data set: scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, enlarged."""

from __future__ import annotations

import torch

from chanprune.data.dataset import Dataset, DatasetInfo, Options, assemble
from chanprune.data.source import MemorySource, stratified_split

NATIVE_SIZE = 32
TEST_SHARE = 0.2
TEST_SEED = 0
CLASS_NAMES = tuple("0123456789")


def describe(options: Options) -> DatasetInfo:
    """Describe the data set: one channel, ten classes."""
    size = options.image_size or NATIVE_SIZE
    return DatasetInfo((1, size, size), CLASS_NAMES)


def load(options: Options, seed: int) -> Dataset:
    """Load the digits; the same fifth of them is the test set whatever the seed."""
    from sklearn.datasets import load_digits

    info = describe(options)
    digits = load_digits()
    images = (torch.from_numpy(digits.images)[:, None] * (255 / 16)).round().byte()
    labels = torch.from_numpy(digits.target).long()
    everything = MemorySource(images, labels).resized(info.input_shape[1])
    train, test = stratified_split(labels, TEST_SHARE, TEST_SEED, CLASS_NAMES)
    return assemble(
        "digits", info, everything.subset(train), everything.subset(test), options, seed
    )
