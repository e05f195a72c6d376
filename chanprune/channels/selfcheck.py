"""The self-check: a compact network computes what the masked one does."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.channels import operations as ops
from chanprune.channels.baked import bake
from chanprune.channels.calls import UnsupportedNetwork, first_line
from chanprune.channels.double import InDouble
from chanprune.channels.graph import ChannelGraph, Cut
from chanprune.channels.modes import copied, keeping_random_numbers
from chanprune.channels.outputs import leaves
from chanprune.channels.rebuilt import rebuilt
from chanprune.channels.shrunk import shrunk

TOLERANCE = 1e-9
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class CompactionError(UnsupportedNetwork):
    """Compact and masked network disagree: the channel graph does not describe the network."""


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
    if not cut.before.trains_alike:
        _check_train_mode(model, cut)
    whole = copied(model, dtype=torch.float64).eval()
    with InDouble(), torch.no_grad():
        exact = bake(whole, cut.before.baked)
        if cut.before.is_exported:
            exact = rebuilt(exact, cut.before)
            if not _compared(whole, exact, images)[1] <= TOLERANCE:
                raise CompactionError("the calls that were exported compute something else")
        del whole
        cut = cut.of_plain
        first = _difference(exact, cut, images)
        return max(first, _difference(exact, cut, images)) if _enliven(exact, images) else first


@torch.no_grad()
def _enliven(model: nn.Module, images: Inputs) -> bool:
    """Let every channel matter: draw constant parameters anew, and take the images' statistics.

    Returns:
        Whether all that the network then puts out is finite.
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
    return all(bool(leaf.isfinite().all()) for leaf in outputs if isinstance(leaf, Tensor))


def _check_train_mode(model: nn.Module, cut: Cut) -> None:
    """Compare the shapes of what both networks put out in train mode, where values may be random.

    Raises:
        CompactionError: They differ, or the compact network cannot be run.
    """
    whole = copied(model).train()
    small = shrunk(whole, cut)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    args, kwargs = cut.before.example.filled(torch.zeros, dtype, _device(model))
    with keeping_random_numbers(), torch.no_grad():
        try:
            expected = _shapes(whole(*args, **kwargs))
        except Exception:  # the network cannot be trained on such images, compact or not
            return
        try:
            got = _shapes(small(*args, **kwargs))
        except Exception as error:
            raise CompactionError(f"in train mode the compact network fails: {error}") from error
    if expected != got:
        raise CompactionError(
            f"in train mode the compact network puts out {got}, not {expected} as the whole one"
        )


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _shapes(output: Any) -> dict[str, Any]:
    return {
        place: tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf
        for place, leaf in leaves(output)
    }


def _difference(model: nn.Module, cut: Cut, images: Inputs) -> float:
    """Return the largest difference to the masked network, relative to each output's largest value.

    Raises:
        CompactionError: It is above the tolerance.
    """
    reference, compacted = masked(model, cut, shares=True), shrunk(model, cut, shares=True)
    place, error = _compared(reference, compacted, images)
    if not error <= TOLERANCE:
        raise CompactionError(
            f"compact and masked network differ by {error:.2g} (allowed {TOLERANCE:g})"
            f"{' in output' + place if place else ''}; "
            f"{_where_they_part(reference, compacted, cut, images)}"
        )
    return error


def _compared(reference: nn.Module, other: nn.Module, images: Inputs) -> tuple[str, float]:
    """Return the output that differs most, and its difference."""
    expected = _outputs_of(
        *(reference, images),
        "the network cannot be run in float64, so that nothing can be proven; "
        "compact(..., check=False) does without the self-check",
    )
    got = _outputs_of(other, images, "the compact network fails")
    if expected.keys() != got.keys():
        raise CompactionError("the compact network's output has another structure")
    errors = {place: _error(got[place], leaf) for place, leaf in expected.items()}
    return max(errors.items(), key=lambda item: item[1])


def _outputs_of(model: nn.Module, images: Inputs, failure: str) -> dict[str, Any]:
    """Return what a network puts out, by place.

    Raises:
        CompactionError: It raises something; what a network raises is its own affair.
    """
    try:
        with torch.inference_mode():
            return dict(leaves(model(*images[0], **images[1])))
    except Exception as error:
        raise CompactionError(f"{failure}: {first_line(error)}") from error


def _error(got: Any, expected: Any) -> float:
    """Return how far an output is from another, relative to the other's largest value."""
    if not isinstance(expected, Tensor) or not isinstance(got, Tensor):
        return 0.0 if got == expected else math.inf
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return math.inf
    if not expected.numel() or torch.equal(got, expected):
        return 0.0
    if not expected.is_floating_point():
        return math.inf
    scale = expected.abs().max().item() or 1.0
    error = (got - expected).abs().max().item() / scale
    return math.inf if math.isnan(error) else error


def _where_they_part(reference: nn.Module, compacted: nn.Module, cut: Cut, images: Inputs) -> str:
    """Name the first layer whose kept outputs differ."""
    outputs = [_layer_outputs(network, cut.after, images) for network in (reference, compacted)]
    for name, full in outputs[0].items():
        if cut.after.layers[name].kind == "constant":
            continue
        stays = torch.from_numpy(cut.keep[cut.before.layers[name].outputs])
        kept = full.movedim(cut.after.layers[name].axis, 0)[stays.to(full.device)]
        if (
            kept - outputs[1][name].movedim(cut.after.layers[name].axis, 0)
        ).abs().max() > TOLERANCE * max(1.0, full.abs().max().item()):
            return f"they part at layer {name}"
    return "they part behind the last layer"


def _layer_outputs(
    network: nn.Module, graph: ChannelGraph, images: Inputs
) -> dict[str, torch.Tensor]:
    outputs: dict[str, torch.Tensor] = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: outputs.__setitem__(name, output)
        )
        for name in graph.layers
    ]
    with torch.inference_mode():
        network(*images[0], **images[1])
    for handle in handles:
        handle.remove()
    return outputs
