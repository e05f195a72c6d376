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
    """A layer that reads only some channels of its input."""

    index: Tensor

    def gather_channels(self, index: Tensor) -> None:
        """Read only the channels `index` (C_kept,) of the stream."""
        self.register_buffer("index", index, persistent=False)


class GatheredBatchNorm1d(nn.BatchNorm1d, Gathered):
    """Batch norm of some features of its input, (N, C) -> (N, C_kept)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Gather, then normalise."""
        return super().forward(torch.index_select(input, 1, self.index))


class GatheredBatchNorm2d(nn.BatchNorm2d, Gathered):
    """Batch norm of some channels of its input, (N, C, H, W) -> (N, C_kept, H, W)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Gather, then normalise."""
        return super().forward(torch.index_select(input, 1, self.index))
