"""Arguments KEY=VALUE of a command line, checked before Hydra sees them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from chanprune import components
from chanprune.config.schema import PATHS
from chanprune.files.reading import text_of, yaml_of
from chanprune.processes.errors import UserError
from chanprune.processes.texts import did_you_mean

SWEEP_DIR = "hydra.sweep.dir"
OVERRIDE = re.compile(r"(\+{0,2})([A-Za-z_][\w./@]*)=(.*)", re.DOTALL)
OPTIONAL = {"experiment"}


def all_checked(arguments: Sequence[str], folders: Sequence[Path], sweeps: bool) -> list[str]:
    """Check arguments, and let this process know the components that they name.

    Args:
        arguments: KEY=VALUE.
        folders: Of the configuration files: ours, and one of the user's.
        sweeps: Whether a value may be several.

    Returns:
        What Hydra is to be given.

    Raises:
        UserError: One of them cannot be.
    """
    _use_components(arguments)
    given = [argument for argument in arguments if not _is_unset(argument)]
    paths = _paths()
    quoted = [_quoted(argument, sweeps, paths) for argument in given]
    return [_checked(argument, folders, sweeps) for argument in quoted]


def as_lists(arguments: Sequence[str], keys: Iterable[str]) -> list[str]:
    """Let some keys' values be lists, fidelity=0.5,1.0; Hydra would take them for several runs."""
    prefixes = tuple(f"{key}=" for key in keys)
    return [
        f"{key}=[{value}]"
        if argument.startswith(prefixes) and not value.startswith("[")
        else argument
        for argument in arguments
        for key, _, value in [argument.partition("=")]
    ]


def _use_components(arguments: Sequence[str]) -> None:
    """Let this process know the user's own components, so that what is missing can be named."""
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if key == "components" and "," not in value:
            components.use(None if value in {"", "null"} else value.strip("'\""))


def _is_unset(argument: str) -> bool:
    """Tell whether an optional choice is given as null, which Hydra cannot read."""
    key, _, value = argument.lstrip("+").partition("=")
    return key in OPTIONAL and value in {"", "null"}


def _checked(argument: str, folders: Sequence[Path], sweeps: bool) -> str:
    """Check one KEY=VALUE; let a key that Hydra does not know pass on to the schema."""
    _, key, value = re.fullmatch(OVERRIDE, argument).groups()  # type: ignore[union-attr]
    try:
        parsed = OverridesParser.create().parse_override(argument)
    except HydraException as error:
        raise UserError(f"{argument}: cannot be parsed; does it need quotes?") from error
    if parsed.is_sweep_override() and not sweeps:
        raise UserError(f"{argument}: several values are several runs, which need the flag -m")
    groups = [folder / key for folder in folders if (folder / key).is_dir()]
    if not groups:
        return argument if key.startswith("hydra") else f"++{key}={value}"
    known = sorted(
        path.relative_to(group).with_suffix("").as_posix()
        for group in groups
        for path in group.rglob("*.yaml")
    )
    for choice in value.split(",") if sweeps else [value]:
        is_name = re.fullmatch(r"[\w./-]*", choice) or not sweeps
        if is_name and choice not in known:
            if key in components.KINDS and components.find(key, choice):
                raise UserError(
                    f"{key}={choice}: no file {key}/{choice}.yaml chooses it; write one (name: "
                    f"{choice}) in a folder, and give --config-dir=FOLDER"
                )
            listed = ", ".join(known)
            hint = did_you_mean(choice, known)
            raise UserError(f"{key}={choice}: no such choice; choose from: {listed}{hint}")
        for group in groups[1:]:
            _check_file(key, group / f"{choice}.yaml")
    return f"{key}={value}"


def _check_file(key: str, path: Path) -> None:
    """Refuse a user's configuration file that Hydra would not read as it is meant."""
    if not path.exists():
        return
    try:
        yaml_of(path)
        text = text_of(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    if text.startswith("\ufeff"):
        raise UserError(f"{path} begins with a byte-order mark; save it as UTF-8 without one")
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if key in OPTIONAL and not re.fullmatch(r"#\s*@package\s+_global_", first):
        raise UserError(f"{path}: its first line must be `# @package _global_`, not {first!r}")


def _paths() -> dict[str, bool]:
    """Return the options that hold a path, each with whether it may be null."""
    own = {
        f"{kind}.{key}": option.annotation != components.FilePath
        for kind in components.KINDS
        for component in components.known(kind).values()
        for key, option in component.options.items()
        if components.is_path(option.annotation)
    }
    return {**own, **PATHS, SWEEP_DIR: False}


def _quoted(argument: str, sweeps: bool, paths: Mapping[str, bool]) -> str:
    """Quote the value of an option that is a path, so that Hydra takes it as it stands.

    In a sweep, commas part several values; a path that has one needs quotes there.
    """
    plus, key, value = re.fullmatch(OVERRIDE, argument).groups()  # type: ignore[union-attr]
    is_null = paths.get(key) and value in {"", "null"}
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if key not in paths or is_null or is_quoted or (sweeps and "," in value):
        return argument
    return as_text(f"{plus}{key}", value)


def as_text(key: str, value: str) -> str:
    """Write KEY=VALUE so that Hydra takes the value as it stands."""
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
