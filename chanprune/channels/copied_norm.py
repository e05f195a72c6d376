"""Batch norm of which some outputs are those of shifted copies, without copying its input.

The norm runs over the whole input, the copies apart from it, and their outputs replace those of the
slots that they stand in. So only what is copied is touched twice; it gives what batch norm gives of
the slots (`Copying.gathered`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chanprune.channels.gathered import add_at, replace, select
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
    route = norm.moved_by(), sources, copies, norm.radius
    how = norm.training, share, norm.eps
    output: Tensor = _Normalise.apply(images, norm.weight, norm.bias, *route, statistics, how)
    if norm.training:
        norm.running_mean[copies], norm.running_var[copies] = of_copies
    return output


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, *others: Any) -> Tensor:
        shift, sources, copies, radius, (mean, var, own_mean, own_var), how = others
        own = weight[copies], bias[copies]
        rest = weight.index_fill(0, copies, 0), bias.index_fill(0, copies, 0)
        output, *saved = torch.native_batch_norm(images, *rest, mean, var, *how)
        moved, padded = move(select(images, sources), shift, radius)
        values, *own_saved = torch.native_batch_norm(moved, *own, own_mean, own_var, *how)
        replace(output, copies, values)
        ctx.save_for_backward(
            images, rest[0], *saved, moved, own[0], *own_saved, padded, shift, sources, copies
        )
        ctx.statistics, ctx.how, ctx.radius = others[4], how, radius
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, rest, *saved = ctx.saved_tensors[:4]
        moved, own, *own_saved = ctx.saved_tensors[4:8]
        padded, shift, sources, copies = ctx.saved_tensors[8:]
        mean, var, own_mean, own_var = ctx.statistics
        training, _, eps = ctx.how
        backward, all_three = torch.ops.aten.native_batch_norm_backward, [True] * 3
        of_images, of_weight, of_bias = backward(
            grad, images, rest, mean, var, *saved, training, eps, all_three
        )
        of_moved, of_weight[copies], of_bias[copies] = backward(
            select(grad, copies),
            moved,
            own,
            own_mean,
            own_var,
            *own_saved,
            training,
            eps,
            all_three,
        )
        of_sources, of_shift = gradients(of_moved, padded, shift, ctx.radius)
        add_at(of_images, sources, of_sources)
        return of_images, of_weight, of_bias, of_shift, None, None, None, None, None
