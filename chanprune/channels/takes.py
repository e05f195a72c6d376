"""What an exported network may be called with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Takes(nn.Module):
    """The check that an exported network is called with tensors as large as it was exported with.

    Args:
        shapes: Of each tensor, with None for the batch, which may differ.
    """

    def __init__(self, shapes: Sequence[tuple[int | None, ...]]):
        super().__init__()
        self.shapes = tuple(shapes)

    def forward(self, *tensors: Tensor) -> None:
        """Raise ValueError where a tensor has another shape."""
        for tensor, wanted in zip(tensors, self.shapes, strict=True):
            given = tuple(tensor.shape)
            if len(given) != len(wanted) or any(
                size is not None and size != own for size, own in zip(wanted, given, strict=True)
            ):
                sizes = ", ".join("any" if size is None else str(size) for size in wanted)
                raise ValueError(
                    f"this network was exported for tensors of shape ({sizes}), not {given}; trace "
                    "and compact the whole one with an example of that size"
                )
