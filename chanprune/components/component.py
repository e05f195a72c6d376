"""A component as its file describes it: names, options with their defaults and help, demands."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from chanprune.components.options import may_be_option
from chanprune.components.source import Definition, Source
from chanprune.processes.errors import UserError

KINDS = ("method", "criterion", "model", "dataset")
SIZES = ("num_classes", "in_channels", "image_size")
HEADINGS = re.compile(r"(Args|Attributes):")
Demand = Callable[[Mapping[str, Any], Mapping[str, Any]], None]


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        annotation: Its type, with its range.
        is_required: Whether it has no default.
        default: Its default, a list where the signature has a tuple.
        help: What the docstring says of it.
    """

    annotation: Any
    is_required: bool = False
    default: Any = None
    help: str = ""


@dataclass(frozen=True)
class Component:
    """A method, a criterion, a model or a data set.

    Attributes:
        kind: Which of the four.
        names: What it is chosen by.
        path: Its file.
        module: The module in that file.
        defined: The class or function there.
        about: The first line of its docstring.
        key: The option that holds its name: "name", or "library" where `name` is one of its own.
        sizes: Which of `name`, the number of classes, and so on, a model's function takes.
        options: By name, in the order of the signature.
        demands: Functions of these options and the whole configuration, both as plain values, that
            raise ValueError where options do not go together.
    """

    kind: str
    names: tuple[str, ...]
    path: Path
    module: str
    defined: str
    about: str
    key: str
    sizes: tuple[str, ...]
    options: Mapping[str, Option]
    demands: tuple[Demand, ...]


@dataclass
class _Signature:
    """What is read of one definition and of those that it extends."""

    taken: dict[str, tuple[Source, ast.expr | None, ast.expr | None]] = field(default_factory=dict)
    help: dict[str, str] = field(default_factory=dict)
    demands: list[Demand] = field(default_factory=list)


def components_of(source: Source) -> list[Component]:
    """List the components that a file marks; raises UserError where one cannot be."""
    found = []
    for name, definition in source.definitions.items():
        for kind, names in _marks(source, definition):
            found.append(_component(source, name, definition, kind, names))
    return found


