"""The self-check: a compact network computes what the masked one does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.channels import operations as ops
from chanprune.channels.baked import bake
from chanprune.channels.compared import (
    TOLERANCE,
    CompactionError,
    Inputs,
    compared,
    largest_difference,
    outputs_of,
)
from chanprune.channels.double import InDouble
from chanprune.channels.graph import Cut
from chanprune.channels.modes import copied, keeping_random_numbers
from chanprune.channels.outputs import leaves
from chanprune.channels.reasons import draws, why
from chanprune.channels.rebuilt import rebuilt
from chanprune.channels.shrunk import shrunk


def masked(model: nn.Module, cut: Cut, shares: bool = False) -> nn.Module:
    """Return a copy of the network in which every layer reads zeros in place of dropped channels.

    The shapes stay. This is the reference for `compact`, not a smaller network. What normalises
    over channels reads no dropped channel, as these channels all stay.

    Args:
        model: The network; it is not changed.
        cut: What is dropped.
        shares: The copy has the network's own tensors.
    """
    keep = torch.from_numpy(cut.keep)
    reference = copied(bake(model, cut.before.baked), shares)
    if cut.before.is_exported:
        reference = rebuilt(reference, cut.before)
    for name, layer in cut.before.layers.items():
        dropped = ~keep[torch.from_numpy(layer.inputs)]
        if layer.kind in ("conv", "linear") and dropped.any():
            module = reference.get_submodule(name)
            hook = partial(_without, dropped, layer.axis)
            module.register_forward_pre_hook(hook, with_kwargs=True)
    return reference


def _without(
    dropped: Tensor, axis: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Put zeros in place of the channels (C,) that are dropped."""
    images, *others = (*args, *kwargs.values())
    shape = [1] * images.dim()
    shape[axis] = len(dropped)
    return (images.masked_fill(dropped.to(images.device).view(shape), 0), *others), {}


def self_check(model: nn.Module, cut: Cut) -> float:
    """Compare compact and masked network on random images; return the largest difference.

    In a network that was never trained the batch norms' initial statistics let the signal die away,
    and branches that are scaled by zero are not seen at all. So the comparison is made again with
    lively parameters and the statistics of the images: a compaction that is right is right for any
    values. The network is held once more, in float64.

    Raises:
        CompactionError: An output differs, or is another kind of thing.
    """
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    images = cut.before.example.filled(normal, torch.float64, _device(model))
    with InDouble(), torch.no_grad(), keeping_random_numbers():
        if not cut.before.trains_alike:
            _check_train_mode(copied(model, dtype=torch.float64).train(), cut, images)
        whole = copied(model, dtype=torch.float64).eval()
        exact = bake(whole, cut.before.baked)
        if cut.before.is_exported:
            exact = rebuilt(exact, cut.before)
            _check_export(whole, exact, images)
        del whole
        cut = cut.of_plain
        first = _difference(exact, cut, images)
        return max(first, _difference(exact, cut, images)) if enliven(exact, images) else first


def _check_export(whole: nn.Module, exact: nn.Module, images: Inputs) -> None:
    """Compare what was exported with the network.

    Raises:
        CompactionError: They differ.
    """
    if not compared(whole, exact, images)[1] <= TOLERANCE:
        what = "draws random numbers" if draws(whole, images) else "computes something else"
        raise CompactionError(f"what was exported cannot be compared: the network {what}")


@torch.no_grad()
def enliven(model: nn.Module, images: Inputs) -> bool:
    """Let every channel matter: draw constant parameters anew, and take the images' statistics.

    Returns:
        Whether all that the network then puts out is a number.
    """
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        is_vector = parameter.squeeze().dim() < 2
        if is_vector or bool((parameter == parameter.flatten()[:1]).all()):
            drawn = torch.rand(parameter.shape, dtype=torch.float64, generator=generator)
            parameter.copy_(drawn + 0.5)
    for module in model.modules():
        if isinstance(module, ops.BATCH_NORMS) and module.track_running_stats:
            module.train()
            module.momentum = 1.0
    outputs = [leaf for _, leaf in leaves(model(*images[0], **images[1]))]
    model.eval()
    return not any(bool(leaf.isnan().any()) for leaf in outputs if isinstance(leaf, Tensor))


def _check_train_mode(whole: nn.Module, cut: Cut, images: Inputs) -> None:
    """Compare both networks in train mode, where they do something else than in eval mode.

    Where what they put out is random beside dropout, or a constant stands for a batch norm, of
    which train mode makes another constant, only the shapes are compared.

    Args:
        whole: The network in train mode, which is changed.
        cut: What is cut.
        images: What they are compared on.

    Raises:
        CompactionError: They differ, or the compact network cannot be run.
    """
    reference, small = masked(whole, cut), shrunk(whole, cut)
    try:
        with keeping_random_numbers():
            expected = outputs_of(reference, images, "")
    except CompactionError:  # the network cannot be trained on such images, compact or not
        return
    failure = "in train mode the compact network fails"
    with keeping_random_numbers():
        got = outputs_of(small, images, failure)
    shapes = _shapes(expected), _shapes(got)
    if shapes[0] != shapes[1]:
        raise CompactionError(
            f"in train mode the compact network puts out {shapes[1]}, not {shapes[0]} as the whole"
        )
    error = largest_difference(got, expected)[1]
    if error <= TOLERANCE or _makes_constants(cut) or draws(reference, images):
        return
    raise CompactionError(
        f"in train mode compact and masked network differ by {error:.2g} (allowed {TOLERANCE:g}); "
        f"{why(reference, small, cut, images)}"
    )


def _makes_constants(cut: Cut) -> bool:
    return any(layer.made_of for layer in cut.after.layers.values())


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _shapes(outputs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        place: tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf
        for place, leaf in outputs.items()
    }


def _difference(model: nn.Module, cut: Cut, images: Inputs) -> float:
    """Return the largest difference to the masked network, relative to each output's largest value.

    Raises:
        CompactionError: It is above the tolerance.
    """
    reference, compacted = masked(model, cut, shares=True), shrunk(model, cut, shares=True)
    place, error = compared(reference, compacted, images)
    if not error <= TOLERANCE:
        raise CompactionError(
            f"compact and masked network differ by {error:.2g} (allowed {TOLERANCE:g})"
            f"{' in output' + place if place else ''}; "
            f"{why(reference, compacted, cut, images)}"
        )
    return error
