"""The method, the criterion, the model and the data set that a configuration chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, create_model

from chanprune import components
from chanprune.components import Component, FilePath
from chanprune.config.checks import Section
from chanprune.processes.errors import UserError
from chanprune.processes.texts import did_you_mean


def chosen_component(kind: str, values: Mapping[str, Any]) -> Component:
    """Return the component that a section names.

    Args:
        kind: One of `KINDS`.
        values: The section.

    Raises:
        UserError: There is no such component.
    """
    key = "library" if "library" in values else "name"
    name = values.get(key)
    found = components.find(kind, name) if isinstance(name, str) else None
    if found is not None and found.key == key:
        return found
    known = sorted([*components.known(kind), *(["compact"] if kind == "model" else [])])
    listed, hint = ", ".join(known), did_you_mean(str(name), known)
    if key not in values:
        raise UserError(f"{kind}.name is missing; it must be one of {listed}")
    own = "" if components.in_use() else "; components=... adds your own"
    raise UserError(f"{kind}.{key}={name}: must be one of {listed}{hint}{own}")


def section_of(component: Component) -> type[Section]:
    """Return the section that holds a component's options, and its name."""
    fields: dict[str, Any] = {component.key: (Literal[component.names], ...)}
    if component.kind == "model":
        fields["weights"] = (FilePath | None, None)
    for name, option in component.options.items():
        default = ... if option.is_required else option.default
        fields[name] = (option.annotation, Field(default, validate_default=True))
    return create_model("Section", __base__=Section, **fields)


def check_demands(
    component: Component, options: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Check what a component demands of its options together.

    Raises:
        UserError: They do not go together.
    """
    for demand in component.demands:
        try:
            demand(options, config)
        except ValueError as error:
            raise UserError(str(error)) from error
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{component.path}: demands of {component.names[0]} fails, which may use built-in "
                f"names alone ({type(error).__name__}: {error})"
            ) from error
