"""Files that somebody else may have written: read with bounds, refused with a reason.

What cannot be read raises OSError; what is not what it should be raises ValueError. Nothing that is
read is executed, hangs, or takes more memory than its size allows.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 2**28
MOST_YAML_BYTES = 2**20
MOST_YAML_NODES = 100_000


def refuse_irregular(path: Path) -> int:
    """Refuse a pipe, a device or a folder; return the size of a file in bytes."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is no regular file")
    return about.st_size


def text_of(path: Path, most: int = MOST_BYTES) -> str:
    """Return the content of a regular UTF-8 file of at most so many bytes."""
    size = refuse_irregular(path)
    if size > most:
        raise ValueError(f"it has {size:,} bytes, and {most:,} are the most")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error


def json_of(path: Path) -> Any:
    """Return what a JSON file holds."""
    text = text_of(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON") from error


def json_if_any(path: Path) -> Any:
    """Return what a JSON file holds; None if it is missing or cannot be read."""
    try:
        return json_of(path)
    except (OSError, ValueError):
        return None


def yaml_of(path: Path) -> Any:
    """Return what a YAML file holds; aliases may not make much of little."""
    text = text_of(path, MOST_YAML_BYTES)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        root = loader.get_single_node()
        if _size(root) > MOST_YAML_NODES:
            raise ValueError("its aliases make too much of it")
        return loader.construct_document(root) if root else None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError("it is not YAML") from error
    finally:
        loader.dispose()


def _size(root: yaml.Node | None) -> int:
    """Count the nodes of a document with its aliases written out; many for a circle."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_YAML_NODES  # until it is known: what holds itself has no end
            inside = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = [x for part in inside for x in (part if isinstance(part, tuple) else (part,))]
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    return size(root) if root else 0
