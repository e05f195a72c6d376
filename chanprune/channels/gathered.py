"""Batch norm behind a gather: the part of a pre-activation block that a plan makes smaller.

Where the channels come from a shared stream (a residual sum, a concatenation), the stream stays
whole and the consumer picks its channels. Gathering before the batch norm gives the same output as
after it and normalises fewer channels (Network Slimming's channel selection layer, with the order
exchanged).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gathered(nn.Module):
    """Stands before a batch norm among the base classes: picks channels, then normalises them."""

    index: Tensor

    def gather_channels(self, index: Tensor) -> None:
        """Read only the channels `index` (C_kept,) of the stream."""
        self.register_buffer("index", index, persistent=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Map (N, C, ...) to (N, C_kept, ...)."""
        normalised: Tensor = super().forward(torch.index_select(input, 1, self.index))
        return normalised


class GatheredBatchNorm1d(Gathered, nn.BatchNorm1d):
    """Batch norm of some features of its input, (N, C) -> (N, C_kept)."""


class GatheredBatchNorm2d(Gathered, nn.BatchNorm2d):
    """Batch norm of some channels of its input, (N, C, H, W) -> (N, C_kept, H, W)."""


_TYPES: dict[type[nn.Module], type[Gathered]] = {
    nn.BatchNorm1d: GatheredBatchNorm1d,
    nn.BatchNorm2d: GatheredBatchNorm2d,
}


def read(norm: nn.Module, index: Tensor | None) -> None:
    """Let a batch norm read only the channels `index` (C_kept,) of its input; None: all of it."""
    if index is None:
        if isinstance(norm, Gathered):
            kind = next(kind for kind, gathering in _TYPES.items() if isinstance(norm, gathering))
            del norm.index
            norm.__class__ = kind  # type: ignore[assignment]
        return
    if not isinstance(norm, Gathered):
        norm.__class__ = gathered_type(type(norm))
    assert isinstance(norm, Gathered)
    device = next(norm.parameters()).device
    norm.gather_channels(index if device.type == "meta" else index.to(device))


def gathered_type(kind: type[nn.Module]) -> type[Gathered]:
    """Return the class that gathers and is a `kind` (a batch norm, or a library's form of it)."""
    if kind not in _TYPES:
        _TYPES[kind] = type(f"Gathered{kind.__name__}", (Gathered, kind), {})
    return _TYPES[kind]
