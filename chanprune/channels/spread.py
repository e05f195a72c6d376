"""Channel numbers of the elements of a tensor.

An array of channel numbers has as many dimensions as the tensor, and length 1 along those that it
does not vary along: (1, C, 1, 1) for images, (1, 1, C) for tokens, (1, groups, C / groups, 1, 1)
in the middle of a channel shuffle. Whatever moves elements can be run on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chanprune.channels.layers import ChannelNumbers


def on_axis(numbers: ChannelNumbers, rank: int, axis: int) -> ChannelNumbers:
    """Lay numbers (C,) along one axis of a tensor of `rank` dimensions."""
    shape = [1] * rank
    shape[axis] = len(numbers)
    return numbers.reshape(shape)


def axes_of(numbers: ChannelNumbers) -> list[int]:
    """Return the dimensions along which channels vary."""
    return [dim for dim, size in enumerate(numbers.shape) if size > 1]


def expanded(numbers: ChannelNumbers, shape: Sequence[int]) -> Tensor:
    """Return a number for each element of a tensor of this shape; it takes no more memory."""
    return torch.from_numpy(np.array(numbers)).expand(*shape)


def compressed(elements: Tensor) -> ChannelNumbers:
    """Return the array of numbers of elements, with length 1 where they do not vary."""
    for dim in range(elements.dim()):
        if elements.shape[dim] > 1:
            first = elements.narrow(dim, 0, 1)
            if elements.stride(dim) == 0 or bool((elements == first).all()):
                elements = first
    return elements.numpy()


def aligned(numbers: ChannelNumbers, rank: int) -> ChannelNumbers:
    """Put dimensions in front, as broadcasting does."""
    return numbers.reshape((1,) * (rank - numbers.ndim) + numbers.shape)


def index_parts(index: Any, rank: int) -> list[tuple[int, int, Any]]:
    """Return each part of an index that takes something of a dimension.

    Args:
        index: What stands in the brackets of x[...].
        rank: Number of dimensions of x.

    Returns:
        The dimension, the place in the index, and the part.
    """
    parts = [
        (place, part)
        for place, part in enumerate(index if isinstance(index, tuple) else (index,))
        if part is not None
    ]
    axis, found = 0, []
    for place, part in parts:
        if part is Ellipsis:
            axis += rank - len(parts) + 1
        else:
            found.append((axis, place, part))
            axis += 1
    return found
