"""CIFAR-10, CIFAR-100, SVHN and Fashion-MNIST through torchvision, downloaded on first use."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chanprune.data.dataset import Dataset, DatasetInfo, Options, assemble
from chanprune.data.source import MemorySource
from chanprune.processes.errors import UserError

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
    "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo "
    "keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse "
    "mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy "
    "porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television "
    "tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"


@dataclass(frozen=True)
class TorchvisionSet:
    """One of torchvision's data sets.

    Attributes:
        title: As its authors write it.
        kind: Name of torchvision's class.
        class_names: In the order of the labels.
        channels: Of its images.
    """

    title: str
    kind: str
    class_names: tuple[str, ...]
    channels: int = 3

    def describe(self, options: Options) -> DatasetInfo:
        """Describe the data set; its images are 32 x 32 unless another size is asked for."""
        size = options.image_size or 32
        return DatasetInfo((self.channels, size, size), self.class_names)

    def load(self, options: Options, seed: int) -> Dataset:
        """Load the data set.

        Raises:
            UserError: Its files are neither there nor to be had.
        """
        info = self.describe(options)
        train, test = (
            self._source(options.root, is_train).resized(info.input_shape[1])
            for is_train in (True, False)
        )
        return assemble(self.title, info, train, test, options, seed)

    def _source(self, root: str, is_train: bool) -> MemorySource:
        split = {"split": "train" if is_train else "test"} if self.title == "SVHN" else {}
        arguments: dict[str, Any] = split or {"train": is_train}
        opened = self._open(root, arguments)
        images = np.asarray(opened.data)
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[-1] == 3:
            images = images.transpose(0, 3, 1, 2)
        labels = opened.labels if self.title == "SVHN" else opened.targets
        return MemorySource(
            torch.from_numpy(np.ascontiguousarray(images)), torch.as_tensor(labels).long()
        )

    def _open(self, root: str, arguments: dict[str, Any]) -> Any:
        """Open the files; download them if they are missing."""
        from torchvision import datasets

        make = getattr(datasets, self.kind)
        try:
            return make(root, download=False, **arguments)
        except Exception:  # noqa: BLE001 - torchvision raises differently for each data set
            pass
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return make(root, download=True, **arguments)
        except Exception as error:
            raise UserError(
                f"{self.title} is not in {Path(root).resolve()} and cannot be downloaded "
                f"({str(error).strip().splitlines()[0]}); put its files there, or set dataset.root"
            ) from error


TORCHVISION_SETS = {
    "cifar10": TorchvisionSet("CIFAR-10", "CIFAR10", tuple(CIFAR10.split())),
    "cifar100": TorchvisionSet("CIFAR-100", "CIFAR100", tuple(CIFAR100.split())),
    "svhn": TorchvisionSet("SVHN", "SVHN", tuple("0123456789")),
    "fashion_mnist": TorchvisionSet(
        "Fashion-MNIST", "FashionMNIST", tuple(FASHION.split(",")), channels=1
    ),
}
