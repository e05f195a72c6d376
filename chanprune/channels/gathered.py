"""Batch norm behind a gather: the part of a pre-activation block that a plan makes smaller.

Where the channels come from a shared stream (a residual sum, a concatenation), the stream stays
whole and the consumer picks its channels. Gathering before the batch norm gives the same output as
after it and normalises fewer channels (Network Slimming's channel selection layer, with the order
exchanged).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn


def pick(images: Tensor, index: Tensor) -> Tensor:
    """Return channels of images, (N, C, ...) -> (N, K, ...); their memory format is kept.

    Args:
        images: (N, C, ...).
        index: (K,) channels, distinct.
    """
    if torch.is_grad_enabled() and images.requires_grad:
        picked: Tensor = _Pick.apply(images, index)
        return picked
    return select(images, index)


class _Pick(torch.autograd.Function):
    """Picks forward, and backward as well, where PyTorch adds one element after the other."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, index: Tensor) -> Tensor:
        ctx.width = images.shape[1]
        ctx.save_for_backward(index)
        return select(images, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return spread(grad, index, ctx.width), None


def select(images: Tensor, index: Tensor) -> Tensor:
    """Return channels of images; `index` may repeat them."""
    pixels = _pixels(images)
    if pixels is None:
        return torch.index_select(images, 1, index)
    count, _, height, width = images.shape
    picked = torch.gather(pixels, 1, index.expand(pixels.shape[0], -1))
    return picked.view(count, height, width, -1).permute(0, 3, 1, 2)


def spread(grad: Tensor, index: Tensor, width: int, places: Tensor | None = None) -> Tensor:
    """Return (N, width, ...) with the channels of `grad` where they were taken from, else zeros.

    Args:
        grad: (N, K, ...).
        index: (K,) the channel that each was taken from; distinct among `places`.
        width: Number of channels.
        places: Which channels of `grad`; None: all.
    """
    places = torch.arange(len(index), device=index.device) if places is None else places
    taken = index[places]
    source = torch.zeros(width, dtype=torch.long, device=index.device)
    source[taken] = places
    is_taken = torch.zeros((width, *[1] * (grad.dim() - 2)), dtype=grad.dtype, device=grad.device)
    is_taken[taken] = 1
    return select(grad, source).mul_(is_taken)


def replace(images: Tensor, slots: Tensor, values: Tensor) -> None:
    """Replace the channels `slots` (S,) of images by values (N, S, ...), in place."""
    into, pixels = _pixels(images), _pixels(values)
    if into is None or pixels is None:
        images.index_copy_(1, slots, values)
    else:
        into.scatter_(1, slots.expand(len(into), -1), pixels)


def along(values: Tensor, pixels: int) -> Tensor:
    """Repeat values of channels (..., C) for every pixel of a row, (..., pixels C)."""
    return values.unsqueeze(-2).expand(*values.shape[:-1], pixels, -1).flatten(-2)


def per_channel(columns: Tensor, pixels: int) -> Tensor:
    """Add up what the pixels of a row have for each channel, (pixels C,) -> (C,)."""
    return columns.view(pixels, -1).sum(0)


def _pixels(images: Tensor) -> Tensor | None:
    """View channels-last images as (pixels, C), which picks ten times as fast; else None."""
    if images.dim() != 4 or not images.is_contiguous(memory_format=torch.channels_last):
        return None
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


class Gathered(nn.Module):
    """Stands before a layer among the base classes: picks channels, then does what the layer does.

    A layer that makes something of what it picks answers the questions that others ask here.

    Attributes:
        index: (C_kept,) the channels of the stream that it reads.
        uncut: Names of its tensors that no plan cuts.
        stays_whole: Why no plan may cut its inputs, as "has ..."; None: one may.
    """

    index: Tensor
    uncut: ClassVar[tuple[str, ...]] = ()
    stays_whole: ClassVar[str | None] = None

    def gather_channels(self, index: Tensor) -> None:
        """Read only the channels `index` (C_kept,) of the stream."""
        self.register_buffer("index", index, persistent=False)

    def read_all(self) -> None:
        """Read every channel of the stream again."""
        del self.index
        self.__class__ = next(k for k, own in _TYPES.items() if own is type(self))  # type: ignore[assignment]

    def gathered(self, images: Tensor) -> Tensor:
        """Return what the layer itself sees of (N, C, ...): (N, C_kept, ...)."""
        return pick(images, self.index)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Map (N, C, ...) to (N, C_kept, ...)."""
        normalised: Tensor = super().forward(self.gathered(input))
        return normalised

    def normalises(self, images: Tensor) -> bool:
        """Tell whether its forward has a way of its own to normalise (N, C, ...) in training."""
        return False

    def compacted(self, width: int) -> None:
        """Drop what is of no use any more, once it was cut and reads a stream of so many channels.

        It may become another class.
        """

    def further_params(self) -> int:
        """Return how many numbers it has in `uncut` parameters once it is `compacted`."""
        return 0

    def further_macs(self, positions: int) -> int:
        """Return the multiply-accumulates of what it makes of an image of so many pixels."""
        return 0

    def fault(self) -> str | None:
        """Say what its tensors lack, as "has not ..."; None: nothing."""
        return None


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
            norm.read_all()
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
