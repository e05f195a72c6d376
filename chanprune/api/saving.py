"""Save a compact network of one's own, and load it where its code is."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from chanprune import channels
from chanprune.api.card import write_card
from chanprune.api.origin import Origin, note_origin, origin_of
from chanprune.api.pruning import unwrapped
from chanprune.api.shapes import as_example, as_json
from chanprune.channels import Counts, Plan, count
from chanprune.channels.refusals import first_line
from chanprune.channels.shrunk import put_tensor
from chanprune.components import factory_of, vouch
from chanprune.files.digest import file_digest
from chanprune.files.tensors import write_tensors
from chanprune.files.writing import make_folder, write_json
from chanprune.models import skeleton_of
from chanprune.pipeline import model_file
from chanprune.pipeline.model_file import FOLDED_ALREADY, for_inference, save_loaded
from chanprune.pipeline.restore import compare, read_header, read_tensors, refuse_monsters
from chanprune.processes.errors import UserError
from chanprune.records.schemas import FORMAT, Made, read_made

HUB = "hf://"
Factory = Callable[..., nn.Module]


def save(
    small: nn.Module,
    folder: str | Path,
    factory: Factory | str | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Save a compact network: model.safetensors, model.json and a model card, README.md.

    What makes the whole network is recorded by its place and called again by `load`, which cuts it
    as the plan says. It is tried here: what cannot be loaded is not saved. No pickle is written.

    Args:
        small: What `compact` returned, or `load`, trained further or not, or a copy of it.
        folder: Where it goes; the layout is that of the Hugging Face hub.
        factory: The class or function that makes the whole network, or "package.module:name". None:
            the network's class.
        options: Its keyword arguments, which JSON can hold.

    Raises:
        UserError: The network is not one that `compact` returned, or cannot be made again.
    """
    small = unwrapped(small)
    if channels.is_folded(small):
        raise UserError(f"{FOLDED_ALREADY}; save the network that load gives without fold=True")
    origin = origin_of(small)
    place = Path(folder)
    if origin is None and (own := save_loaded(place, small)) is not None:
        write_card(place, "", f"{small.input_shape}", own)
        return
    if origin is None:
        raise UserError(
            f"this {type(small).__name__} is nothing that chanprune.compact returned, nor a copy"
        )
    target = factory if isinstance(factory, str) else _place_of(factory or origin.kind)
    vouch(target, factory if callable(factory) else None)
    counts = count(small, origin.example)
    description: dict[str, Any] = {
        "format": FORMAT,
        "target": target,
        "options": dict(options or {}),
        "plan": origin.plan.to_json(),
        "example": as_json(origin.example),
        "counts": {"params": counts.params, "macs": counts.macs},
        "tensors": "",
    }
    _refuse_another(small, Made.model_validate(description), origin)
    make_folder(place)
    write_tensors(place / "model.safetensors", small.state_dict())
    write_card(place, target, f"{origin.example.shape}", counts)
    description["tensors"] = file_digest(place / "model.safetensors")
    write_json(place / "model.json", description)


