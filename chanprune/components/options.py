"""Types of options, for the signature of a component: which values it takes.

They hold what a type checker needs and, beside it, the range, which is checked before any work.
"""

from __future__ import annotations

import os
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BeforeValidator


def _ascending(values: Sequence[float]) -> Sequence[float]:
    if not values or list(values) != sorted(set(values)):
        raise ValueError("must be ascending and distinct, at least one")
    return values


# A directory may be called 5, which Hydra reads as a number.
Text = Annotated[str, BeforeValidator(lambda value: f"{value}" if type(value) is int else value)]
FilePath = Annotated[Text, AfterValidator(os.path.expanduser)]
Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Width = Annotated[float, Gt(0), Le(64)]
Share = Annotated[float, Ge(0), Lt(1)]
ShareOrAll = Annotated[float, Ge(0), Le(1)]
PartOrAll = Annotated[float, Gt(0), Le(1)]
Options = Mapping[str, Any]
Levels = Annotated[Sequence[PartOrAll], AfterValidator(_ascending)]

# What an annotation may name, besides what its own file defines.
VOCABULARY: dict[str, Any] = {
    **{each.__name__: each for each in (bool, int, float, str, list, dict)},
    **{each.__name__: each for each in (Mapping, Sequence, Ge, Gt, Le, Lt)},
    "Annotated": Annotated,
    "Literal": Literal,
    "Text": Text,
    "FilePath": FilePath,
    "Count": Count,
    "CountOrZero": CountOrZero,
    "Positive": Positive,
    "NotNegative": NotNegative,
    "Width": Width,
    "Share": Share,
    "ShareOrAll": ShareOrAll,
    "PartOrAll": PartOrAll,
    "Levels": Levels,
    "Options": Options,
}


def may_be_option(annotation: Any) -> bool:
    """Tell whether values of a type can stand in YAML and on the command line."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return may_be_option(inside[0])
    if origin in {Union, types.UnionType}:
        others = [each for each in inside if each is not type(None)]
        return len(others) == 1 and may_be_option(others[0])
    if origin in {list, Sequence}:
        return _is_plain(inside[0])
    if origin in {dict, Mapping}:
        return inside[0] is str and (inside[1] is Any or _is_plain(inside[1]))
    if origin is Literal:
        return all(isinstance(choice, str) for choice in inside)
    return _is_plain(annotation)


def _is_plain(annotation: Any) -> bool:
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return kind in {bool, int, float, str}


def is_path(annotation: Any) -> bool:
    """Tell whether an option holds a path."""
    inside = [each for each in get_args(annotation) if each is not type(None)]
    return annotation == FilePath or inside == [FilePath]
