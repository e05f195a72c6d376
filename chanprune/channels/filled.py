"""What a layer puts out that has nothing left to read, at every position of images of any size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from chanprune.channels import operations as ops
from chanprune.channels.operations import name_of

_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
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


def pool_windows(node: fx.Node, module: Any) -> Windows | None:
    """Return the windows of a pool, as `windows_of` does, if they are plain; None of other calls.

    Args:
        node: Its call.
        module: The module that is called; None: a function is.
    """
    if isinstance(module, ops.PLAIN_POOLS):
        given = {name: getattr(module, name, None) for name in _POOL}
        rank = int(type(module).__name__[-2])
    elif module is None and (plain := re.fullmatch("(?:max|avg)_pool([123])d", name_of(node))):
        names = _POOL if name_of(node).startswith("max") else (*_POOL[:3], "ceil_mode")
        given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        rank = int(plain[1])
    else:
        return None
    if given.get("ceil_mode"):
        return None
    kernel, padding, dilation = (
        _of_dims(given.get(name), default, rank)
        for name, default in (("kernel_size", None), ("padding", 0), ("dilation", 1))
    )
    step = _of_dims(given.get("stride"), kernel, rank)
    if None in (kernel, padding, dilation, step):
        return None
    assert kernel and padding and dilation and step
    dims = zip(kernel, padding, dilation, step, strict=True)
    return tuple((1, 2 * p - d * (k - 1) - 1, s) for k, p, d, s in dims)


def _of_dims(value: Any, default: Any, rank: int) -> tuple[int, ...] | None:
    """Return a number for each dimension; None if they are no numbers."""
    value = default if value is None or value in ((), []) else value
    sizes = (value,) * rank if type(value) is int else value
    is_plain = isinstance(sizes, (tuple, list)) and all(type(size) is int for size in sizes)
    return tuple(sizes) if is_plain and len(sizes) == rank else None
