"""Checks of one section of the configuration, which answer a mistake in one line."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as limits
from pydantic import BaseModel, ConfigDict, ValidationError

from chanprune.processes.errors import UserError
from chanprune.processes.texts import did_you_mean

NOUNS: dict[Any, tuple[str, str]] = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
    Any: ("a value", "values"),
}


class Section(BaseModel):
    """Options that belong together; all of them, and no others."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def check(
    kind: type[Section], values: Mapping[str, Any], prefix: str, known: list[str]
) -> dict[str, Any]:
    """Check the values of a section.

    Args:
        kind: The section.
        values: What it is to hold.
        prefix: What stands in front of its keys: "prune.", say.
        known: The keys that may stand there, for who mistypes one.

    Returns:
        The values of all options, with integers turned to floats where a float is meant.

    Raises:
        UserError: The first thing that is wrong, in one line.
    """
    try:
        return kind.model_validate(dict(values)).model_dump()
    except ValidationError as errors:
        error = errors.errors()[0]
    key = str(error["loc"][0])
    if inner := _section_at(kind, key, values):
        return check(inner, values[key], f"{prefix}{key}.", list(inner.model_fields))
    if error["type"] == "extra_forbidden":
        listed = ", ".join(known)
        raise UserError(
            f"{prefix}{key}: unknown key; known here: {listed}{did_you_mean(key, known)}"
        )
    field = kind.model_fields[key]
    demanded = demand(field.annotation, field.metadata)
    if error["type"] == "missing":
        raise UserError(f"{prefix}{key} is missing; it {demanded}")
    value = values.get(key, field.default)
    if error["type"] == "value_error":
        raise UserError(f"{prefix}{key}={value}: {error['ctx']['error']}")
    hint = did_you_mean(str(value), _choices(field.annotation))
    raise UserError(f"{prefix}{key}={value}: {demanded}{hint}")


def _section_at(kind: type[Section], key: str, values: Mapping[str, Any]) -> type[Section] | None:
    """Return the section that a key holds, if it holds one as it should."""
    field = kind.model_fields.get(key)
    inner = field.annotation if field else None
    if isinstance(inner, type) and issubclass(inner, Section) and isinstance(values.get(key), dict):
        return inner
    return None


def demand(annotation: Any, bounds: Sequence[Any] = ()) -> str:
    """Say what an option must be, from its type and the bounds that stand beside it."""
    plain, inside, is_optional = _taken_apart(annotation)
    bounds = [*bounds, *inside]
    optional = ", or null" if is_optional else ""
    if isinstance(plain, type) and issubclass(plain, Section):
        return f"must be {{KEY: VALUE}} with the keys {', '.join(plain.model_fields)}"
    if choices := _choices(plain):
        return f"must be one of {', '.join(choices)}{optional}"
    if get_origin(plain) in {list, Sequence}:
        item, inside, _ = _taken_apart(get_args(plain)[0])
        example = ", such as [0.5,0.75]" if item is float else ""
        return f"must be a list of {NOUNS[item][1]}{_interval(inside)}{example}{optional}"
    if get_origin(plain) in {dict, Mapping}:
        item, inside, _ = _taken_apart(get_args(plain)[1])
        return f"must be {{NAME: {NOUNS[item][0]}{_interval(inside)}}}{optional}"
    return f"must be {NOUNS[plain][0]}{_interval(bounds)}{optional}"


def _taken_apart(annotation: Any) -> tuple[Any, list[Any], bool]:
    """Return a type without what stands around it, its bounds, and whether it may be null."""
    if get_origin(annotation) is Annotated:
        plain, inside, is_optional = _taken_apart(get_args(annotation)[0])
        return plain, [*inside, *get_args(annotation)[1:]], is_optional
    if get_origin(annotation) in {Union, types.UnionType}:
        either = next(each for each in get_args(annotation) if each is not type(None))
        return (*_taken_apart(either)[:2], True)
    return annotation, [], False


def _choices(annotation: Any) -> tuple[str, ...]:
    plain = _taken_apart(annotation)[0]
    return get_args(plain) if get_origin(plain) is Literal else ()


def _interval(bounds: list[Any]) -> str:
    """Write bounds as " in [0, 1)" or " >= 1"."""
    low = next((b for b in bounds if isinstance(b, limits.Ge | limits.Gt)), None)
    high = next((b for b in bounds if isinstance(b, limits.Le | limits.Lt)), None)
    if low is None:
        return ""
    closed, least = isinstance(low, limits.Ge), getattr(low, "ge", getattr(low, "gt", None))
    if high is None:
        return f" >= {least}" if closed else f" > {least}"
    start = f"{'[' if closed else '('}{least}"
    end = f"{high.le}]" if isinstance(high, limits.Le) else f"{high.lt})"
    return f" in {start}, {end}"
