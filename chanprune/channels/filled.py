"""What a layer puts out that has nothing left to read, at every position of images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from chanprune.channels import operations as ops

Windows = tuple[tuple[int, int, int], ...]


def filled(
    like: Tensor,
    constant: Tensor | None,
    sizes: Sequence[int],
    axis: int,
    width: int,
    windows: Sequence[Windows],
) -> Tensor:
    """Return what a layer puts out that has nothing to read: its constant at every position.

    Args:
        like: Decides the type and the device.
        constant: (1, C, 1, ...); None: zeros.
        sizes: Of a tensor in front of the layer.
        axis: Dimension of the channels.
        width: Number of channels, of zeros.
        windows: Of each convolution that lies between, and of the layer if it is one.
    """
    wanted = sizes_behind(sizes, windows)
    wanted[axis] = width if constant is None else -1
    if constant is None:
        return like.new_zeros(wanted)
    return constant.movedim(1, axis).expand(wanted)


def sizes_behind(sizes: Sequence[int], windows: Sequence[Windows]) -> list[int]:
    """Return the sizes of what convolutions make of a tensor; its channels stay as many."""
    wanted = list(sizes)
    for of_dims in windows:
        for dim, (up, offset, down) in enumerate(of_dims, start=2):
            wanted[dim] = (wanted[dim] * up + offset) // down + 1
    return wanted


def windows_of(module: Any) -> Windows:
    """Return the (up, offset, down) of a convolution's size (size * up + offset) // down + 1."""
    found = []
    for dim, kernel in enumerate(module.kernel_size):
        stride, reach = module.stride[dim], module.dilation[dim] * (kernel - 1)
        if isinstance(module, ops.TRANSPOSED):
            offset = reach - stride - 2 * module.padding[dim] + module.output_padding[dim]
            found.append((stride, offset, 1))
        else:
            same, padding = reach, module.padding
            around = {"same": same, "valid": 0}.get(padding) if isinstance(padding, str) else None
            around = 2 * padding[dim] if around is None else around
            found.append((1, around - reach - 1, stride))
    return tuple(found)
