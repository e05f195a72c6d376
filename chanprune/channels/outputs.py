"""The tensors in what a network returns, whatever structure holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

PLAIN = (int, float, complex, str, bytes, type(None))


def leaves(output: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (place, value) for each tensor and each plain value in an output.

    Tuples, named tuples, lists, mappings and dataclasses are looked into, in any nesting.

    Args:
        output: What a network returned.
        place: Where it stands, such as "[0]"; empty for the whole output.

    Raises:
        ValueError: The output holds something else, which cannot be compared.
    """
    if isinstance(output, (Tensor, *PLAIN)):
        yield place, output
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            yield from leaves(getattr(output, field.name), f"{place}.{field.name}")
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from leaves(value, f"{place}[{key!r}]")
    elif isinstance(output, (tuple, list)):
        for index, value in enumerate(output):
            yield from leaves(value, f"{place}[{index}]")
    else:
        kind = type(output).__name__
        raise ValueError(
            f"its output{place} is a {kind}, whose content cannot be compared; return tensors, or "
            "tuples, lists, dictionaries or dataclasses of them"
        )


def tensor_shapes(value: Any) -> tuple[torch.Size, ...]:
    """Return the shapes of the tensors that a value which is none has in it."""
    try:
        return tuple(leaf.shape for _, leaf in leaves(value) if isinstance(leaf, Tensor))
    except ValueError:
        return ()
