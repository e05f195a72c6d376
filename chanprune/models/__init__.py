"""Networks by name. They are plain PyTorch and know nothing about pruning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from chanprune.components import Registry, find, in_use, make
from chanprune.models.library import load_weights
from chanprune.processes.errors import UserError

__all__ = ["MODELS", "architecture", "build", "build_skeleton", "load_weights", "skeleton_of"]

MODELS = Registry("model")


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
    component = find("model", library or name)
    if component is None:
        own = "" if in_use() else "; components=... adds your own"
        raise UserError(f"unknown model {library or name!r}; known: {', '.join(MODELS)}{own}")
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    given = {"name": name, "library": library, **sizes}
    wanted = {*component.sizes, *component.options}
    taken = {key: value for key, value in given.items() if key in wanted}
    made = make(component, **taken, **options)
    if not isinstance(made, nn.Module):
        raise UserError(f"{component.path}: {component.defined} returns no nn.Module")
    return made


def build_skeleton(**architecture: Any) -> nn.Module:
    """Build a network on the meta device, without values; see `build`."""
    if architecture.get("library") is None and architecture["name"] != "custom":
        with torch.device("meta"):
            return build(**architecture)
    return skeleton_of(partial(build, **architecture))


def skeleton_of(make: Callable[[], nn.Module]) -> nn.Module:
    """Make a network on the meta device; with values first where it computes with them."""
    try:
        with torch.device("meta"):
            return make()
    except (RuntimeError, UserError):
        return make().to("meta")


def architecture(
    model: Mapping[str, Any], input_shape: Sequence[int], num_classes: int
) -> dict[str, Any]:
    """Return the arguments of `build` for a model's options and images of shape (C, H, W)."""
    in_channels, image_size, _ = input_shape
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    given = {k: v for k, v in model.items() if k != "weights" and v is not None}
    return {**given, **sizes}
