"""Translate channels by fractions of a pixel: spatial shifting (Jeong and Shin, ICML 2019).

A channel moved by (b_x, b_y) has at (h, w) what was at (h + b_y, w + b_x), interpolated between the
four nearest pixels; beyond the border the edge goes on. That is one depthwise convolution with the
kernel max(0, 1 - |d_y - b_y|) max(0, 1 - |d_x - b_x|) behind edge padding: it exports to any format
and has gradients in images and shifts.

Differs from the authors, whose shifts are in units of (H + W) / 4 of PyTorch's sampling grid, and
mean less than a pixel where the grid's corners are the centres of pixels: here both axes are in
pixels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS_PER_SHIFT = 4


def translate(images: Tensor, shift: Tensor, radius: int | None = None) -> Tensor:
    """Move each channel by its own shift.

    Args:
        images: (N, C, H, W).
        shift: (C, 2) in pixels: x (along the width), then y.
        radius: Whole pixels that every shift is below, where that is known.

    Returns:
        (N, C, H, W).
    """
    radius = radius_of(shift) if radius is None else radius
    moved: Tensor = _Translate.apply(images, shift, radius)
    return moved


def radius_of(shift: Tensor) -> int:
    """Return the whole pixels that every shift (C, 2) is below, in each direction."""
    if len(shift) == 0 or shift.is_meta:
        return 1
    return math.floor(torch.nan_to_num(shift.detach().abs()).max().item()) + 1


def hat_kernels(shift: Tensor, radius: int) -> Tensor:
    """Return the kernels (C, 2 radius + 1, 2 radius + 1) that move by `shift` (C, 2)."""
    weights = _hats(_offsets(shift, radius))
    return weights[:, 1, :, None] * weights[:, 0, None, :]


class _Translate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, shift: Tensor, radius: int) -> Tensor:
        moved, padded = move(images, shift, radius)
        ctx.save_for_backward(padded, shift)
        ctx.radius = radius
        return moved

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        padded, shift = ctx.saved_tensors
        return (*gradients(grad, padded, shift, ctx.radius), None)


def move(images: Tensor, shift: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Return the moved images (N, C, H, W), and the padded ones, which the gradients need."""
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    return _depthwise(padded, hat_kernels(shift, radius)), padded


def gradients(grad: Tensor, padded: Tensor, shift: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Return the gradients in images (N, C, H, W) and shifts (C, 2).

    That in the shifts takes two more convolutions with the kernels' slopes, which are a third of
    the time of a gradient in the kernels. At whole pixels the slope is the one to the right.

    Args:
        grad: (N, C, H, W) gradient in the moved images.
        padded: What `move` returned.
        shift: (C, 2) as for `move`.
        radius: As for `move`.
    """
    offsets = _offsets(shift, radius)
    weights, slopes = _hats(offsets), _slopes(offsets)
    x = weights[:, 1, :, None] * slopes[:, 0, None, :]
    y = slopes[:, 1, :, None] * weights[:, 0, None, :]
    of_shift = [(grad * _depthwise(padded, kernels)).sum((0, 2, 3)) for kernels in (x, y)]
    whole = weights[:, 1, :, None] * weights[:, 0, None, :]
    of_padded = _depthwise(grad, whole.flip(1, 2), padding=2 * radius)
    inside = of_padded[:, :, radius:-radius, radius:-radius]
    of_images = torch.ops.aten.replication_pad2d_backward(of_padded, inside, (radius,) * 4)
    return of_images, torch.stack(of_shift, 1).to(shift.dtype)


def _offsets(shift: Tensor, radius: int) -> Tensor:
    """Return (C, 2, 2 radius + 1): how far each tap is from where the shift points."""
    taps = torch.arange(-radius, radius + 1, dtype=shift.dtype, device=shift.device)
    return taps - shift[:, :, None]


def _hats(offsets: Tensor) -> Tensor:
    return (1 - offsets.abs()).clamp(min=0)


def _slopes(offsets: Tensor) -> Tensor:
    """Return the derivatives of the hats in the shift."""
    rises = ((offsets > 0) & (offsets <= 1)).to(offsets.dtype)
    falls = ((offsets > -1) & (offsets <= 0)).to(offsets.dtype)
    return rises - falls


def _depthwise(images: Tensor, kernels: Tensor, padding: int = 0) -> Tensor:
    weight = kernels[:, None].to(images.dtype)
    if images.is_contiguous(memory_format=torch.channels_last):
        weight = weight.contiguous(memory_format=torch.channels_last)
    return F.conv2d(images, weight, padding=padding, groups=len(kernels))
