"""Files of tensors, there whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from chanprune.files.writing import replace


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    keep: Path | None = None,
) -> None:
    """Replace a safetensors file atomically.

    Args:
        path: The file.
        tensors: What it holds.
        metadata: Texts that it holds besides.
        keep: Where the file that was there goes.

    Raises:
        RunError: The file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace(path, lambda part: part.write_bytes(save(plain, dict(metadata or {}))), keep)
