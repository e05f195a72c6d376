"""What a layer puts out that has nothing left to read, at every position of images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from chanprune.channels import operations as ops
from chanprune.channels.operations import name_of

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


def pool_windows(node: fx.Node) -> Windows | None:
    """Return the windows of a pool that is called as a function, if they are plain."""
    given = dict(zip(("kernel_size", "stride", "padding"), node.args[1:], strict=False))
    given |= dict(node.kwargs)
    kernel, stride = given.pop("kernel_size", None), given.pop("stride", None)
    padding = given.pop("padding", 0)
    is_plain = name_of(node) in ("avg_pool2d", "max_pool2d") and not given and len(node.args) < 5
    if not is_plain or type(kernel) is not int or type(padding) is not int:
        return None
    step = kernel if stride is None else stride
    return ((1, 2 * padding - kernel, step),) * 2 if type(step) is int else None