def _marks(source: Source, definition: Definition) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the kind and the names of each mark of a definition."""
    for call in definition.decorator_list:
        if not isinstance(call, ast.Call):
            continue
        module, kind = _called(source, call.func)
        if kind not in KINDS or not module.startswith("chanprune.components"):
            continue
        given = [a.value if isinstance(a, ast.Constant) else None for a in call.args]
        names = tuple(name for name in given if isinstance(name, str))
        if not names or len(names) < len(given):
            raise UserError(
                f"{source.path}:{call.lineno}: @{kind} takes names that are written out, such as "
                f'@{kind}("mine")'
            )
        yield kind, names


def _called(source: Source, function: ast.expr) -> tuple[str, str]:
    """Return where `method`, or `components.method`, comes from: its module, and its name there."""
    if isinstance(function, ast.Name):
        return source.imported.get(function.id, ("", ""))
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return ".".join(source.imported.get(function.value.id, ("", ""))), function.attr
    return "", ""


def _component(
    source: Source, defined: str, definition: Definition, kind: str, names: tuple[str, ...]
) -> Component:
    signature = _Signature()
    try:
        _read(source, definition, signature)
    except RecursionError as error:
        raise UserError(f"{source.path}: {defined} extends itself") from error
    taken = signature.taken
    key = "library" if kind == "model" and "library" in taken else "name"
    given = {key, *SIZES} if kind == "model" else set()
    if kind == "model" and "num_classes" not in taken:
        raise UserError(f"{source.path}: model {names[0]} must take num_classes")
    if kind != "model" and key in taken:
        raise UserError(f"{source.path}: {kind} {names[0]} takes {key}, by which it is chosen")
    options = {
        name: _option(names[0], name, *what, signature.help.get(name, ""))
        for name, what in taken.items()
        if name not in given
    }
    for name in options:
        if name.startswith("_") or hasattr(BaseModel, name):
            raise UserError(f"{source.path}: an option cannot be called {name}")
    return Component(
        kind,
        names,
        source.path,
        source.module,
        defined,
        (ast.get_docstring(definition) or "").partition("\n")[0],
        key,
        tuple(sorted(given & taken.keys())),
        options,
        tuple(signature.demands),
    )


def _read(source: Source, definition: Definition, signature: _Signature) -> None:
    """Read a function, or a class: what it extends first, as far as its signature leaves it."""
    signature.help |= {k: v for k, v in _help(definition).items() if k not in signature.help}
    if isinstance(definition, ast.FunctionDef):
        signature.taken |= _parameters(source, definition.args)
        return
    functions = {node.name: node for node in definition.body if isinstance(node, ast.FunctionDef)}
    init = functions.get("__init__")
    own = _parameters(source, init.args) if init else _fields(source, definition)
    extended = _Signature(help=signature.help)
    for base in definition.bases:
        found = source.find(base.id) if isinstance(base, ast.Name) else None
        if found:
            _read(*found, extended)
    signature.demands += extended.demands
    if "demands" in functions:
        signature.demands.append(source.function(functions["demands"]))
    if init and not init.args.kwarg:
        signature.taken |= own
    elif init:
        signature.taken |= {**own, **{k: v for k, v in extended.taken.items() if k not in own}}
    else:
        signature.taken |= {**extended.taken, **own}


def _parameters(
    source: Source, arguments: ast.arguments
) -> dict[str, tuple[Source, ast.expr | None, ast.expr | None]]:
    """Return parameter -> where it is, its annotation and its default."""
    positional = [*arguments.posonlyargs, *arguments.args]
    without = len(positional) - len(arguments.defaults)
    defaults = [*[None] * without, *arguments.defaults, *arguments.kw_defaults]
    both = zip([*positional, *arguments.kwonlyargs], defaults, strict=True)
    return {a.arg: (source, a.annotation, default) for a, default in both if a.arg != "self"}


def _fields(
    source: Source, definition: ast.ClassDef
) -> dict[str, tuple[Source, ast.expr | None, ast.expr | None]]:
    """Return the same of the fields of a dataclass; nothing of another class."""
    if not any(ast.unparse(each).startswith("dataclass") for each in definition.decorator_list):
        return {}
    return {
        node.target.id: (source, node.annotation, node.value)
        for node in definition.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if not ast.unparse(node.annotation).startswith("ClassVar")
    }


def _option(
    component: str,
    name: str,
    source: Source,
    annotation: ast.expr | None,
    default: ast.expr | None,
    text: str,
) -> Option:
    """Evaluate an option; raises UserError."""
    try:
        kind = source.value(annotation) if annotation else None
        value = source.value(default) if default else None
        fits = may_be_option(kind)
    except Exception:  # whatever the expression does
        fits = False
    if not fits:
        where = f"{source.path}:{annotation.lineno}" if annotation else f"{source.path}"
        told = f"{name}: {ast.unparse(annotation)}" if annotation else f"{name}, without a type,"
        raise UserError(
            f"{where}: option {told} of {component} cannot be checked; take bool, int, float, str, "
            "Literal, Sequence, Mapping or a type of chanprune.components, and a plain default"
        )
    value = list(value) if isinstance(value, tuple) else value
    return Option(kind, default is None, value, text)


def _help(definition: Definition) -> dict[str, str]:
    """Return option -> what the docstring says of it, in one line."""
    text = inspect.cleandoc(ast.get_docstring(definition) or "")
    _, _, described = text.partition("\nArgs:\n")
    if not described:
        _, _, described = text.partition("\nAttributes:\n")
    described = re.split(r"\n(?=\S)", described)[0]
    entries = re.split(r"\n?^ {4}(?=\w)", described, flags=re.MULTILINE)
    pairs = (entry.partition(": ") for entry in entries if entry)
    return {name: " ".join(line.split()) for name, _, line in pairs}
