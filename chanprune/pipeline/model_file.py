"""The product of a run: model.safetensors, and model.json with all but the tensors.

A compact network is loaded from its architecture, its plan and its tensors; no code is unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from chanprune.channels import (
    ChannelGraph,
    Counts,
    Fidelity,
    Plan,
    State,
    UnsupportedNetwork,
    channels_last,
    compact,
    count,
    is_folded,
)
from chanprune.channels import fold as fold_norms
from chanprune.components import find, imported, in_use, is_own, refuse_unvouched, use, vouch
from chanprune.data.image import fit, pixels
from chanprune.files.tensors import write_tensors
from chanprune.files.writing import write_json
from chanprune.pipeline.restore import LEVEL, restore
from chanprune.processes.errors import UserError
from chanprune.records.schemas import FORMAT, Model, read_model
from chanprune.rewiring import Form

if TYPE_CHECKING:
    from torchvision.transforms import v2

DESCRIPTION = "chanprune_description"
FOLDED_ALREADY = "the batch norms of this network are folded"


@dataclass(frozen=True)
class Preprocessing:
    """What turns an image into the network's input, as training did.

    Attributes:
        input_shape: (C, H, W).
        mean: Per channel, of values in [0, 1].
        std: Per channel, of values in [0, 1].
    """

    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def transform(self) -> v2.Compose:
        """Return a transform from an image, see `pixels`, to the network's input.

        It takes a PIL image or a uint8 tensor (..., C, H, W) of any size, and returns a normalised
        float tensor of `input_shape`, with the leading dimensions of a tensor.
        """
        from torchvision.transforms import v2

        channels, height, _ = self.input_shape
        return v2.Compose(
            [
                partial(pixels, channels=channels),
                partial(fit, size=height),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(self.mean), list(self.std)),
            ]
        )


def save_model(
    run_dir: Path,
    model: nn.Module,
    architecture: Mapping[str, Any],
    plan: Plan,
    preprocessing: Preprocessing,
    class_names: tuple[str, ...],
    counts: Counts,
    form: Form | None = None,
    statistics: Mapping[float, State] | None = None,
) -> None:
    """Write the compact network.

    Args:
        run_dir: Where model.safetensors and model.json go.
        model: The compact network.
        architecture: Arguments of `models.build` for the original network.
        plan: What the compact network keeps of the original.
        preprocessing: What it expects of an image.
        class_names: One per logit.
        counts: Its parameters and MACs.
        form: What training made of the original network, see `rewiring.settle`.
        statistics: Fidelity level -> batch-norm statistics of its own, see `Fidelity`.
    """
    tensors = dict(model.state_dict())
    for level, own in (statistics or {}).items():
        tensors |= {f"{LEVEL}{level!r}:{name}": tensor for name, tensor in own.items()}
    write_tensors(run_dir / "model.safetensors", tensors)
    description = {
        "format": FORMAT,
        "architecture": dict(architecture),
        **(form or {}),
        "plan": plan.to_json(),
        "input_shape": list(preprocessing.input_shape),
        "class_names": list(class_names),
        "preprocess": {"mean": list(preprocessing.mean), "std": list(preprocessing.std)},
        "counts": {"params": counts.params, "macs": counts.macs},
    }
    if _is_own(architecture):
        description["components"] = in_use()
    write_json(run_dir / "model.json", description)


def save_loaded(folder: Path, model: nn.Module) -> Counts | None:
    """Write what `load` returned of a run, trained further or not; None if it did not return it.

    Returns:
        What it counts.
    """
    description = getattr(model, DESCRIPTION, None)
    fidelity = getattr(model, "fidelity", None)
    if not isinstance(description, Model):
        return None
    counts = count(model, description.input_shape)
    images = description.preprocess
    save_model(
        folder,
        model,
        description.architecture.model_dump(exclude_none=True),
        Plan(description.plan),
        Preprocessing(description.input_shape, tuple(images.mean), tuple(images.std)),
        tuple(description.class_names),
        counts,
        description.form,
        fidelity.statistics if isinstance(fidelity, Fidelity) else {},
    )
    return counts


def _is_own(architecture: Mapping[str, Any]) -> bool:
    """Tell whether a network is one of the user's own components, which is imported then.

    Raises:
        UserError: It cannot be imported.
    """
    found = find("model", architecture.get("library") or architecture["name"])
    return found is not None and is_own(found) and imported(found) is not None


def load(
    path: str | Path,
    components: str | None = None,
    factory: Callable[..., nn.Module] | str | None = None,
    fold: bool = False,
) -> nn.Module:
    """Load a compact network in eval mode, with its filters channels-last.

    Args:
        path: A run directory, or the model.json or model.safetensors in it.
        components: The module, file or folder of the user's own that has the network's code, if it
            is not one of this package's. It is imported, so it must be given here; what the files
            in `path` say of it is not enough.
        factory: What makes the whole network, where it is one's own (model=custom): the class or
            function, or its place as it was given. It is called, so it must be given here too.
        fold: Fold batch norms into the layers beside them, see `channels.fold`: the same outputs,
            faster, for inference alone.

    Returns:
        The network, with `input_shape` (C, H, W), `class_names`, and `preprocess`, which turns a
        PIL image or uint8 tensor (C, H, W) into its input, see `pixels`.
        `set_fidelity(level)` lets it compute with the first share of its channels, which is of use
        after multi-fidelity fine-tuning; `extract` makes that smaller network stand alone. A folded
        network has one level, and cannot be trained or saved.

    Raises:
        UserError: There is no such model, or it is damaged.
    """
    folder = Path(path)
    folder = folder if folder.is_dir() else folder.parent
    description = read_model(folder)
    if components is not None:
        use(components)
    architecture = description.architecture
    if factory is not None:
        target = str((architecture.model_extra or {}).get("target"))
        vouch(target if callable(factory) else factory, factory if callable(factory) else None)
    made_by = (architecture.model_extra or {}).get("target")
    if architecture.name == "custom":
        refuse_unvouched(str(made_by))
    if not _is_own(architecture.model_dump()) and description.components:
        raise UserError(
            f"{folder} holds {architecture.name}, one of components={description.components}; give "
            "that too, if you know what is in it"
        )
    model, graph, statistics = restore(description, folder / "model.safetensors")
    model = channels_last(model.eval())
    if fold:
        model = for_inference(model, description.input_shape)
    else:
        fidelity = Fidelity(model, graph, statistics)
        model.fidelity = fidelity  # type: ignore[assignment]
        model.set_fidelity = fidelity.set  # type: ignore[assignment]
        object.__setattr__(model, DESCRIPTION, description)
    _note_images(model, description)
    return model


def for_inference(model: nn.Module, example: Any) -> nn.Module:
    """Return a network whose batch norms are folded, and which says so where that is in the way.

    Args:
        model: The network, which is not changed.
        example: What it is called with.

    Raises:
        UserError: It puts out something else then.
    """
    try:
        folded = fold_norms(model, example).model
    except UnsupportedNetwork as error:
        raise UserError(f"fold=True is not possible: {error}") from error
    folded.set_fidelity = _refuse_levels  # type: ignore[assignment]
    return folded


def _refuse_levels(level: float) -> None:
    raise ValueError(f"fidelity {level}: {FOLDED_ALREADY}; load it without fold=True for levels")


def _note_images(model: nn.Module, description: Model) -> None:
    """Let a network know its images and classes."""
    images = description.preprocess
    preprocessing = Preprocessing(description.input_shape, tuple(images.mean), tuple(images.std))
    model.input_shape = description.input_shape  # type: ignore[assignment]
    model.class_names = tuple(description.class_names)  # type: ignore[assignment]
    model.preprocessing = preprocessing  # type: ignore[assignment]
    # The transform is a module; as one of the network's, an nn.Sequential would run it.
    object.__setattr__(model, "preprocess", preprocessing.transform())


def original(options: Mapping[str, Any]) -> tuple[dict[str, Any], Plan]:
    """Return the options of the network that plans refer to, and what a model keeps of it.

    Args:
        options: Of a model, as configured; model=compact names a run.

    Raises:
        UserError: There is no such run, or its channels were re-allocated.
    """
    if options["name"] != "compact":
        return dict(options), Plan({})
    description = read_model(Path(options["run"]))
    if any(description.form.values()):
        raise UserError(
            f"model.run={options['run']}: that network reads copies of channels, whose shifts were "
            "learned; there is no such network before training"
        )
    return description.architecture.model_dump(exclude_none=True), Plan(description.plan)


def compact_afresh(
    model: nn.Module, graph: ChannelGraph, plan: Plan
) -> tuple[nn.Module, ChannelGraph]:
    """Return the compact network as if it were initialised as such.

    Filters are drawn with a variance of 2 / (k^2 C_out) in all networks of ours, so that those that
    a plan keeps grow by the square root of what it leaves of the C_out.

    Args:
        model: The whole network, initialised.
        graph: Its channel graph.
        plan: What the compact network keeps.
    """
    small = compact(model, graph, plan, check=False)
    with torch.no_grad():
        for name, module in small.model.named_modules():
            if isinstance(module, nn.Conv2d):
                whole = model.get_submodule(name)
                assert isinstance(whole, nn.Conv2d)
                module.weight.mul_(math.sqrt(whole.out_channels / module.out_channels))
    return small.model, small.graph


def extract(model: nn.Module, level: float) -> nn.Module:
    """Return the network that a loaded one is at a fidelity level, standing alone.

    Args:
        model: What `load` returned.
        level: Share of the channels, in (0, 1].

    Raises:
        ValueError: The level is out of range, or the network does not come from `load`.
    """
    if is_folded(model):
        raise ValueError(f"{FOLDED_ALREADY}; load it without fold=True, extract, then fold")
    fidelity = getattr(model, "fidelity", None)
    if not isinstance(fidelity, Fidelity):
        raise ValueError("extract takes a network that chanprune.load returned")
    small = fidelity.extract(level)
    for name in ("fidelity", "set_fidelity"):
        delattr(small, name)
    return small
