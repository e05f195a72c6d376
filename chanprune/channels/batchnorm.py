"""Batch norms in training: fast with any number of channels, and with statistics anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.channels import operations as ops
from chanprune.channels.gathered import Gathered
from chanprune.channels.modes import evaluating
from chanprune.channels.rowwise_norm import batch_norm, counted_batch, is_slow


def rowwise_batch_norms(model: nn.Module) -> AbstractContextManager[None]:
    """Let batch norms in training add up rows of pixels where that is faster (`rowwise_norm`)."""
    return in_place_of_forward(_normalise, filter(_can_be_rowwise, model.modules()))


@contextmanager
def in_place_of_forward(
    function: Callable[[Any, Tensor], Tensor], modules: Iterable[nn.Module]
) -> Iterator[None]:
    """Let modules do `function(module, images)` for a while."""
    modules = list(modules)
    for module in modules:
        module.forward = partial(function, module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _can_be_rowwise(module: nn.Module) -> bool:
    """Tell whether a module is PyTorch's batch norm, and not what a library made of it."""
    kind = next(kind for kind in type(module).__mro__ if not issubclass(kind, Gathered))
    return kind is nn.BatchNorm2d and bool(module.affine and module.track_running_stats)


def _normalise(norm: Any, images: Tensor) -> Tensor:
    if isinstance(norm, Gathered):
        if norm.normalises(images):
            return type(norm).forward(norm, images)
        images = norm.gathered(images)
    if not (norm.training and is_slow(images, norm.weight)):
        return nn.BatchNorm2d.forward(norm, images)
    running = norm.running_mean, norm.running_var
    return batch_norm(images, norm.weight, norm.bias, running, counted_batch(norm), norm.eps)


@torch.no_grad()
def recalibrate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device | str
) -> None:
    """Replace the running statistics by the average over `batches`.

    After channels are gone, the layers behind them see other inputs than those that the running
    statistics describe. Every batch counts alike (momentum None), so batches should be of equal
    size.

    Args:
        model: The network, changed in place; its mode is left as it was.
        batches: (images, labels); labels are not used.
        device: Where the model lives.

    Raises:
        ValueError: There is no batch.
    """
    norms = [m for m in model.modules() if isinstance(m, ops.BATCH_NORMS) and m.track_running_stats]
    momenta = {norm: norm.momentum for norm in norms}
    num_batches = 0
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        for images, _ in batches:
            model(images.to(device))
            num_batches += 1
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    if norms and num_batches == 0:
        raise ValueError("batch-norm statistics cannot be estimated from no images")
