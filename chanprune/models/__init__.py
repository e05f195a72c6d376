"""Networks by name. They are plain PyTorch and know nothing about pruning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from chanprune.models import condensenet, vgg
from chanprune.models.densenet import build_densenet
from chanprune.models.library import build_from_library, load_weights
from chanprune.models.preresnet import build_preresnet, build_preresnet50, build_preresnext
from chanprune.models.resnet import build_resnet
from chanprune.models.resnext import build_resnext
from chanprune.processes.errors import UserError

__all__ = ["MODELS", "architecture", "build", "build_skeleton", "load_weights"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(vgg.build_vgg, name) for name in vgg.STAGES},
    **{f"resnet{depth}": partial(build_resnet, depth) for depth in (20, 32, 44, 56, 110)},
    **{f"preresnet{depth}": partial(build_preresnet, depth) for depth in (29, 164)},
    "preresnet50": build_preresnet50,
    "resnext29": build_resnext,
    "preresnext29": build_preresnext,
    **{f"densenet{depth}": partial(build_densenet, depth) for depth in (40, 100)},
    **{
        f"condensenet{depth}": partial(condensenet.build_condensenet, depth)
        for depth in condensenet.STAGES
    },
}


def build(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    library: str | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network.

    Args:
        name: A key of `MODELS`, or the library's name of a network.
        num_classes: Number of classes.
        in_channels: Channels of the image.
        image_size: Height and width of the image in pixels.
        library: "torchvision" or "timm" where the network is not one of ours.
        options: What the architecture takes besides (width, head, ...).

    Raises:
        UserError: There is no such network, or it cannot take such images.
    """
    if library is not None:
        return build_from_library(library, name, num_classes=num_classes, in_channels=in_channels)
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    return MODELS[name](
        num_classes=num_classes, in_channels=in_channels, image_size=image_size, **options
    )


def build_skeleton(**architecture: Any) -> nn.Module:
    """Build a network on the meta device, without values; see `build`."""
    try:
        with torch.device("meta"):
            return build(**architecture)
    except RuntimeError:
        if architecture.get("library") is None:
            raise
        # A few of the libraries' networks compute with tensors how they are built.
        return build(**architecture).to("meta")


def architecture(
    model: Mapping[str, Any], input_shape: Sequence[int], num_classes: int
) -> dict[str, Any]:
    """Return the arguments of `build` for a model's options and images of shape (C, H, W)."""
    in_channels, image_size, _ = input_shape
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return {**{key: value for key, value in model.items() if key != "weights"}, **sizes}
