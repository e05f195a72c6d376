"""Batch norm of which some outputs are those of shifted copies, without copying its input.

The norm runs over the whole input, the copies apart from it, and their outputs replace those of the
slots that they stand in. So only what is copied is touched twice; it gives what batch norm gives of
the slots (`Copying.gathered`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chanprune.channels.gathered import along, per_channel, replace, select
from chanprune.channels.shift import add_gradients, move


def normalise_with_copies(norm: Any, images: Tensor) -> Tensor:
    """Map (N, C, H, W) as the batch norm `norm`, a `Copying`, does whose own slots read themselves.

    In training its running statistics are updated.
    """
    share = 0.0
    if norm.training:
        norm.num_batches_tracked += 1
        seen = norm.num_batches_tracked
        share = norm.momentum if norm.momentum is not None else 1 / seen.item()
    copies = norm.copies
    own = norm.running_mean.index_select(0, copies), norm.running_var.index_select(0, copies)
    sources = norm.index.index_select(0, copies)
    statistics = norm.running_mean, norm.running_var, *own
    how = norm.training, share, norm.eps
    output: Tensor = _Normalise.apply(
        images, norm.weight, norm.bias, norm.moved_by(), sources, copies, statistics, how
    )
    if norm.training:
        norm.running_mean.index_copy_(0, copies, own[0])
        norm.running_var.index_copy_(0, copies, own[1])
    return output


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, *others: Any) -> Tensor:
        shift, sources, copies, (mean, var, own_mean, own_var), (training, share, eps) = others
        rest = weight.index_fill(0, copies, 0)
        output, *saved = torch.native_batch_norm(
            images, rest, bias, mean, var, training, share, eps
        )
        moved, made_of = move(images, sources, shift)
        rows = _rows(moved).to(weight.dtype)
        across = rows.shape[1] // len(copies)
        values = torch.empty_like(rows)
        if training:
            own_var = _centre(rows, own_mean, own_var, share, values)
        else:
            rows.sub_(along(own_mean, across))
        scale = (own_var + eps).rsqrt_()
        factor = weight.index_select(0, copies).mul_(scale)
        by, to = along(torch.stack([factor, bias.index_select(0, copies)]), across)
        torch.addcmul(to, rows, by, out=values)
        replace(output, copies, _images(values.to(output.dtype), moved.shape))
        ctx.save_for_backward(images, rest, *saved, rows, scale, factor, copies, *made_of)
        ctx.statistics, ctx.how = (mean, var), (training, eps)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, rest, *saved = ctx.saved_tensors[:4]
        centred, scale, factor, copies, *made_of = ctx.saved_tensors[4:]
        of_images, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, images, rest, *ctx.statistics, *saved, *ctx.how, [True] * 3
        )
        of_copies = select(grad, copies)
        rows = _rows(of_copies).to(scale.dtype)
        across = rows.shape[1] // len(copies)
        own_bias = per_channel(rows.sum(0), across)
        own_weight = per_channel((rows * centred).sum(0), across).mul_(scale)
        of_weight.index_copy_(0, copies, own_weight)
        of_bias.index_copy_(0, copies, own_bias)
        if ctx.how[0]:
            share = factor / -(rows.shape[0] * across)
            parts = torch.stack([factor, own_bias * share, own_weight.mul_(scale).mul_(share)])
            by, to, along_centred = along(parts, across)
            torch.addcmul(to, rows, by, out=rows).addcmul_(centred, along_centred)
        else:
            rows.mul_(along(factor, across))
        of_moved = _images(rows.to(grad.dtype), of_copies.shape)
        of_shift = add_gradients(of_images, of_moved, *made_of)
        return of_images, of_weight, of_bias, of_shift.to(scale.dtype), None, None, None, None


def _centre(rows: Tensor, mean: Tensor, var: Tensor, share: float, squares: Tensor) -> Tensor:
    """Take their mean from rows (N H, W R), in place; return their variance (R,).

    The running ones, `mean` and `var`, move towards them by `share`.
    """
    across = rows.shape[1] // len(mean)
    pixels = rows.shape[0] * across
    batch_mean = per_channel(rows.sum(0), across).div_(pixels)
    rows.sub_(along(batch_mean, across))
    batch_var = per_channel(torch.mul(rows, rows, out=squares).sum(0), across).div_(pixels)
    mean.lerp_(batch_mean, share)
    var.lerp_(batch_var * (pixels / (pixels - 1)), share)
    return batch_var


def _rows(images: Tensor) -> Tensor:
    """View images (N, R, H, W) as (N H, W R): with few copies, whole rows are added up faster."""
    count, copies, height, width = images.shape
    return images.permute(0, 2, 3, 1).reshape(count * height, width * copies)


def _images(rows: Tensor, shape: torch.Size) -> Tensor:
    count, copies, height, width = shape
    return rows.view(count, height, width, copies).permute(0, 3, 1, 2)
