"""The files of a user's own code, with those that they import, and a hash of them."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from chanprune.components.source import path_of, source_of


def digest_of(files: Iterable[tuple[Path, str]]) -> str:
    """Return a hash of modules, and of what they import from the same place.

    Args:
        files: Each file with the name of its module.
    """
    found = dict(files)
    places = {path.resolve().parents[module.count(".")] for path, module in found.items()}
    todo = list(found.items())
    while todo:
        path, module = todo.pop()
        for other in _imports(path, module):
            there = path_of(other)
            if there and there not in found and places.intersection(there.resolve().parents):
                found[there] = other
                todo.append((there, other))
    hashed = hashlib.sha256()
    for path, module in sorted(found.items()):
        hashed.update(f"{module}\0".encode() + path.read_bytes())
    return hashed.hexdigest()


def _imports(path: Path, module: str) -> Iterator[str]:
    """Yield the modules that a file imports, and names that may be modules."""
    if path.suffix != ".py":
        return
    source = source_of(path, module)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = source.absolute(node)
            yield inside
            yield from (f"{inside}.{alias.name}" for alias in node.names)
