"""Factories of networks of one's own, by the place that they are imported from.

To import one is to run its code, so that whoever starts the process must name it; what recorded
configurations and model files say is not enough.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from chanprune.components.source import path_of
from chanprune.processes.errors import UserError

_vouched_for: dict[str, Callable[..., Any] | None] = {}


def vouch(target: str, factory: Callable[..., Any] | None = None) -> None:
    """Let this process call a factory that a configuration or a file names.

    Args:
        target: "package.module:factory" or "file.py:factory".
        factory: It, where it is there already; else it is imported when it is called.
    """
    _vouched_for[target] = factory or _vouched_for.get(target)


def refuse_unvouched(target: str) -> None:
    """Refuse a factory that nobody who started this process has named.

    Raises:
        UserError: It is one.
    """
    if target not in _vouched_for:
        raise UserError(
            f"this network is made by {target}; give model.target={target} too (evaluate and "
            f"benchmark: target={target}, in Python: factory=), if you know what is in it"
        )


def factory_of(target: str) -> Callable[..., Any]:
    """Import a factory.

    Raises:
        UserError: It is not vouched for, or cannot be imported.
    """
    refuse_unvouched(target)
    known = _vouched_for[target]
    if known is None:
        known = _vouched_for[target] = _imported(target)
    return known


def file_of(target: str) -> Path | None:
    """Return the file that a factory is in, without importing it; None if it is installed."""
    place = target.rpartition(":")[0]
    if place.endswith(".py"):
        path = Path(place).expanduser().resolve()
        return path if path.is_file() else None
    look_in(Path.cwd())
    found = path_of(place)
    is_installed = found and Path(sys.prefix).resolve() in found.resolve().parents
    return None if is_installed else found


def look_in(folder: Path) -> None:
    """Look for modules in a folder too, behind all other places."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _imported(target: str) -> Callable[..., Any]:
    """Import a factory; raises UserError."""
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise UserError(
            f"model.target={target}: must be package.module:factory, or file.py:factory"
        )
    try:
        module = _module_in(Path(place)) if place.endswith(".py") else _module_called(place)
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"model.target={target}: {place} cannot be imported: {reason}") from error
    factory: Any = module
    for part in name.split("."):
        factory = getattr(factory, part, None)
    if not callable(factory):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UserError(
            f"model.target={target}: {place} has no {name} to be called; it has "
            f"{', '.join(known[:10]) or 'none'}"
        )
    made: Callable[..., Any] = factory
    return made


def _module_called(name: str) -> ModuleType:
    look_in(Path.cwd())
    return importlib.import_module(name)


def _module_in(path: Path) -> ModuleType:
    """Import a file, beside which its own imports are looked for as well."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    look_in(path.parent)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module
