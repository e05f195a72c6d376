"""Networks of torchvision and timm, with or without their weights."""

from __future__ import annotations

import copy
import difflib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.channels.refusals import first_line
from chanprune.components import FilePath, Text, model
from chanprune.models.weights import (
    SUFFIXES,
    State,
    first_convolution,
    put_weights,
    read_weights,
)
from chanprune.processes.errors import UserError

# Auxiliary heads are losses of their own, which the training of all networks alike has no room for.
OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


@model("torchvision", "timm")
def build_from_library(
    library: str,
    name: Text,
    *,
    num_classes: int,
    in_channels: int,
    weights: FilePath | None = None,
) -> nn.Module:
    """Build a network of torchvision or timm with random weights, without auxiliary heads.

    Args:
        library: "torchvision" or "timm".
        name: The library's name of the network.
        num_classes: Number of classes.
        in_channels: Channels of the image.
        weights: Null: random; DEFAULT, IMAGENET1K_V1, ..., a tag; or a file (.safetensors, .pth).
            They are put in afterwards, see `load_weights`.

    Raises:
        UserError: There is no such network, or timm is not installed.
    """
    if library == "timm":
        timm = _import_timm()
        _check_name(library, name, timm.list_models())
        network: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=in_channels)
        return network
    import torchvision

    _check_name(library, name, torchvision.models.list_models(module=torchvision.models))
    network = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **OPTIONS.get(name, {})
    )
    if in_channels != 3:
        _widen_stem(network, in_channels)
    return network


def load_weights(model: nn.Module, library: str | None, name: str, weights: str) -> list[str]:
    """Put trained weights into a network.

    Args:
        model: The network, changed in place.
        library: "torchvision" or "timm", where it is from there.
        name: What it is called, there or here.
        weights: A file (.safetensors, .pth, .pt), or what the library calls its weights: for
            torchvision DEFAULT, IMAGENET1K_V1, ...; for timm the tag, or DEFAULT.

    Returns:
        The layers that keep their random start: the classifiers, where the number of classes is
        another, and the first convolution, where the number of the image's channels is.

    Raises:
        UserError: The weights are not to be had, or do not fit.
    """
    if library is None or weights.endswith(SUFFIXES) or Path(weights).exists():
        state: State = read_weights(Path(weights))
    else:
        state = _fetch(library, name, weights)
    return put_weights(model, state, f"model.weights={weights}", name)


def _fetch(library: str, name: str, weights: str) -> dict[str, Tensor]:
    try:
        if library == "timm":
            tag = name if weights == "DEFAULT" else f"{name}.{weights}"
            fetched: dict[str, Tensor] = (
                _import_timm().create_model(tag, pretrained=True).state_dict()
            )
            return fetched
        import torchvision

        known: Any = torchvision.models.get_model_weights(name)
        if weights != "DEFAULT" and weights not in known.__members__:
            listed = ", ".join(["DEFAULT", *known.__members__])
            raise UserError(
                f"model.weights={weights}: neither a file nor one of {listed} (for {name})"
            )
        state: dict[str, Tensor] = known[weights].get_state_dict(progress=True, check_hash=True)
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"model.weights={weights}: {library} could not fetch them ({first_line(error)}); "
            f"without a network, give a file: model.weights=<file{SUFFIXES[0]}>"
        ) from error
    return state


def _check_name(library: str, name: str, known: list[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {len(known)} others"
    raise UserError(f"model.name={name}: {library} has no such network; {hint}")


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError("model=timm needs the package timm: pip install timm") from error
    return timm


def _widen_stem(model: nn.Module, in_channels: int) -> None:
    """Let the first convolution read another number of image channels."""
    name = first_convolution(model)
    old = model.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    new = copy.deepcopy(old)
    new.in_channels = in_channels
    shape = (old.out_channels, in_channels, *old.kernel_size)
    new.weight = nn.Parameter(torch.empty(shape, device=old.weight.device))
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    model.set_submodule(name, new)
