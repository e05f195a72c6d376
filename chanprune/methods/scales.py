"""Batch-norm scales under a penalty: how far it moves them, and whether a cut by them is safe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from chanprune.channels import Selection, find_cliff
from chanprune.channels.operations import BATCH_NORMS, BatchNorm
from chanprune.processes.errors import UserError

PAPER_TRAVEL, PAPER_START = 6.6, 0.5  # of Network Slimming's recipe for VGG
LARGEST_DEFAULT_WEIGHT = 0.01
NEARLY_ZERO = 0.01


def scaled_norms(model: nn.Module) -> list[BatchNorm]:
    """Find the batch norms that have scales.

    Raises:
        UserError: There is none, so that no channel has a scale to be chosen by.
    """
    norms = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.affine]
    if not norms:
        raise UserError(
            f"{type(model).__name__} has no batch norms, whose scales this method chooses channels "
            "by; take a network that has (for VGG model.norm=true), or method=none"
        )
    return norms


def penalty_weight(
    weight: float | None, travel: float | None, lr_travel: float, start: float = PAPER_START
) -> float:
    """Return the weight of a penalty on scales, given as such, as travel, or not at all.

    Args:
        weight: As given.
        travel: As given.
        lr_travel: See `Setting`.
        start: Where scales start; the default travel is to it as the paper's is to 0.5.

    Raises:
        ValueError: Both are given.
    """
    if weight is not None and travel is not None:
        raise ValueError("give method.sparsity_weight or method.travel, not both")
    if weight is not None:
        return weight
    if travel is not None:
        return travel / lr_travel
    return min(PAPER_TRAVEL * (start / PAPER_START) / lr_travel, LARGEST_DEFAULT_WEIGHT)


def advice_on_travel(weight: float, lr_travel: float, start: float) -> str:
    """Say so if an unused scale cannot get near zero, or return nothing.

    Args:
        weight: Of the penalty.
        lr_travel: See `Setting`.
        start: Where scales start.
    """
    travel = weight * lr_travel
    if travel == 0 or travel >= start:
        return ""
    longer = f"train {start / travel:.1f} times as long (train.epochs)"
    if start / lr_travel <= LARGEST_DEFAULT_WEIGHT:
        longer += f", or give method.travel={start:.2g} or more"
    return (
        f"scales start at {start:.3g}, and the penalty moves them by {travel:.3g} in all; none "
        f"gets near zero, so that used and unused channels look alike; {longer}"
    )


def remarks_on_cut(scores: Mapping[str, Tensor], selection: Selection) -> tuple[str, ...]:
    """Say so if a cut by scales takes channels that are in use.

    Channels are in use above the cliff that `find_cliff` finds, or else above 0.01.

    Args:
        scores: Group name -> (C,) |scale| of its channels.
        selection: What was chosen by them.
    """
    values = torch.cat([torch.zeros(0), *scores.values()]).double().sort().values.numpy()
    cliff = find_cliff(values)
    unused = NEARLY_ZERO if cliff is None else float(values[cliff])
    lost = []
    for name, kept in selection.kept.items():
        goes = torch.ones(len(scores[name]), dtype=torch.bool)
        goes[kept] = False
        lost += [scale for scale in scores[name][goes].tolist() if scale > unused]
    if not lost:
        return ()
    end = (
        "scales of used and unused channels are not separated"
        if cliff is None
        else f"those of unused channels end at {100 * (cliff + 1) / len(values):.0f} %"
    )
    return (
        f"  {len(lost)} of these channels are in use, with scales up to {max(lost):.3g} ({end}); "
        "prune fewer, or train longer or with more travel",
    )


def typical(scales: Iterable[Tensor]) -> float:
    """Return the median of all |scale| that are not zero; 0 if all are."""
    values = torch.cat([scale.detach().abs() for scale in scales])
    return values[values > 0].median().item() if values.any() else 0.0
