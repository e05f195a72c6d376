"""A layer in changed forms, each of which shows by its time what the layer's own is spent on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chanprune.channels import operations as ops
from chanprune.channels.gathered import Gathered

MULTIPLE = 8
Layer = tuple[nn.Module, Tensor]  # a layer and what it reads


def rounded(module: nn.Module, whole: nn.Module, images: Tensor) -> Layer | None:
    """Return a layer with those widths rounded up to a multiple of 8 that are not the whole's.

    Args:
        module: The layer.
        whole: The same layer before channels went.
        images: What it reads.

    Returns:
        None where that is the same layer, or one that is not made so simply.
    """
    if type(module) is nn.Linear and isinstance(whole, nn.Linear):
        widths = (
            _up(module.in_features, whole.in_features),
            _up(module.out_features, whole.out_features),
        )
        if widths == (module.in_features, module.out_features):
            return None
        made: nn.Module = nn.Linear(*widths, bias=module.bias is not None)
        read = torch.randn(*images.shape[:-1], widths[0])
        return made.to(images.device), read.to(images.device)
    if type(module) is not nn.Conv2d or not isinstance(whole, nn.Conv2d):
        return None
    by_channel = module.groups == module.in_channels and module.groups > 1
    if module.groups > 1 and not by_channel:
        return None
    inputs = _up(module.in_channels, whole.in_channels)
    outputs = inputs if by_channel else _up(module.out_channels, whole.out_channels)
    if (inputs, outputs) == (module.in_channels, module.out_channels):
        return None
    return _convolution(module, inputs, outputs, images), _like(images, inputs)


def _up(width: int, whole: int) -> int:
    return width if width == whole else -(-width // MULTIPLE) * MULTIPLE


def _convolution(module: nn.Conv2d, inputs: int, outputs: int, images: Tensor) -> nn.Conv2d:
    made = nn.Conv2d(
        inputs,
        outputs,
        module.kernel_size,  # type: ignore[arg-type]
        module.stride,  # type: ignore[arg-type]
        module.padding,  # type: ignore[arg-type]
        module.dilation,  # type: ignore[arg-type]
        inputs if module.groups > 1 else 1,
        module.bias is not None,
        module.padding_mode,
    )
    return made.to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _like(images: Tensor, channels: int, scale: int = 1) -> Tensor:
    count, _, height, width = images.shape
    made = torch.randn(count, channels, scale * height, scale * width)
    return made.to(images.device).contiguous(memory_format=torch.channels_last)


def larger_images(module: nn.Module, images: Tensor) -> Layer | None:
    """Return a convolution with images of twice the height and width; None of another layer."""
    if not isinstance(module, nn.Conv2d) or images.dim() != 4:
        return None
    return module, _like(images, images.shape[1], scale=2)


def nothing(module: nn.Module, images: Tensor) -> Layer:
    """Return a layer of the same kind that has one number to compute: the cost of the call."""
    if isinstance(module, nn.Linear):
        return nn.Linear(1, 1).to(images.device), torch.randn(1, 1, device=images.device)
    if isinstance(module, ops.BATCH_NORMS):
        one = torch.randn(1, 1, 1, 1, device=images.device)
        return nn.BatchNorm2d(1).eval().to(images.device), one
    rank = images.dim()
    kind = {3: nn.Conv1d, 5: nn.Conv3d}.get(rank, nn.Conv2d)
    return kind(1, 1, 1).to(images.device), torch.randn(*[1] * rank, device=images.device)


def ungathered(module: nn.Module, images: Tensor) -> Layer | None:
    """Return a batch norm that gathers as one that reads as many channels, all of them."""
    if not (isinstance(module, Gathered) and isinstance(module, nn.BatchNorm2d)):
        return None
    made = nn.BatchNorm2d(module.num_features, affine=module.affine).eval()
    return made.to(images.device), _like(images, module.num_features)
