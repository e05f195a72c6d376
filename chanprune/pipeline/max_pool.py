"""Max pooling that PyTorch's compiler makes fast loops of.

For the gradient of `max_pool2d` on a CPU, the compiler of PyTorch 2.15 adds to where each maximum
was, one element after the other. Where windows do not overlap, every pixel can ask instead whether
it was the maximum of its window, in loops over channels. The values and gradients are the same.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.channels.batchnorm import in_place_of_forward


def fast_max_pools(model: nn.Module) -> AbstractContextManager[None]:
    """Let max pools with windows of 2 x 2 on a CPU be what is fast when it is compiled."""
    return in_place_of_forward(_pool, filter(_is_halving, model.modules()))


def _is_halving(module: nn.Module) -> bool:
    if type(module) is not nn.MaxPool2d or module.return_indices:
        return False
    setting = module.kernel_size, module.stride, module.padding, module.dilation
    sides = [side if isinstance(side, tuple) else (side, side) for side in setting]
    return sides == [(2, 2), (2, 2), (0, 0), (1, 1)]


def _pool(pool: Any, images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    if images.device.type == "cpu" and images.dim() == 4 and height % 2 == width % 2 == 0:
        return halve(images)
    pooled: Tensor = nn.MaxPool2d.forward(pool, images)
    return pooled


def halve(images: Tensor) -> Tensor:
    """Take the maximum of each 2 x 2 pixels; the gradient goes to the first one of equals.

    Args:
        images: (N, C, H, W), H and W even.

    Returns:
        (N, C, H / 2, W / 2).
    """
    values: Tensor = _Halve.apply(images)
    return values


class _Halve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        upper, lower = images[:, :, 0::2], images[:, :, 1::2]
        corners = upper[..., 0::2], upper[..., 1::2], lower[..., 0::2], lower[..., 1::2]
        largest = torch.maximum(
            torch.maximum(corners[0], corners[1]), torch.maximum(corners[2], corners[3])
        )
        is_first, is_second, is_third = (corner == largest for corner in corners[:3])
        place = torch.where(is_third, 2.0, 3.0)
        place = torch.where(is_first, 0.0, torch.where(is_second, 1.0, place))
        # A place in floating point, as the compiler makes no vectors of integers here.
        ctx.save_for_backward(place.to(images.dtype))
        return largest

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (place,) = ctx.saved_tensors
        count, channels, height, width = place.shape
        places = torch.arange(4, dtype=place.dtype, device=place.device).view(2, 1, 2)
        is_largest = place[:, :, :, None, :, None] == places
        grads = torch.where(is_largest, grad[:, :, :, None, :, None], 0)
        return grads.reshape(count, channels, 2 * height, 2 * width)
