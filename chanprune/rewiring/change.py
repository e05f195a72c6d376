"""What a convolution gives up of its input while it trains, and what takes its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from chanprune.channels import Bank
from chanprune.rewiring.copies import Copies, Copying


@dataclass(frozen=True)
class Rewiring:
    """Columns taken from a convolution, which serve copies from now on or nothing.

    Attributes:
        conv: Name of the convolution.
        reader: Name of the layer that has the copies: the batch norm in front of it, or itself;
            the batch norm if there are none.
        released: Its columns that become zero.
        copies: What some of them serve from now on; None: they are released for good.
    """

    conv: str
    reader: str
    released: Sequence[int]
    copies: Copies | None = None

    @torch.no_grad()
    def apply(self, bank: Bank) -> None:
        """Take the columns, and let them serve copies.

        The output stays what it is without the released inputs, bit for bit, as the columns begin
        at zero. They, and the copies' shifts, begin without momentum; scales and shifts of the
        norm take that of the slot they are copied from. Without copies they become zero as well,
        and so does every gradient of the channel, which is zero from then on.
        """
        bank.note_change()
        released = list(self.released)
        for tensor in bank.with_moments(f"{self.conv}.weight"):
            tensor[:, released] = 0
        if self.copies is None:
            for name in ("weight", "bias"):
                for tensor in bank.with_moments(f"{self.reader}.{name}"):
                    tensor[released] = 0
            return
        reader = bank.model.get_submodule(self.reader)
        assert isinstance(reader, Copying)
        reader.copy(self.copies)
        slots, like = list(self.copies.slots), list(self.copies.like)
        for moment in bank.moments(f"{self.reader}.shift"):
            moment[slots] = 0
        for name in ("weight", "bias") if isinstance(reader, nn.BatchNorm2d) else ():
            for moment in bank.moments(f"{self.reader}.{name}"):
                moment[slots] = moment[like]
