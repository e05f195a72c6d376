"""Networks by name: `torchvision/resnet50`, `timm/resnet10t`, a user's own `module:function`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from chanprune.models import build
from chanprune.processes.errors import UserError

LIBRARIES = ("torchvision", "timm")
IMAGE_SIZE = 224
OWN_SIZE = {"torchvision/inception_v3": 299}


@dataclass(frozen=True)
class Network:
    """A network with random weights; `family` is the file that defines it."""

    model: nn.Module
    family: str
    input_shape: tuple[int, int, int]


def imported(library: str) -> Any:
    """Return a library.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise UserError(
            f"{library} is not installed, so that its networks are not to be had: "
            f"pip install {library}"
        ) from error


def population(library: str) -> list[str]:
    """List the networks that stand for a library.

    Of torchvision these are all that classify. Of timm it is one for each of its files: that with
    the fewest parameters, the first by name of equals, but none of the toys (`test_vit`) for
    timm's own tests. To find those takes minutes.

    Raises:
        UserError: The library is not installed.
    """
    if library == "torchvision":
        return [f"torchvision/{name}" for name in _known("torchvision")]
    files = tqdm(imported("timm").list_modules(), desc="files of timm", disable=None, leave=False)
    return [f"timm/{name}" for file in files for name in smallest(file)]


def smallest(file: str) -> list[str]:
    """Return the network that stands for a file of timm; none of a file that has toys alone."""
    timm = imported("timm")
    names = [name for name in timm.list_models(module=file) if not name.startswith("test_")]
    return [min(names, key=_num_params)] if names else []


def full_name(name: str) -> str:
    """Return a name with its library; torchvision goes first where both have it.

    Raises:
        UserError: There is no such network.
    """
    if ":" in name:
        return name
    library, slash, bare = name.rpartition("/")
    if slash and library not in LIBRARIES:
        raise UserError(f"{name}: {library} is none of {', '.join(LIBRARIES)}")
    for one in [library] if slash else LIBRARIES:
        if bare in _known(one):
            return f"{one}/{bare}"
    known = [other for one in LIBRARIES if library in ("", one) for other in _known(one)]
    near = difflib.get_close_matches(bare, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "your own is module:function"
    raise UserError(f"{name}: no network of {library or ' or '.join(LIBRARIES)}; {hint}")


def build_network(name: str, image_size: int | None = None) -> Network:
    """Build a network with the same random weights each time.

    Args:
        name: As `full_name` returns it.
        image_size: Height and width of its images; None for the network's own.
    """
    torch.manual_seed(0)
    if ":" in name:
        family, _, function = name.partition(":")
        model = getattr(importlib.import_module(family), function)()
    else:
        library, _, bare = name.partition("/")
        size = {"num_classes": 1000, "in_channels": 3, "image_size": image_size or IMAGE_SIZE}
        model = build(bare, library=library, **size)
        family = _builder(library, bare).__module__
    usual = OWN_SIZE.get(name, IMAGE_SIZE)
    told = getattr(model, "default_cfg", None) or {}
    channels, *own = told.get("input_size", (3, usual, usual))
    height, width = [image_size] * 2 if image_size else own
    return Network(model, family.rpartition(".")[2], (channels, height, width))


def _known(library: str) -> list[str]:
    if library == "torchvision":
        torchvision = imported("torchvision")
        names: list[str] = torchvision.models.list_models(module=torchvision.models)
        return names
    return list(imported("timm").list_models())


def _builder(library: str, name: str) -> Callable[..., nn.Module]:
    if library == "torchvision":
        builder: Callable[..., nn.Module] = imported("torchvision").models.get_model_builder(name)
    else:
        builder = imported("timm").model_entrypoint(name)
    return builder


def _num_params(name: str) -> int:
    with torch.device("meta"):
        model = imported("timm").create_model(name)
    return sum(parameter.numel() for parameter in model.parameters())
