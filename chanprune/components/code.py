"""The files of a user's own code, with those that they import, and a hash of them."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from chanprune.components.source import path_of, source_of


def digest_of(files: Iterable[tuple[Path, str]]) -> str:
    """Return a hash of modules, and of what they import from the folder that they are found in.

    Args:
        files: Each file with the name of its module.
    """
    found = dict(files)
    places = {_found_in(path, module) for path, module in found.items()}
    todo = list(found.items())
    while todo:
        path, module = todo.pop()
        for other in _imports(path, module):
            there = path_of(other)
            is_new = there and there.suffix == ".py" and there not in found
            if there and is_new and _found_in(there, other) in places:
                found[there] = other
                todo.append((there, other))
    hashed = hashlib.sha256()
    for path, module in sorted(found.items()):
        hashed.update(f"{module}\0".encode() + path.read_bytes())
    return hashed.hexdigest()


def _found_in(path: Path, module: str) -> Path:
    """Return the folder from which a module is imported by its full name."""
    return path.resolve().parents[module.count(".") + (path.name == "__init__.py")]


def _imports(path: Path, module: str) -> Iterator[str]:
    """Yield the modules that a file imports, and names that may be modules."""
    source = source_of(path, module)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = source.absolute(node)
            yield inside
            yield from (f"{inside}.{alias.name}" for alias in node.names)
