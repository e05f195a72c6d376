"""Charts of selective convolution: what was released and copied, and where kernels look now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.rewiring.copies import Copying
from chanprune.rewiring.shift import hat_kernels, radius_of
from chanprune.show.charts import Kernels, NumbersByEpoch, of_kind


def rewirings(metrics: Sequence[Mapping[str, Any]]) -> list[NumbersByEpoch]:
    """Show how many channels each layer released and re-allocated, epoch by epoch.

    Args:
        metrics: Of every epoch "epoch", "released.<layer>" and "reallocated.<layer>".

    Returns:
        The chart; none if no channel was ever released.
    """
    kinds = {kind: of_kind(metrics, kind) for kind in ("released", "reallocated")}
    panels = {kind: own for kind, own in kinds.items() if any(map(any, own.values()))}
    epochs = [line["epoch"] for line in metrics]
    chart = NumbersByEpoch("rewired", "channels", epochs, panels, "in front of epoch")
    return [chart] if panels else []


def fields(model: nn.Module, convs: Mapping[str, str]) -> list[Kernels]:
    """Show where the columns of pointwise convolutions look: the kernels that copies make of them.

    Of each layer the absolute weights are summed over outputs and inputs, each where its shift
    points.

    Args:
        model: The network.
        convs: Batch norm -> the convolution behind it.

    Returns:
        The chart; none of a network without copies in front of a batch norm.
    """
    found = {}
    for name, norm in model.named_modules():
        if isinstance(norm, Copying) and len(norm.copies) and name in convs:
            conv = model.get_submodule(convs[name])
            assert isinstance(conv, nn.Conv2d)
            found[convs[name]] = field_of(norm, conv.weight).numpy()
    return [Kernels("fields", "kernels", found)] if found else []


@torch.no_grad()
def field_of(norm: Copying, weight: Tensor) -> Tensor:
    """Return the absolute weight (2R + 1, 2R + 1) that a 1x1 convolution puts on each neighbour.

    Args:
        norm: The batch norm in front of it.
        weight: (O, C, 1, 1) of the convolution.
    """
    shift = torch.zeros(len(norm.index), 2)
    own = norm.shift.detach().cpu().float()
    shift[norm.copies.cpu()] = own if len(own) == len(norm.copies) else own[norm.copies.cpu()]
    kernels = hat_kernels(shift, radius_of(shift))
    return torch.einsum("c,chw->hw", weight.abs().sum((0, 2, 3)).cpu().float(), kernels)
