"""Batch norm of which some outputs are those of shifted copies, without copying its input.

The norm runs over the whole input, the copies apart from it and before it; then their outputs
replace those of the slots that they stand in, which are still in a cache. So only what is copied is
touched twice; it gives what batch norm gives of the slots (`Copying.gathered`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chanprune.channels import rowwise_norm
from chanprune.channels.gathered import replace, select
from chanprune.rewiring.shift import add_corners, gradients, move


def normalise_with_copies(norm: Any, images: Tensor) -> Tensor:
    """Map (N, C, H, W) as the batch norm `norm`, a `Copying`, does whose own slots read themselves.

    In training its running statistics are updated.
    """
    share = rowwise_norm.counted_batch(norm) if norm.training else 0.0
    copies = norm.copies
    running = norm.running_mean, norm.running_var
    of_copies = [statistic.index_select(0, copies) for statistic in running]
    route = norm.shift, norm.index.index_select(0, copies), copies
    how = norm.training, share, norm.eps
    output: Tensor = _Normalise.apply(
        images, norm.weight, norm.bias, *route, running, of_copies, how
    )
    if norm.training:
        for statistic, own in zip(running, of_copies, strict=True):
            statistic.index_copy_(0, copies, own)
    return output


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, *others: Any) -> Tensor:
        shift, sources, copies, running, of_copies, how = others
        ctx.has_idle = len(shift) > len(copies)
        moved_by = shift.index_select(0, copies) if ctx.has_idle else shift
        moved, (corners, *moved_from) = move(images, sources, moved_by)
        own = weight.index_select(0, copies), bias.index_select(0, copies)
        values, made_of = rowwise_norm.normalise(moved, *own, of_copies, how)
        rest = weight.index_fill(0, copies, 0)
        output, whole = rowwise_norm.normalise_fast(ctx, images, rest, bias, running, how)
        replace(output, copies, values)
        ctx.save_for_backward(copies, corners, *made_of, *moved_from, *whole)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        copies, corners, *saved = ctx.saved_tensors
        made_of, moved_from, whole = saved[:4], saved[4:8], saved[8:]
        of_moved, *own = rowwise_norm.gradients(select(grad, copies), ctx.training, *made_of)
        of_corners, of_shift = gradients(of_moved, *moved_from)
        of_images, of_weight, of_bias = rowwise_norm.gradients_fast(ctx, grad, whole)
        add_corners(of_images, corners, of_corners)
        of_shift = of_shift.to(of_weight.dtype)
        if ctx.has_idle:
            of_shift = of_shift.new_zeros(len(of_weight), 2).index_copy_(0, copies, of_shift)
        of_weight.index_copy_(0, copies, own[0])
        of_bias.index_copy_(0, copies, own[1])
        return of_images, of_weight, of_bias, of_shift, *[None] * 5
