"""Files that are there whole or not at all, after a kill and after a power cut.

What is written goes to a file beside, is flushed to the disk, and takes the name of the old one;
then the folder is flushed, which holds the name.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from chanprune.processes.errors import RunError


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically; raises as `replace` does."""
    replace(path, lambda part: part.write_text(text, encoding="utf-8", newline=""))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically; raises as `replace` does."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def json_lines(values: Iterable[Mapping[str, Any]]) -> str:
    """Return the text of a .jsonl file with a line for each of the values."""
    return "".join(json.dumps(value) + "\n" for value in values)


def replace(path: Path, write: Callable[[Path], object], keep: Path | None = None) -> None:
    """Replace a file atomically.

    Args:
        path: The file.
        write: Writes its new content to the path that it is given.
        keep: Where the file that was there goes.

    Raises:
        RunError: The file cannot be written.
    """
    part = part_of(path)
    try:
        make_folder(path.parent)
        write(part)
        flush(part)
        if keep is not None and path.exists():
            path.replace(keep)
        part.replace(path)
        flush_folder(path.parent)
    except Exception as error:
        with contextlib.suppress(OSError):
            part.unlink()
        reason = getattr(error, "strerror", None) or f"{error}" or type(error).__name__
        raise RunError(f"{path} cannot be written: {reason.splitlines()[0]}") from error


def part_of(path: Path) -> Path:
    """Return where a file is written before it takes its name."""
    return path.with_name(f".{path.name}.part")


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it is in, so that a power cut does not take them away.

    Raises:
        OSError: It cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        flush_folder(made.parent)


def flush(path: Path) -> None:
    """Bring a file to the disk.

    Raises:
        OSError: The disk does not take it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the file system can do that."""
    with contextlib.suppress(OSError):
        flush(folder)
