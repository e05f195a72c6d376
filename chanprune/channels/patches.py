"""Convolutions and linear layers as matrices: what they read at some positions of their outputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chanprune.channels import operations as ops


def matrix(module: Any) -> Tensor:
    """Return the weights as (G, outputs of a group, inputs of a group times kernel), a copy."""
    weight: Tensor = module.weight.detach()
    groups = getattr(module, "groups", 1)
    if isinstance(module, ops.TRANSPOSED):
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2)
        weight = weight.flip(tuple(range(3, weight.dim())))
    else:
        weight = weight.unflatten(0, (groups, -1))
    return weight.flatten(2).clone()


@torch.no_grad()
def put_matrix(module: Any, values: Tensor) -> None:
    """Write weights as `matrix` returns them into the layer, in place."""
    weight = module.weight
    if isinstance(module, ops.TRANSPOSED):
        kernel = weight.shape[2:]
        values = values.unflatten(2, (-1, *kernel)).transpose(1, 2).flatten(0, 1)
        weight.copy_(values.flip(tuple(range(2, values.dim()))))
    else:
        weight.copy_(values.reshape(weight.shape))


def outputs_at(axis: int, output: Tensor, chosen: Tensor) -> Tensor:
    """Return (M, C) the outputs at some positions.

    Args:
        axis: The dimension that runs over channels, 1 or -1.
        output: (N, C, ...) or (..., C).
        chosen: (M,) numbers of positions, image by image.
    """
    if axis != 1:
        return output.reshape(-1, output.shape[-1])[chosen]
    flat = output.flatten(2)
    return flat[chosen // flat.shape[2], :, chosen % flat.shape[2]]


def inputs_at(module: Any, images: Tensor, size: tuple[int, ...], chosen: Tensor) -> Tensor:
    """Return (G, M, P) what the layer reads for its outputs at some positions.

    Args:
        module: A convolution, a transposed one, or a linear layer.
        images: Its input.
        size: Of the output, behind its channels.
        chosen: (M,) numbers of positions, image by image.
    """
    if isinstance(module, nn.Linear):
        return images.reshape(-1, images.shape[-1])[chosen][None]
    is_transposed = isinstance(module, ops.TRANSPOSED)
    padded = _spread(module, images, size) if is_transposed else _padded(module, images)
    stride = (1,) * len(size) if is_transposed else module.stride
    taps, corners, step = torch.zeros_like(chosen[:1]), torch.zeros_like(chosen), 1
    image = chosen
    for dim in reversed(range(len(size))):
        corners = corners + image % size[dim] * stride[dim] * step
        image = image // size[dim]
        along = torch.arange(module.kernel_size[dim], device=chosen.device)
        taps = ((along * module.dilation[dim] * step)[:, None] + taps).flatten()
        step *= padded.shape[2 + dim]
    read = padded.flatten(2)[image[:, None], :, corners[:, None] + taps]  # (M, taps, C)
    by_group: Tensor = read.unflatten(2, (module.groups, -1)).permute(2, 0, 3, 1)
    return by_group.flatten(2)


def _padded(module: Any, images: Tensor) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    around = module._reversed_padding_repeated_twice
    return F.pad(images, around, mode=mode) if any(around) else images


def _spread(module: Any, images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Put zeros between pixels and around, so that a plain convolution does the same."""
    pixels = zip(images.shape[2:], module.stride, strict=True)
    lengths = [(length - 1) * stride + 1 for length, stride in pixels]
    wide = images.new_zeros((*images.shape[:2], *lengths))
    places: Any = (..., *(slice(None, None, stride) for stride in module.stride))
    wide[places] = images
    around: list[int] = []
    for dim in reversed(range(len(size))):
        reach = module.dilation[dim] * (module.kernel_size[dim] - 1)
        before = reach - module.padding[dim]
        around += [before, size[dim] + reach - before - lengths[dim]]
    return F.pad(wide, around)
