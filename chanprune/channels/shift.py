"""Translate channels by fractions of a pixel: spatial shifting (Jeong and Shin, ICML 2019).

A channel moved by (b_x, b_y) has at (h, w) what was at (h + b_y, w + b_x), interpolated between the
four nearest pixels; beyond the border the edge goes on. So one gather takes from each channel the
pixels that begin where its shift points, one row and one column more than an image has, and two
interpolations between neighbours do the rest, of rows and then of columns. That is a depthwise
convolution with the kernel max(0, 1 - |d_y - b_y|) max(0, 1 - |d_x - b_x|), at four taps whatever
the shift.

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
        moved, made_of = move(images, shift)
        ctx.save_for_backward(*made_of)
        return moved

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return gradients(grad, *ctx.saved_tensors)


def move(images: Tensor, shift: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the moved images (N, C, H, W) in channels-last, and what `gradients` takes of them."""
    count, channels, height, width = images.shape
    index, x, y = _taps(shift, height, width, images.dtype)
    flat = images.permute(0, 2, 3, 1).reshape(count, -1)
    corners = flat.gather(1, index.expand(count, -1)).view(count, height + 1, -1)
    rows = torch.lerp(corners[:, :-1], corners[:, 1:], y)
    left, right = _left_and_right(rows, channels)
    moved = torch.lerp(left, right, x).view(count, height, width, channels)
    return moved.permute(0, 3, 1, 2), (index, x, y, corners, rows)


def gradients(
    grad: Tensor, index: Tensor, x: Tensor, y: Tensor, corners: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients in images (N, C, H, W) and shifts (C, 2).

    At whole pixels the slope is the one towards the right and below.

    Args:
        grad: (N, C, H, W) gradient in the moved images.
        index: ((H + 1) (W + 1) C,) the pixels that are corners.
        x: (W C,) the shifts' fractions along the width.
        y: ((W + 1) C,) those along the height.
        corners: (N, H + 1, (W + 1) C) pixels.
        rows: (N, H, (W + 1) C) what is between corners, along the height.
    """
    count, channels, height, width = grad.shape
    grad = grad.permute(0, 2, 3, 1).reshape(count, height, -1)
    left, right = _left_and_right(rows, channels)
    of_x = per_channel((right - left).mul_(grad).sum((0, 1)), width)
    of_rows = torch.empty_like(rows)
    of_left, of_right = _left_and_right(of_rows, channels)
    torch.mul(grad, 1 - x, out=of_left)
    of_rows[..., width * channels :] = 0
    of_right.addcmul_(grad, x)
    of_y = per_channel((corners[:, 1:] - corners[:, :-1]).mul_(of_rows).sum((0, 1)), width + 1)
    of_corners = torch.empty_like(corners)
    torch.mul(of_rows, 1 - y, out=of_corners[:, :-1])
    of_corners[:, -1] = 0
    of_corners[:, 1:].addcmul_(of_rows, y)
    of_images = grad.new_zeros(count, height * width * channels)
    of_images.scatter_add_(1, index.expand(count, -1), of_corners.view(count, -1))
    of_images = of_images.view(count, height, width, channels).permute(0, 3, 1, 2)
    return of_images, torch.stack([of_x, of_y], 1)


def _taps(
    shift: Tensor, height: int, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels (H W C) that are corners, and the fractions along a row of pixels."""
    channels = shift.shape[0]
    whole = shift.detach().floor()
    fractions = (shift.detach() - whole).to(dtype)
    steps = torch.arange(max(height, width) + 1, device=shift.device)
    places = steps[:, None, None] + whole.long()
    columns = places[: width + 1, :, 0].clamp(0, width - 1).mul_(channels) + steps.new_tensor(
        range(channels)
    )
    rows = places[: height + 1, None, :, 1].clamp(0, height - 1).mul_(width * channels)
    x, y = along(fractions[:, 0], width), along(fractions[:, 1], width + 1)
    return (rows + columns).flatten(), x, y


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
