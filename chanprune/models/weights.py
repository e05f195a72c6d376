"""Weights as people save them, put into a network of torchvision or timm."""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from chanprune.channels.refusals import first_line
from chanprune.processes.errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt")
# What a checkpoint calls the network's tensors, the best first: the average, where there is one.
SECTIONS = (
    *("model_ema", "ema", "state_dict_ema", "ema_state_dict"),
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights"),
    *("module", "backbone", "student", "params"),
)

State = Mapping[str, Tensor]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a file, of a state dict or a checkpoint that holds one.

    Raises:
        UserError: The file is not there, not safe to read, or holds no state dict.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"model.weights={path}: it is no regular file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # of odd pickles, which are refused below
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"model.weights={path}: there is no such file") from error
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(f"model.weights={path} cannot be read: {first_line(error)}") from error
    except Exception as error:  # pickle raises what it likes
        raise UserError(
            f"model.weights={path} hold more than tensors, which is code when it is read; save "
            "model.state_dict()"
        ) from error
    state = _state_in(saved)
    if state is None:
        held = f"; it holds {', '.join(map(str, saved))}" if isinstance(saved, Mapping) else ""
        raise UserError(
            f"model.weights={path}: not a state dict, tensor name -> tensor{held[:200]}; save "
            "model.state_dict()"
        )
    return state


def _state_in(saved: Any) -> dict[str, Tensor] | None:
    """Find the state dict in what was saved, under the names that people give it."""
    if not isinstance(saved, Mapping):
        return None
    if saved and all(isinstance(value, Tensor) for value in saved.values()):
        return {str(name): tensor for name, tensor in saved.items()}
    for section in SECTIONS:
        state = _state_in(saved.get(section))
        if state is not None:
            return state
    return None


def put_weights(model: nn.Module, state: State, source: str, name: str) -> list[str]:
    """Put tensors into a network, but those of its classifiers and stem that are of another size.

    Args:
        model: The network, changed in place.
        state: The tensors by name, which may all begin with the name of a wrapper.
        source: What they are called in messages.
        name: What the network is called in messages.

    Returns:
        The layers that keep their random start.

    Raises:
        UserError: They do not fit.
    """
    own = model.state_dict()
    state = _without_heads_that_are_off(model, _unwrapped(state, own, source))
    misfits = {
        key for key, tensor in state.items() if key in own and tensor.shape != own[key].shape
    }
    replaced = _layers_of_other_size(model, state)
    for key in misfits:
        if key.rpartition(".")[0] not in replaced:
            raise UserError(
                f"{source} do not fit {name}: {key} is {tuple(state[key].shape)}, the network has "
                f"{tuple(own[key].shape)}"
            )
    missing = [key for key in own if key not in state and own[key].dim() > 0]
    unknown = [key for key in state if key not in own]
    if missing or unknown:
        layer, what = (missing[0], "lack") if missing else (unknown[0], "have, unlike the network,")
        also = f", and have {unknown[0]}" if missing and unknown else ""
        raise UserError(f"{source} do not fit {name}: they {what} {layer}{also}")
    fitting = OrderedDict((key, state[key]) for key in state if key not in misfits)
    fitting._metadata = own._metadata  # type: ignore[attr-defined]
    try:
        model.load_state_dict(fitting, strict=False)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{source} do not fit {name}: {first_line(error)}") from error
    return sorted({key.rpartition(".")[0] for key in misfits})


def _unwrapped(state: State, own: State, source: str) -> dict[str, Tensor]:
    """Take off the names of wrappers (DataParallel, torch.compile, Lightning, averages).

    The wrapper's own tensors, such as a count of averaged steps, stand beside the network's.

    Raises:
        UserError: Several networks are in there.
    """
    fitting = sum(key in own for key in state)
    if fitting == len(own):
        return dict(state)
    counts = Counter(_prefix(key, own) for key in state)
    del counts[""]
    (prefix, most), *others = [*counts.most_common(2), ("", 0), ("", 0)][:2]
    if most <= fitting:
        return dict(state)
    if others[0][1] == most:
        raise UserError(
            f"{source} hold several networks, {prefix}* and {others[0][0]}*; save one of them"
        )
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}


def _prefix(key: str, own: State) -> str:
    """Return what stands in front of the longest name of the network's that a name ends with."""
    parts = key.split(".")
    for place in range(len(parts)):
        if ".".join(parts[place:]) in own:
            return "".join(f"{part}." for part in parts[:place])
    return ""


def _without_heads_that_are_off(model: nn.Module, state: State) -> dict[str, Tensor]:
    """Leave out the tensors of parts that the network could have and was built without."""
    off = {key.partition(".")[0] for key in state}
    off = {part for part in off if getattr(model, part, model) is None}
    return {key: tensor for key, tensor in state.items() if key.partition(".")[0] not in off}


def _layers_of_other_size(model: nn.Module, state: State) -> set[str]:
    """Name the first convolution, and the layers that put out the classes."""
    names = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    first = first_convolution(model)
    classifier = names[-1] if names else ""
    rows = _rows(model.state_dict(), classifier), _rows(state, classifier)
    heads = {n for n in names if (_rows(model.state_dict(), n), _rows(state, n)) == rows}
    return {first, *heads}


def _rows(state: State, layer: str) -> int:
    weight = state.get(f"{layer}.weight")
    return 0 if weight is None else len(weight)


def first_convolution(model: nn.Module) -> str:
    """Name the first convolution of a network."""
    return next((n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)), "")
