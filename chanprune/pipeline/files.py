"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from chanprune.errors import RunError


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically.

    Raises:
        RunError: The file cannot be written.
    """
    _replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically; raises as `write_text` does."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def json_lines(values: Iterable[Mapping[str, Any]]) -> str:
    """Return the text of a .jsonl file with a line for each of the values."""
    return "".join(json.dumps(value) + "\n" for value in values)


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    keep: Path | None = None,
) -> None:
    """Replace a safetensors file atomically; raises as `write_text` does.

    Args:
        path: The file.
        tensors: What it holds.
        metadata: Texts that it holds besides.
        keep: Where the file that was there goes.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _replace(path, lambda temporary: save_file(plain, temporary, dict(metadata or {})), keep)


def _replace(path: Path, write: Callable[[Path], object], keep: Path | None = None) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
    except Exception as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunError(f"{path} cannot be written: {reason}") from error
