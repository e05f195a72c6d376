"""One Python file, read and not run: what it defines, imports, and means by an expression."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chanprune.components.options import VOCABULARY
from chanprune.processes.errors import UserError

Definition = ast.ClassDef | ast.FunctionDef


class Source:
    """A file that holds a module.

    Args:
        path: The file.
        module: Its name, by which it can be imported.

    Attributes:
        definitions: Classes and functions of the module, by name.
        imported: Name here -> the module that it comes from, and its name there.

    Raises:
        UserError: It cannot be read, or is no Python.
    """

    def __init__(self, path: Path, module: str):
        self.path, self.module = path, module
        try:
            self.tree = ast.parse(path.read_bytes(), str(path))
        except SyntaxError as error:
            raise UserError(f"{path}:{error.lineno}: {error.msg}") from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        self.definitions = {
            node.name: node for node in self.tree.body if isinstance(node, Definition)
        }
        self._values = dict(_assigned(self.tree))
        self.imported = {
            alias.asname or alias.name: (self.absolute(node), alias.name)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }

    def absolute(self, node: ast.ImportFrom) -> str:
        """Return the module that an import statement names, which may be relative to this one."""
        if not node.level:
            return node.module or ""
        parts = self.module.split(".")
        if self.path.name == "__init__.py":
            parts.append("")
        return ".".join([*parts[: -node.level], *([node.module] if node.module else [])])

    def find(self, name: str) -> tuple[Source, Definition] | None:
        """Find what a name stands for, here or in a module of the same package or of ours."""
        if name in self.definitions:
            return self, self.definitions[name]
        other = self._origin(name)
        return other[0].find(other[1]) if other else None

    def value(self, expression: ast.expr) -> Any:
        """Evaluate an annotation or a default.

        Raises:
            NameError: It names something that is not known without running the file.
        """
        code = compile(ast.Expression(expression), str(self.path), "eval")
        return eval(code, {"__builtins__": {}}, _Names(self))

    def named(self, name: str) -> Any:
        """Return what a name means in an expression; raises as `value` does."""
        if name in self._values:
            return self.value(self._values[name])
        if name in VOCABULARY:
            return VOCABULARY[name]
        other = self._origin(name)
        if other is None:
            raise NameError(name)
        return other[0].named(other[1])

    def function(self, definition: ast.FunctionDef) -> Callable[..., Any]:
        """Make a function that stands for itself: it may use built-in names alone."""
        alone = ast.FunctionDef(**{**dict(ast.iter_fields(definition)), "decorator_list": []})
        for argument in ast.walk(alone.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        alone.returns = None
        module = ast.fix_missing_locations(ast.Module([ast.copy_location(alone, definition)], []))
        names: dict[str, Any] = {"__builtins__": builtins}
        exec(compile(module, str(self.path), "exec"), names)
        made: Callable[..., Any] = names[definition.name]
        return made

    def _origin(self, name: str) -> tuple[Source, str] | None:
        module, original = self.imported.get(name, ("", ""))
        if module.partition(".")[0] not in {"chanprune", self.module.partition(".")[0]}:
            return None
        path = path_of(module)
        return (source_of(path, module), original) if path and path != self.path else None


class _Names(dict[str, Any]):
    def __init__(self, source: Source):
        super().__init__()
        self.source = source

    def __missing__(self, name: str) -> Any:
        return self.source.named(name)


source_of = cache(Source)


def _assigned(tree: ast.Module) -> list[tuple[str, ast.expr]]:
    """List the names that a module gives to values, once."""
    stored = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and type(n.ctx) is ast.Store]
    return [
        (target.id, node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and stored.count(target.id) == 1
    ]


def path_of(module: str) -> Path | None:
    """Return the file of a module, without importing the packages that hold it."""
    first, *rest = module.split(".")
    try:
        spec = find_spec(first)
    except (ImportError, ValueError):
        return None
    for depth, name in enumerate(rest):
        if spec is None or spec.submodule_search_locations is None:
            return None
        inside = ".".join([first, *rest[:depth], name])
        spec = PathFinder.find_spec(inside, list(spec.submodule_search_locations))
    if spec is None:
        return None
    if spec.origin:
        return Path(spec.origin) if Path(spec.origin).is_file() else None
    folders = list(spec.submodule_search_locations or ())
    return Path(folders[0]) if folders else None
