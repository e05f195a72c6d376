"""Parts that several networks share: initialisation, widths, shortcuts without parameters."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from chanprune.processes.errors import UserError


def depth_of(name: str) -> int:
    """Return the number at the end of a network's name: 110 of "resnet110"."""
    return int(name.lstrip("abcdefghijklmnopqrstuvwxyz_"))


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """Multiply a number of channels by `width`, to a positive multiple of `multiple`."""
    return max(1, round(channels * width / multiple)) * multiple


def resnext_widths(
    width: float, cardinality: int, base_width: int
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Return the channels of ResNeXt-29's stem, and of each stage inside and outside its blocks."""
    inner = cardinality * scaled(base_width, width)
    outer = tuple(scaled(channels, width) for channels in (256, 512, 1024))
    return scaled(64, width), (inner, 2 * inner, 4 * inner), outer


def initialise(
    model: nn.Module, *, norm_scale: float = 1.0, linear_std: float | None = None
) -> None:
    """Initialise as the papers do.

    Convolutions are N(0, 2 / (k^2 C_out)) (He by fan-out, not divided by groups), biases and shifts
    0.

    Args:
        model: The network, changed in place.
        norm_scale: Start of the batch-norm scales; Network Slimming found 0.5 better than 1.
        linear_std: Standard deviation of linear weights; None leaves them as PyTorch made them.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.constant_(module.weight, norm_scale)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            if linear_std is not None:
                nn.init.normal_(module.weight, 0, linear_std)
            nn.init.zeros_(module.bias)


def check_image_size(name: str, image_size: int, smallest: int) -> None:
    """Refuse images that the network's poolings and strides would shrink to nothing.

    Raises:
        UserError: The image is smaller than `smallest`.
    """
    if image_size < smallest:
        raise UserError(
            f"{name} takes images of {smallest} x {smallest} pixels or more, "
            f"not {image_size} x {image_size}; set dataset.image_size={smallest} or more"
        )


class ZeroPadShortcut(nn.Module):
    """Option A of He et al. 2016: every `stride`-th pixel, and zeros as the further channels.

    Args:
        extra: Number of channels of zeros that are appended.
        stride: Pixels from one that is taken to the next.
    """

    def __init__(self, extra: int, stride: int):
        super().__init__()
        self.extra = extra
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + extra, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
