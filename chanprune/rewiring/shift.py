"""Translate channels by fractions of a pixel: spatial shifting (Jeong and Shin, ICML 2019).

A channel moved by (b_x, b_y) has at (h, w) what was at (h + b_y, w + b_x), interpolated between the
four nearest pixels; beyond the border the edge goes on. So one gather takes from each channel the
pixels that begin where its shift points, one row and one column more than an image has, and two
interpolations between neighbours do the rest, of rows and then of columns. That is a depthwise
convolution with the kernel max(0, 1 - |d_y - b_y|) max(0, 1 - |d_x - b_x|), at four taps whatever
the shift, which count as four multiply-accumulates for each pixel.

Differs from the authors, whose shifts are in units of (H + W) / 4 of PyTorch's sampling grid, and
mean less than a pixel where the grid's corners are the centres of pixels: here both axes are in
pixels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from chanprune.channels.gathered import along, per_channel

TAPS_PER_SHIFT = 4


def translate(images: Tensor, shift: Tensor) -> Tensor:
    """Move each channel by its own shift.

    Args:
        images: (N, C, H, W).
        shift: (C, 2) in pixels: x (along the width), then y.

    Returns:
        (N, C, H, W).
    """
    moved: Tensor = _Translate.apply(images, shift)
    return moved


class _Translate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, shift: Tensor) -> Tensor:
        channels = torch.arange(len(shift), device=shift.device)
        moved, made_of = move(images, channels, shift)
        ctx.save_for_backward(*made_of)
        return moved

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        index, *made_of = ctx.saved_tensors
        of_corners, of_shift = gradients(grad, *made_of)
        of_images = torch.zeros_like(grad, memory_format=torch.channels_last)
        add_corners(of_images, index, of_corners)
        return of_images, of_shift


def move(images: Tensor, sources: Tensor, shift: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Move copies of channels.

    Args:
        images: (N, C, H, W).
        sources: (R,) the channels, which may repeat.
        shift: (R, 2) in pixels: x, then y.

    Returns:
        The moved copies (N, R, H, W) in channels-last; and the pixels ((H + 1) (W + 1) R,) that are
        their corners, for `add_corners`, followed by what `gradients` takes.
    """
    count, _, height, width = images.shape
    index, x, y = _taps(shift, sources, images)
    flat = images.permute(0, 2, 3, 1).reshape(count, -1)
    corners = flat.gather(1, index.expand(count, -1)).view(count, height + 1, -1)
    rows = torch.lerp(corners[:, :-1], corners[:, 1:], y)
    left, right = _left_and_right(rows, len(sources))
    moved = torch.lerp(left, right, x).view(count, height, width, -1)
    return moved.permute(0, 3, 1, 2), (index, x, y, corners, rows)


def gradients(
    grad: Tensor, x: Tensor, y: Tensor, corners: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients in the corners (N, (H + 1) (W + 1) R) and in the shifts (R, 2).

    At whole pixels the slope is the one towards the right and below.

    Args:
        grad: (N, R, H, W) gradient in the moved copies.
        x: (W R,) the shifts' fractions along the width.
        y: ((W + 1) R,) those along the height.
        corners: (N, H + 1, (W + 1) R) pixels.
        rows: (N, H, (W + 1) R) what is between corners, along the height.
    """
    count, copies, height, width = grad.shape
    grad = grad.permute(0, 2, 3, 1).reshape(count, height, -1)
    left, right = _left_and_right(rows, copies)
    of_rows, of_corners = torch.empty_like(rows), torch.empty_like(corners)
    of_left, of_right = _left_and_right(of_rows, copies)
    of_x = per_channel(torch.sub(right, left, out=of_left).mul_(grad).sum((0, 1)), width)
    torch.mul(grad, 1 - x, out=of_left)
    of_rows[..., width * copies :] = 0
    of_right.addcmul_(grad, x)
    slopes = of_corners.view(-1)[: rows.numel()].view_as(rows)
    torch.sub(corners[:, 1:], corners[:, :-1], out=slopes).mul_(of_rows)
    of_y = per_channel(slopes.sum((0, 1)), width + 1)
    torch.mul(of_rows, 1 - y, out=of_corners[:, :-1])
    of_corners[:, -1] = 0
    of_corners[:, 1:].addcmul_(of_rows, y)
    return of_corners.view(count, -1), torch.stack([of_x, of_y], 1)


def add_corners(of_images: Tensor, index: Tensor, of_corners: Tensor) -> None:
    """Add what the corners have (N, (H + 1) (W + 1) R) to the pixels that they are of, in place."""
    pixels = of_images.permute(0, 2, 3, 1)
    flat = pixels.reshape(len(pixels), -1)
    flat.scatter_add_(1, index.expand(len(pixels), -1), of_corners)
    if not pixels.is_contiguous():
        pixels.copy_(flat.view(pixels.shape))


def _taps(shift: Tensor, sources: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels (H W C) that are corners, and the fractions along a row of pixels."""
    _, channels, height, width = images.shape
    shift = shift.detach().t()
    whole = shift.floor()
    x, y = along((shift - whole).to(images.dtype), width + 1)
    steps = torch.arange(max(height, width) + 1, device=shift.device)
    places = steps[:, None, None] + whole.long()
    columns = places[: width + 1, 0].clamp_(0, width - 1).mul_(channels).add_(sources)
    rows = places[: height + 1, 1].clamp_(0, height - 1).mul_(width * channels)
    return (rows[:, None] + columns).flatten(), x[: width * len(sources)], y


def _left_and_right(rows: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """View rows (N, H, (W + 1) C) without their last column, and without their first."""
    return rows[..., : rows.shape[2] - channels], rows[..., channels:]


def radius_of(shift: Tensor) -> int:
    """Return the whole pixels that every shift (C, 2) is below, in each direction."""
    return math.floor(shift.detach().abs().max().item()) + 1


def hat_kernels(shift: Tensor, radius: int) -> Tensor:
    """Return the kernels (C, 2 radius + 1, 2 radius + 1) that move by `shift` (C, 2)."""
    taps = torch.arange(-radius, radius + 1, dtype=shift.dtype, device=shift.device)
    weights = (1 - (taps - shift[:, :, None]).abs()).clamp(min=0)
    return weights[:, 1, :, None] * weights[:, 0, None, :]
