"""MNIST through torchvision, at its own 28 x 28 pixels."""

from __future__ import annotations

from dataclasses import dataclass

from chanprune.components import dataset
from chanprune.data.dataset import Border
from chanprune.data.torchvision_sets import TorchvisionSet


@dataset("mnist")
@dataclass(frozen=True, kw_only=True)
class Mnist(TorchvisionSet):
    """MNIST, one channel; neither cropped nor mirrored, as in Network Slimming."""

    title = "MNIST"
    kind = "MNIST"
    class_names = tuple("0123456789")
    channels = 1
    size = 28

    pad: Border = 0
    flip: bool = False
