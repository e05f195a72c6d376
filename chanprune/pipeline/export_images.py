"""The images that an exported file is checked on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from chanprune import data
from chanprune.data.source import Source
from chanprune.pipeline.exporting import Images
from chanprune.processes.errors import UserError

MOST = 256


def images_of(config: Mapping[str, Any] | None, shape: tuple[int, int, int]) -> Images:
    """Take images of a run's data set, evenly over its classes; or make random ones.

    Args:
        config: The run's configuration; None: there is no data set.
        shape: (C, H, W) that the network takes.
    """
    if config is None:
        return random_images(shape, "no data set goes with it")
    try:
        dataset = data.load(seed=config["seed"], **config["dataset"])
        if not dataset.has_labels or dataset.info.input_shape != shape:
            raise UserError("its data set has no such images")
        pixels, shown = (_evenly(dataset.splits[name]) for name in ("test", "train"))
    except UserError as error:
        return random_images(shape, str(error))
    return Images(pixels, f"{len(pixels)} test images of {dataset.name}", shown)


def _evenly(split: Source) -> Tensor:
    """Return some images (N, C, H, W) of a split, evenly over its classes."""
    order = split.labels.argsort(stable=True)  # a class after the other
    chosen = order[torch.linspace(0, len(order) - 1, min(MOST, len(order))).long()]
    return torch.stack([split.read(int(index)) for index in chosen])


def random_images(shape: tuple[int, int, int], why: str) -> Images:
    """Make images of random pixels, and say why these are taken."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (MOST // 4, *shape), dtype=torch.uint8, generator=generator)
    return Images(pixels, f"{len(pixels)} images of random pixels ({why})")