def load(
    path: str | Path,
    components: str | None = None,
    factory: Factory | str | None = None,
    fold: bool = False,
) -> nn.Module:
    """Load a compact network in eval mode, channels-last: a run's, or one that `save` wrote.

    Args:
        path: A folder that holds model.json and model.safetensors; or hf://USER/NAME, which
            huggingface_hub downloads.
        components: The module, file or folder of the user's own that has a run's network, see
            docs/own_components.md.
        factory: What makes the whole network, where it is one's own: the class or function, or its
            place. It is called, so that it must be given here; what the files say is not enough.
        fold: Fold batch norms into the layers beside them: the same outputs, faster, for inference
            alone, see `chanprune.channels.fold`.

    Returns:
        The network. A run's has `input_shape`, `class_names`, `preprocess` and `set_fidelity`
        besides, see `chanprune.pipeline.model_file.load`.

    Raises:
        UserError: There is no such network, it is damaged, or its code must be given.
    """
    folder = _downloaded(str(path)) if str(path).startswith(HUB) else Path(path)
    folder = folder if folder.is_dir() else folder.parent
    made = read_made(folder)
    if made is None:
        return model_file.load(folder, components, factory, fold)
    if factory is not None:
        given = made.target if callable(factory) else factory
        if given != made.target:
            raise UserError(f"{folder} holds a network made by {made.target}, not by {given}")
        vouch(given, factory if callable(factory) else None)
    try:
        small, _ = _rebuilt(made)
        header = read_header(folder / "model.safetensors")
        kinds = {kind for kind, _ in header.values() if kind is not None and kind.is_floating_point}
        small = small.to(kinds.pop()) if len(kinds) == 1 else small
        compare(small.state_dict(), header)
        if file_digest(folder / "model.safetensors") != made.tensors:
            raise ValueError("model.safetensors is not the file that was written with model.json")
        small.load_state_dict(read_tensors(folder / "model.safetensors"), assign=True)
        _put_buffers(small, made)
    except UserError:
        raise
    except Exception as error:  # what the files say may go wrong anywhere in a network
        reason = first_line(error)
        raise UserError(
            f"the network in {folder} is damaged, or its code changed: {reason}"
        ) from error
    small = channels.channels_last(small.eval())
    return for_inference(small, as_example(made.example)) if fold else small


def _rebuilt(made: Made) -> tuple[nn.Module, Counts]:
    """Make the whole network without values, and cut it."""
    make, example = factory_of(made.target), as_example(made.example)
    whole = skeleton_of(partial(make, **made.options))
    refuse_monsters(whole)
    graph = channels.trace(whole, example)
    small = channels.compact(whole, graph, Plan(made.plan), check=False).model
    note_origin(small, whole, graph, Plan(made.plan))
    return small, count(small, example)


def _put_buffers(small: nn.Module, made: Made) -> None:
    """Take the buffers that no file holds from the whole network, made with values."""
    left = [name for name, buffer in small.named_buffers() if buffer.is_meta]
    if not left:
        return
    whole = factory_of(made.target)(**made.options)
    graph = channels.trace(whole, as_example(made.example))
    own = channels.gather(dict(whole.named_buffers()), graph.cut(Plan(made.plan)))
    for name in left:
        put_tensor(small, name, own[name])


def _refuse_another(small: nn.Module, made: Made, origin: Origin) -> None:
    """Refuse what cannot be made again; raises UserError."""
    how = "give factory=, the class or function that makes the whole network, and its options="
    try:
        again, counts = _rebuilt(made)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{made.target} with {dict(made.options)} fails: {reason}; {how}"
        ) from error
    again = again.to(next((p.dtype for p in small.parameters()), None))
    shapes, wanted = (
        {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}
        for network in (again, small)
    )
    odd = sorted(
        name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name)
    )
    if odd:
        raise UserError(
            f"{made.target} with {dict(made.options)} makes another network: {odd[0]} is "
            f"{shapes.get(odd[0], 'not there')}, here {wanted.get(odd[0], 'not there')}; {how}"
        )
    if counts.macs != made.counts.macs:
        raise UserError(f"{made.target} with {dict(made.options)} makes another network; {how}")


def _place_of(factory: Factory) -> str:
    """Return package.module:name of a function or class; raises UserError."""
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", None)
    found: Any = None
    if module and name and "<" not in name:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part, None)
    if found is not factory:
        raise UserError(
            f"{name or factory} cannot be imported by its name; give a function or class that a "
            'module defines, or "package.module:name"'
        )
    return f"{module}:{name}"


def _downloaded(address: str) -> Path:
    """Download a network from the hub; raises UserError."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f"{address} needs the package huggingface_hub: pip install it") from error
    patterns = ["model.json", "model.safetensors"]
    try:
        return Path(snapshot_download(address.removeprefix(HUB), allow_patterns=patterns))
    except Exception as error:  # the network, the name, the rights
        reason = first_line(error)
        raise UserError(f"{address} could not be downloaded: {reason}") from error
