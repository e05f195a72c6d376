"""Networks by name. They are plain PyTorch and know nothing about pruning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from chanprune.models.vgg import STAGES, build_vgg

MODELS: dict[str, Callable[..., nn.Module]] = {name: partial(build_vgg, name) for name in STAGES}


def build(
    name: str, *, num_classes: int, in_channels: int, image_size: int, **options: Any
) -> nn.Module:
    """Build a network.

    Args:
        name: A key of `MODELS`.
        num_classes: Number of classes.
        in_channels: Channels of the image.
        image_size: Height and width of the image in pixels.
        options: What the architecture takes besides (width, head, ...).

    Raises:
        UserError: The network cannot take such images.
    """
    return MODELS[name](
        num_classes=num_classes, in_channels=in_channels, image_size=image_size, **options
    )


def architecture(
    model: Mapping[str, Any], input_shape: Sequence[int], num_classes: int
) -> dict[str, Any]:
    """Return the arguments of `build` for a model's options and images of shape (C, H, W)."""
    in_channels, image_size, _ = input_shape
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return {**model, **sizes}
