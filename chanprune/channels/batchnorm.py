"""Batch-norm statistics, estimated anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from chanprune.channels import operations as ops


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
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    num_batches = 0
    for images, _ in batches:
        model(images.to(device))
        num_batches += 1
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode
    if norms and num_batches == 0:
        raise ValueError("batch-norm statistics cannot be estimated from no images")
