"""Components by name: those of the package's folders, and of a folder or module of the user's own.

A component is found by the text of its file, and imported when it is made.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from chanprune.components.code import digest_of
from chanprune.components.component import KINDS, Component, components_of
from chanprune.components.source import path_of, source_of
from chanprune.components.targets import file_of, look_in
from chanprune.processes.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = ("methods", "criteria", "models", "data")
Key = tuple[str, str]
_in_use: list[str] = []


def use(name: str | None) -> None:
    """Let this process know the components of a module or package, or of a file or folder.

    They take the place of those of an earlier call; nothing is imported yet.

    Args:
        name: As it would be imported, or its path; of a folder the files that lie in it, and of
            none below. None: the package's own components alone.

    Raises:
        UserError: There is no such thing, a file in it cannot be read, or a name is taken.
    """
    _in_use[:] = [name] if name else []
    if name:
        _of_user.cache_clear()
        source_of.cache_clear()
        _of_user(name)


def in_use() -> str | None:
    """Return the name that `use` was given last."""
    return _in_use[0] if _in_use else None


def own_code(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the "name" and a "digest" of the user's own code; nothing if a run has none of it.

    What a finished run's network is made of (model=compact) is not said here, so it may be.

    Args:
        config: The configuration of the run.
    """
    target = config["model"].get("target")
    path = file_of(target) if target is not None else None
    if path is not None:
        place = target.rpartition(":")[0]
        module = path.stem if place.endswith(".py") else place
        return {"name": target, "digest": digest_of([(path, module)])}
    chosen = [(kind, config[kind]) for kind in KINDS if kind in config]
    found = [find(kind, v.get("library", v.get("name", ""))) for kind, v in chosen]
    if not _in_use or all(component and not is_own(component) for component in found):
        return {}
    return {"name": _in_use[0], "digest": digest_of(_files(_in_use[0]))}


def find(kind: str, name: str) -> Component | None:
    """Return the component of a kind, one of `KINDS`, and a name, if it is known.

    Raises:
        UserError: The user's own components cannot be read.
    """
    return known(kind).get(name)


def known(kind: str) -> Mapping[str, Component]:
    """Return all components of a kind by name; raises as `find` does."""
    own = _of_user(_in_use[0]) if _in_use else {}
    both = {**_built_in(), **own}
    return {name: component for (each, name), component in both.items() if each == kind}


def is_own(component: Component) -> bool:
    """Tell whether a component is the user's."""
    return PACKAGE not in component.path.parents


def imported(component: Component) -> Any:
    """Import a component: the class, or the function.

    Raises:
        UserError: The file is the user's and fails to be imported.
    """
    if not is_own(component):
        return getattr(importlib.import_module(component.module), component.defined)
    try:
        module = importlib.import_module(component.module)
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{component.path} cannot be imported: {reason}") from error
    place = getattr(module, "__file__", None)
    if not place or Path(place).resolve() != component.path.resolve():
        raise UserError(
            f"{component.path} cannot be imported: a module {component.module} is at "
            f"{place or 'another place'}, so give yours another name"
        )
    made = getattr(module, component.defined)
    _refuse_other_defaults(component, made)
    return made


def _refuse_other_defaults(component: Component, made: Callable[..., Any]) -> None:
    """Refuse a signature whose defaults are not what its file says; raises UserError."""
    for name, parameter in inspect.signature(made).parameters.items():
        option = component.options.get(name)
        if option is None or option.is_required:
            continue
        default = parameter.default
        if (list(default) if isinstance(default, tuple) else default) != option.default:
            raise UserError(
                f"{component.path}: the default of {name} reads {option.default!r} and is "
                f"{default!r} when the file is imported; write the value out"
            )


def make(component: Component, **options: Any) -> Any:
    """Make a method, a criterion, a network or a data set.

    Raises:
        UserError: The file is the user's, and fails.
    """
    made = imported(component)
    try:
        return made(**options)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if not is_own(component):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{component.path}: {component.defined} fails: {reason}") from error


class Registry(Mapping[str, Callable[..., Any]]):
    """The classes or functions of all components of a kind, imported when they are asked for."""

    def __init__(self, kind: str):
        self.kind = kind

    def __getitem__(self, name: str) -> Any:
        component = find(self.kind, name)
        if component is None:
            raise KeyError(name)
        return imported(component)

    def __iter__(self) -> Iterator[str]:
        return iter(known(self.kind))

    def __len__(self) -> int:
        return len(known(self.kind))


@cache
def _built_in() -> Mapping[Key, Component]:
    files = [(p, f) for f in FOLDERS for p in sorted((PACKAGE / f).glob("*.py"))]
    return _by_name((path, f"chanprune.{folder}.{path.stem}") for path, folder in files)


@cache
def _of_user(name: str) -> Mapping[Key, Component]:
    own = _by_name(_files(name))
    if not own:
        raise UserError(
            f"components={name}: no class or function there is marked with @method, @criterion, "
            "@model or @dataset of chanprune.components"
        )
    for kind, taken in own.keys() & _built_in().keys():
        raise UserError(
            f"components={name}: {kind} {taken} of {own[kind, taken].path} is one of chanprune's; "
            "give yours another name"
        )
    return own


def _by_name(files: Iterator[tuple[Path, str]]) -> dict[Key, Component]:
    found: dict[Key, Component] = {}
    for path, module in files:
        for component in components_of(source_of(path, module)):
            for name in component.names:
                key = component.kind, name
                if key in found:
                    both = f"{found[key].path} and {path}"
                    raise UserError(f"{component.kind} {name} is in {both}; rename one of them")
                found[key] = component
    return found


def _files(name: str) -> Iterator[tuple[Path, str]]:
    """List the files of the user's components, each with the name of its module."""
    path = Path(name).expanduser()
    if path.is_dir() or path.suffix == ".py":
        path, module = path.resolve(), path.resolve().stem
        look_in(path.parent)
    else:
        look_in(Path.cwd())
        found, module = path_of(name), name
        if found is None:
            raise UserError(
                f"components={name}: there is no such module, file or folder; it is looked for in "
                f"{Path.cwd()} and where Python imports from"
            )
        path = found.parent if found.name == "__init__.py" else found
    if not path.exists():
        raise UserError(f"components={name}: {path} does not exist")
    if path.is_file():
        yield path, module
        return
    for file in sorted(path.glob("[!.]*.py")):
        if not file.is_file():
            continue
        yield file, module if file.stem == "__init__" else f"{module}.{file.stem}"
