"""A network of one's own: any callable that returns a module, by its place."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from chanprune.components import Options, Text, factory_of, model
from chanprune.processes.errors import UserError


@model("custom")
def build_custom(
    *,
    target: Text,
    options: Options | None = None,
    num_classes: int,
    in_channels: int,
    image_size: int,
) -> nn.Module:
    """Call a factory of one's own: a class or a function that returns an nn.Module.

    Args:
        target: "package.module:factory", which is looked for where Python imports from and in the
            working directory, or "file.py:factory".
        options: Its keyword arguments. num_classes, in_channels and image_size are passed on as
            well if its signature names them.
        num_classes: Of the data.
        in_channels: Of the data's images.
        image_size: Their height and width.

    Raises:
        UserError: It cannot be called so, or returns something else.
    """
    factory = factory_of(target)
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    try:
        named = set(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        named = set()
    given = {**{key: sizes[key] for key in sorted(named & sizes.keys())}, **(options or {})}
    try:
        made = factory(**given)
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"model.target={target} fails with {_told(given)}: {reason}") from error
    if not isinstance(made, nn.Module):
        raise UserError(f"model.target={target} returns {type(made).__name__}, no nn.Module")
    if any(map(is_lazy, [*made.parameters(), *made.buffers()])):
        raise UserError(
            f"model.target={target} has layers that are not initialised (nn.Lazy...); let the "
            "factory call the network once"
        )
    return made


def _told(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in given.items()) or "no arguments"
