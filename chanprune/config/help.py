"""What --help says of a method, a model or a data set: its options, as its signature has them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from chanprune.components import KINDS
from chanprune.config.checks import demand
from chanprune.config.chosen import chosen_component

COLUMNS = 100


def chosen_kinds(overrides: Sequence[str]) -> list[str]:
    """List the kinds of which a command line, KEY=VALUE, chooses one."""
    keys = [override.partition("=")[0].lstrip("+") for override in overrides]
    return [kind for kind in KINDS if kind in keys]


def describe(kind: str, values: Mapping[str, Any]) -> str:
    """Describe the component that a section names, and each of its options.

    Args:
        kind: One of `KINDS`.
        values: The section as it is composed; what it leaves out has its default.

    Raises:
        UserError: There is no such component.
    """
    component = chosen_component(kind, values)
    lines = [f"{kind} {values[component.key]}: {component.about}", ""]
    for name, option in component.options.items():
        value = values.get(name, option.default)
        shown = value if isinstance(value, str) else json.dumps(value)
        lines.append(f"  {kind}.{name}={shown}")
        wanted = demand(option.annotation).removeprefix("must be ")
        text = f"{option.help} {wanted[0].upper()}{wanted[1:]}.".strip()
        lines += textwrap.wrap(
            *(text, COLUMNS),
            initial_indent=" " * 6,
            subsequent_indent=" " * 6,
            break_on_hyphens=False,
        )
    return "\n".join(lines)
