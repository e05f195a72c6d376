"""Batch norm of channels-last images by sums over rows of pixels.

On a CPU with several threads, PyTorch's batch norm takes up to five times as long in training where
sixteen does not divide the number of channels, as in most pruned networks; with one thread it does
not. So the likely cause is that threads add up channels in neighbouring rows of one table, which
then share cache lines. Sums over rows of pixels have no such table. They are made in float32: of
two threads, one that does PyTorch's batch norm alone is faster still for images in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from chanprune.channels.gathered import along, per_channel

IN_A_CACHE_LINE = 16


def is_faster(images: Tensor, weight: Tensor) -> bool:
    """Tell whether training on images (N, C, H, W) is faster here than with PyTorch's own."""
    return (
        images.device.type == "cpu"
        and torch.get_num_threads() > 1
        and images.dtype == weight.dtype
        and images.shape[1] % IN_A_CACHE_LINE > 0
        and images.shape[3] > 1
        and images.is_contiguous(memory_format=torch.channels_last)
    )


def is_faster_alone(images: Tensor) -> bool:
    """Tell whether PyTorch's own is faster in one thread than in the two that there are."""
    return (
        images.device.type == "cpu"
        and torch.get_num_threads() == 2
        and images.dtype == torch.bfloat16
        and images.shape[1] % IN_A_CACHE_LINE > 0
    )


def is_slow(images: Tensor, weight: Tensor) -> bool:
    """Tell whether `batch_norm` is faster in training than PyTorch's own as it is."""
    return is_faster(images, weight) or is_faster_alone(images)


@contextmanager
def _alone(is_faster: bool) -> Iterator[None]:
    """Use one thread for a while, if that is faster."""
    if not is_faster:
        yield
        return
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(number)


def counted_batch(norm: Any) -> float:
    """Count one more batch, and return its share in the running statistics."""
    norm.num_batches_tracked += 1
    share: float | None = norm.momentum
    return share if share is not None else 1 / int(norm.num_batches_tracked)


def batch_norm(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: Sequence[Tensor],
    share: float,
    eps: float,
) -> Tensor:
    """Normalise in training, as `torch.nn.functional.batch_norm`; arguments as of `normalise`."""
    values: Tensor = _BatchNorm.apply(images, weight, bias, running, (True, share, eps))
    return values


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, *others: Any) -> Tensor:
        values, made_of = normalise_fast(ctx, images, weight, bias, *others)
        ctx.save_for_backward(*made_of)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *gradients_fast(ctx, grad, ctx.saved_tensors), None, None


def normalise_fast(
    ctx: Any,
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: Sequence[Tensor],
    how: tuple[bool, float, float],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Normalise as `normalise`, by rows or as PyTorch does, in the threads that suit it.

    Args:
        ctx: Takes what `gradients_fast` must know besides.
        images: (N, C, H, W).
        weight: (C,) scales.
        bias: (C,) shifts.
        running: As of `normalise`.
        how: As of `normalise`.
    """
    ctx.is_rowwise, ctx.is_alone = is_faster(images, weight), is_faster_alone(images)
    ctx.running, (ctx.training, share, ctx.eps) = running, how
    if ctx.is_rowwise:
        return normalise(images, weight, bias, running, how)
    with _alone(ctx.is_alone):
        output, *saved = torch.native_batch_norm(
            images, weight, bias, running[0], running[1], ctx.training, share, ctx.eps
        )
    return output, (images, weight, *saved)


def gradients_fast(
    ctx: Any, grad: Tensor, made_of: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients in images, scales and shifts of what `normalise_fast` returned."""
    if ctx.is_rowwise:
        return gradients(grad, ctx.training, *made_of)
    images, weight, *saved = made_of
    with _alone(ctx.is_alone):
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
            grad, images, weight, *ctx.running, *saved, ctx.training, ctx.eps, [True] * 3
        )
    return found


def normalise(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: Sequence[Tensor],
    how: tuple[bool, float, float],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Normalise images.

    Args:
        images: (N, C, H, W).
        weight: (C,) scales.
        bias: (C,) shifts.
        running: Mean and variance, (C,) each; in training they move towards the batch's.
        how: Whether in training, how far they move, and what is added to the variance.

    Returns:
        (N, C, H, W) in channels-last, and what `gradients` takes.
    """
    training, share, eps = how
    mean, var = running
    rows = _rows(images).to(weight.dtype)
    across, pixels = rows.shape[1] // len(weight), rows.numel() // len(weight)
    output = torch.empty_like(images, dtype=rows.dtype, memory_format=torch.channels_last)
    values = _rows(output)
    if training:
        mean = per_channel(rows.sum(0), across).div_(pixels)
        squares = torch.sub(rows, along(mean, across), out=values).square_()
        var = per_channel(squares.sum(0), across).div_(pixels)
        running[0].lerp_(mean, share)
        running[1].lerp_(var * (pixels / (pixels - 1)), share)
    scale = (var + eps).rsqrt_()
    factor = weight * scale
    by, to = along(torch.stack([factor, bias - mean * factor]), across)
    torch.addcmul(to, rows, by, out=values)
    return output.to(images.dtype), (rows, mean, scale, factor)


def gradients(
    grad: Tensor, training: bool, rows: Tensor, mean: Tensor, scale: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients in images (N, C, H, W), scales (C,) and shifts (C,).

    Args:
        grad: (N, C, H, W) gradient in what `normalise` returned.
        training: Whether mean and variance were the batch's.
        rows: (N H, W C) images.
        mean: (C,) their mean.
        scale: (C,) one over their standard deviations.
        factor: (C,) the same times the scales of the norm.
    """
    of_values = _rows(grad).to(scale.dtype)
    across, pixels = rows.shape[1] // len(scale), rows.numel() // len(scale)
    of_bias = per_channel(of_values.sum(0), across)
    of_rows = torch.mul(of_values, rows)
    of_weight = (per_channel(of_rows.sum(0), across) - mean * of_bias).mul_(scale)
    if training:
        share = factor / -pixels
        slope = of_weight * scale * share
        by, by_rows, to = along(
            torch.stack([factor, slope, of_bias * share - slope * mean]), across
        )
        torch.addcmul(to, of_values, by, out=of_rows).addcmul_(rows, by_rows)
    else:
        torch.mul(of_values, along(factor, across), out=of_rows)
    return _images(of_rows.to(grad.dtype), grad.shape), of_weight, of_bias


def _rows(images: Tensor) -> Tensor:
    """View images (N, C, H, W) as (N H, W C)."""
    count, channels, height, width = images.shape
    return images.permute(0, 2, 3, 1).reshape(count * height, width * channels)


def _images(rows: Tensor, shape: torch.Size) -> Tensor:
    count, channels, height, width = shape
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)
