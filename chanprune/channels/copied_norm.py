"""Batch norm of which some outputs are those of shifted copies, without copying its input.

The norm runs over the whole input, the copies apart from it, and their outputs replace those of the
slots that they stand in. So only what is copied is touched twice; it gives what batch norm gives of
the slots (`Copying.gathered`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chanprune.channels.gathered import add_at, along, per_channel, replace, select
from chanprune.channels.shift import gradients, move


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
    of_copies = norm.running_mean[copies], norm.running_var[copies]
    statistics = norm.running_mean, norm.running_var, *of_copies
    sources = norm.index[copies]
    route = norm.moved_by(), sources, copies
    how = norm.training, share, norm.eps
    output: Tensor = _Normalise.apply(images, norm.weight, norm.bias, *route, statistics, how)
    if norm.training:
        norm.running_mean[copies], norm.running_var[copies] = of_copies
    return output


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, *others: Any) -> Tensor:
        shift, sources, copies, (mean, var, own_mean, own_var), (training, share, eps) = others
        rest = weight.index_fill(0, copies, 0), bias.index_fill(0, copies, 0)
        output, *saved = torch.native_batch_norm(images, *rest, mean, var, training, share, eps)
        moved, made_of = move(select(images, sources), shift)
        rows = _rows(moved.to(weight.dtype))
        centred, own_var = _centred(rows, own_mean, own_var, training, share)
        scale = (own_var + eps).rsqrt()
        across = rows.shape[1] // copies.shape[0]
        values = torch.addcmul(
            along(bias[copies], across), centred, along(weight[copies] * scale, across)
        )
        replace(output, copies, _images(values.to(output.dtype), moved.shape))
        ctx.save_for_backward(
            images, rest[0], *saved, weight, centred, scale, sources, copies, *made_of
        )
        ctx.statistics, ctx.how = (mean, var), (training, eps)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, rest, *saved = ctx.saved_tensors[:4]
        weight, centred, scale, sources, copies, *made_of = ctx.saved_tensors[4:]
        of_images, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, images, rest, *ctx.statistics, *saved, *ctx.how, [True] * 3
        )
        of_copies = select(grad, copies)
        rows = _rows(of_copies.to(weight.dtype))
        across = rows.shape[1] // copies.shape[0]
        own_bias = per_channel(rows.sum(0), across)
        own_weight = per_channel((rows * centred).sum(0), across) * scale
        factor = weight[copies] * scale
        share = factor * (-ctx.how[0] / (rows.shape[0] * across))
        rows = torch.addcmul(along(own_bias * share, across), rows, along(factor, across))
        rows.addcmul_(centred, along(own_weight * scale * share, across))
        of_moved = _images(rows.to(grad.dtype), of_copies.shape)
        of_sources, of_shift = gradients(of_moved, *made_of)
        add_at(of_images, sources, of_sources)
        of_weight[copies], of_bias[copies] = own_weight, own_bias
        return of_images, of_weight, of_bias, of_shift.to(weight.dtype), None, None, None, None


def _centred(
    rows: Tensor, mean: Tensor, var: Tensor, training: bool, share: float
) -> tuple[Tensor, Tensor]:
    """Return what rows (N H, W R) are beyond their mean, and the variance (R,).

    In training both are the batch's, and the running ones, `mean` and `var`, move towards them.
    """
    across = rows.shape[1] // mean.shape[0]
    if not training:
        return rows - along(mean, across), var
    batch_mean = per_channel(rows.mean(0), across) / across
    centred = rows - along(batch_mean, across)
    batch_var = per_channel(centred.square().mean(0), across) / across
    pixels = rows.shape[0] * across
    mean.lerp_(batch_mean, share)
    var.lerp_(batch_var * (pixels / (pixels - 1)), share)
    return centred, batch_var


def _rows(images: Tensor) -> Tensor:
    """View images (N, R, H, W) as (N H, W R): with few copies, whole rows are added up faster."""
    count, copies, height, width = images.shape
    return images.permute(0, 2, 3, 1).reshape(count * height, width * copies)


def _images(rows: Tensor, shape: torch.Size) -> Tensor:
    count, copies, height, width = shape
    return rows.view(count, height, width, copies).permute(0, 3, 1, 2)
