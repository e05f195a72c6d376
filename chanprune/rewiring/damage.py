"""Expected channel damage: how much a layer's output changes without one input (Jeong and Shin).

The expected channel damage matrix (ICML 2019, section 3.1) has in row i, column o, the expected
change of output o, over images and positions, when input i of a convolution becomes zero. Behind
batch norm with scale g and shift b, and ReLU, an input is taken to be max(0, z) with z ~ N(b, g^2)
at every position; then it has a closed form, mean activity times sum of the filter's taps.

Everything is computed in float64, with a tail that does not cancel.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SQRT_2PI = math.sqrt(2 * math.pi)


def expected_damage(
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d,
    map_size: tuple[int, int],
    index: Tensor | None = None,
    *,
    counts_padding: bool = False,
) -> Tensor:
    """Return the expected channel damage matrix (inputs, outputs) in float64.

    Args:
        conv: The convolution, in one group.
        norm: The batch norm in front of it; ReLU stands between.
        map_size: Height and width of the convolution's input in pixels.
        index: (I,) the channel of the norm that each column reads; None: its own.
        counts_padding: Whether taps count less that meet zeros at the border; the authors ignore
            the border.
    """
    weight = conv.weight.detach().double()
    if counts_padding:
        weight = weight * _share_inside(conv, map_size).to(weight.device)
    scale, shift = norm.weight.detach().double(), norm.bias.detach().double()
    if index is not None:
        scale, shift = scale[index], shift[index]
    return mean_activity(shift, scale)[:, None] * weight.sum((2, 3)).T


def mean_activity(shift: Tensor, scale: Tensor) -> Tensor:
    """Return E max(0, z) of z ~ N(shift, scale^2), elementwise, in float64."""
    mean, width = shift.double(), scale.double().abs()
    ratio = mean / width.clamp(min=torch.finfo(torch.float64).tiny)
    # Below zero density and tail nearly cancel, unless the common factor is taken out.
    low = ratio.clamp(max=0)
    tail = torch.exp(-low.square() / 2) * (1 / SQRT_2PI + low / 2 * _scaled_erfc(low))
    high = ratio.clamp(min=0)
    head = _density(high) + high * torch.special.ndtr(high)
    activity = width * torch.where(ratio < 0, tail.clamp(min=0), head)
    return torch.where(
        width > 0, torch.where(ratio.isinf(), mean.clamp(min=0), activity), mean.clamp(min=0)
    )


def shares(damage: Tensor) -> Tensor:
    """Return each input's share (I, O) of the absolute damage to each output; 0 of a dead one."""
    absolute = damage.abs()
    total = absolute.sum(0)
    return torch.where(total > 0, absolute / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)


def _density(ratio: Tensor) -> Tensor:
    return torch.exp(-ratio.square() / 2) / SQRT_2PI


def _scaled_erfc(ratio: Tensor) -> Tensor:
    scaled: Tensor = torch.special.erfcx(-ratio / math.sqrt(2))
    return scaled


def _share_inside(conv: nn.Conv2d, map_size: tuple[int, int]) -> Tensor:
    """Return the share (kH, kW) of output positions at which a tap meets a pixel, not zeros."""
    taps = math.prod(conv.kernel_size)
    if conv.padding_mode != "zeros":
        return torch.ones(conv.kernel_size, dtype=torch.float64)
    one_tap = torch.eye(taps, dtype=torch.float64).view(taps, 1, *conv.kernel_size)
    pixels = torch.ones(1, 1, *map_size, dtype=torch.float64)
    met = F.conv2d(pixels, one_tap, None, conv.stride, conv.padding, conv.dilation)
    return met.mean((0, 2, 3)).view(conv.kernel_size)
