"""What a network is called with: shapes and types, and values only where these matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from chanprune.channels.modes import evaluating

BATCH = 2


@dataclass(frozen=True, eq=False)
class Example:
    """Arguments of a network, whose tensors have no values unless they hold whole numbers.

    Attributes:
        args: Positional arguments.
        kwargs: Arguments by name.
        batch: The first dimension of all tensors that have dimensions, apart from those where it is
            1, as of a mask for all images; None where they have no common one.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: int | None

    @classmethod
    def of(cls, example: Any) -> Example:
        """Understand what a user gives.

        Args:
            example: (C, H, W) of one image; a tensor (N, C, H, W); a tuple or list of arguments; a
                mapping of arguments by name.

        Raises:
            ValueError: There is no tensor in it.
        """
        if isinstance(example, Example):
            return example
        args: tuple[Any, ...]
        kwargs: dict[str, Any]
        if isinstance(example, Tensor):
            args, kwargs = (example,), {}
        elif isinstance(example, Mapping):
            args, kwargs = (), dict(example)
        elif all(isinstance(size, int) for size in example):
            args, kwargs = (torch.empty((BATCH, *example), device="meta"),), {}
        else:
            args, kwargs = tuple(example), {}
        return cls.of_call(args, kwargs)

    @classmethod
    def of_call(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Example:
        """Note the arguments of a call.

        Raises:
            ValueError: There is no tensor in them.
        """
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not tensors:
            raise ValueError("the example holds no tensor")
        sizes = {tensor.shape[0] for tensor in tensors if tensor.dim()}
        widens = sizes == {1}
        sizes -= {1}
        batch = BATCH if widens else sizes.pop() if len(sizes) == 1 else None
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda t: _noted(t, batch if widens and t.dim() else None), (args, kwargs)
        )
        return cls(args, kwargs, batch)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image, the first tensor without its batch."""
        first = next(
            leaf
            for leaf in pytree.tree_leaves((self.args, self.kwargs))
            if isinstance(leaf, Tensor)
        )
        return tuple(first.shape[1:])

    @property
    def of_one(self) -> Example:
        """The same with a batch of one, where the tensors have a batch."""
        if self.batch is None:
            return self
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda t: t[:1] if self.has_batch(t) else t, (self.args, self.kwargs)
        )
        return Example(args, kwargs, 1)

    @property
    def is_one_image(self) -> bool:
        """Whether it is one tensor (N, C, H, W)."""
        is_one = len(self.args) == 1 and not self.kwargs and isinstance(self.args[0], Tensor)
        return is_one and self.args[0].dim() == 4

    def has_batch(self, tensor: Tensor) -> bool:
        """Tell whether an argument has something for each image."""
        return tensor.dim() > 0 and tensor.shape[0] == self.batch

    @property
    def is_flat(self) -> bool:
        """All arguments are tensors or plain values, none holds several."""
        return all(
            isinstance(value, Tensor) or not isinstance(value, (list, tuple, dict))
            for value in (*self.args, *self.kwargs.values())
        )

    @property
    def has_plain_parts(self) -> bool:
        """Some argument holds tensors, and something else beside them."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return not self.is_flat and not all(isinstance(leaf, Tensor) for leaf in leaves)

    def filled(
        self,
        fill: Any,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments and named arguments with values.

        Args:
            fill: Makes a tensor of a shape, such as `torch.zeros`.
            dtype: Of the tensors that hold real numbers.
            device: Of all tensors.
        """

        def tensor(noted: Tensor) -> Tensor:
            if noted.device.type != "meta":
                return noted.to(device)
            value: Tensor = fill(tuple(noted.shape), dtype=dtype)
            return value.to(device)

        filled: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map_only(
            Tensor, tensor, (self.args, self.kwargs)
        )
        return filled

    def inputs(self, fill: Any, dtype: torch.dtype, device: torch.device | str) -> list[Any]:
        """Return what recorded calls take of `filled`, one after the other."""
        leaves = pytree.tree_leaves(self.filled(fill, dtype, device))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) or not self.is_flat]


@torch.no_grad()
def example_of(model: nn.Module, part: str, *args: Any, **kwargs: Any) -> Example:
    """Return what a part of a network is called with, to trace that part alone.

    Args:
        model: The network, such as a detector; it is run once, in eval mode.
        part: Name of the part, such as "backbone".
        *args: What the network is given.
        **kwargs: The same by name.

    Raises:
        ValueError: There is no such part, or it is not called.
    """
    if part not in dict(model.named_modules()):
        raise ValueError(f"the network has no part {part!r}")
    calls: list[Example] = []

    def note(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append(Example.of_call(given, named))

    hook = model.get_submodule(part).register_forward_pre_hook(note, with_kwargs=True)
    try:
        with evaluating(model):
            model(*args, **kwargs)
    finally:
        hook.remove()
    if not calls:
        raise ValueError(f"the network does not call {part!r}")
    return calls[0]


def _noted(tensor: Tensor, batch: int | None) -> Tensor:
    shape: Sequence[int] = tensor.shape if batch is None else (batch, *tensor.shape[1:])
    tensor = tensor.detach().expand(shape)
    return tensor.to("meta") if tensor.is_floating_point() else tensor.clone()
