"""CIFAR-10, CIFAR-100, SVHN and Fashion-MNIST through torchvision, downloaded on first use."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from chanprune.components import dataset
from chanprune.data.dataset import Dataset, DatasetInfo, FileLoader, assemble
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


@dataclass(frozen=True, kw_only=True)
class TorchvisionSet(FileLoader):
    """One of torchvision's data sets: a subclass fills in what is its own.

    Attributes:
        title: As its authors write it.
        kind: Name of torchvision's class.
        class_names: In the order of the labels.
        channels: Of its images.
        size: Height and width of its images, unless another size is asked for.
        by_split: Whether torchvision's class takes split="train", not train=True.
    """

    title: ClassVar[str]
    kind: ClassVar[str]
    class_names: ClassVar[tuple[str, ...]]
    channels: ClassVar[int] = 3
    size: ClassVar[int] = 32
    by_split: ClassVar[bool] = False

    def describe(self) -> DatasetInfo:
        """Describe the data set without its files."""
        size = self.image_size or self.size
        return DatasetInfo((self.channels, size, size), self.class_names)

    def load(self, seed: int) -> Dataset:
        """Load the data set.

        Raises:
            UserError: Its files are neither there nor to be had.
        """
        info = self.describe()
        train, test = (
            self._source(is_train).resized(info.input_shape[1]) for is_train in (True, False)
        )
        return assemble(self.title, info, train, test, self, seed)

    def _source(self, is_train: bool) -> MemorySource:
        split = {"split": "train" if is_train else "test"}
        opened = self._open(split if self.by_split else {"train": is_train})
        images = np.asarray(opened.data)
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[-1] == 3:
            images = images.transpose(0, 3, 1, 2)
        labels = opened.targets if hasattr(opened, "targets") else opened.labels
        return MemorySource(
            torch.from_numpy(np.ascontiguousarray(images)), torch.as_tensor(labels).long()
        )

    def _open(self, arguments: dict[str, Any]) -> Any:
        """Open the files; download them if they are missing."""
        from torchvision import datasets

        make = getattr(datasets, self.kind)
        try:
            return make(self.root, download=False, **arguments)
        except Exception:  # noqa: BLE001 - torchvision raises differently for each data set
            pass
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return make(self.root, download=True, **arguments)
        except Exception as error:
            raise UserError(
                f"{self.title} is not in {Path(self.root).resolve()} and cannot be downloaded "
                f"({str(error).strip().splitlines()[0]}); put its files there, or set dataset.root"
            ) from error


@dataset("cifar10")
class Cifar10(TorchvisionSet):
    """CIFAR-10."""

    title = "CIFAR-10"
    kind = "CIFAR10"
    class_names = tuple(CIFAR10.split())


@dataset("cifar100")
class Cifar100(TorchvisionSet):
    """CIFAR-100."""

    title = "CIFAR-100"
    kind = "CIFAR100"
    class_names = tuple(CIFAR100.split())


@dataset("svhn")
@dataclass(frozen=True, kw_only=True)
class Svhn(TorchvisionSet):
    """SVHN, without the extra images; not mirrored, as that is no digit."""

    title = "SVHN"
    kind = "SVHN"
    class_names = tuple("0123456789")
    by_split = True

    flip: bool = False


@dataset("fashion_mnist")
class FashionMnist(TorchvisionSet):
    """Fashion-MNIST, one channel, enlarged from 28 to 32 pixels."""

    title = "Fashion-MNIST"
    kind = "FashionMNIST"
    class_names = tuple(FASHION.split(","))
    channels = 1
