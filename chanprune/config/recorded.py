"""The configuration that a run has recorded, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chanprune import components
from chanprune.config.schema import validate
from chanprune.processes.errors import UserError
from chanprune.records.run_dir import made_with, recorded_config

NOT_RECORDED: dict[str, Any] = {
    "run": {"dir": None, "overwrite": False},
    "cache": {"dir": "outputs/cache", "enabled": True},
    "components": None,
    "resume": None,
    "control": None,
    "control_of": None,
}


def checked_config(run_dir: Path) -> dict[str, Any] | None:
    """Return the configuration of the run in a directory, or None if no run of ours is there.

    Raises:
        UserError: It is not what this version of the program would record, or its network is made
            by code that nobody vouched for.
    """
    recorded = recorded_config(run_dir)
    if recorded is None:
        return None
    match recorded:
        case {"model": {"target": str(target)}}:
            components.refuse_unvouched(target)
    try:
        config = validate({**recorded, **NOT_RECORDED, "components": components.in_use()})
    except UserError as error:
        needed = made_with(run_dir)
        if needed and needed != components.in_use():
            raise UserError(
                f"{run_dir} holds a run that was made with components={needed}; give that too, if "
                "you know what is in it"
            ) from error
        raise UserError(f"{run_dir / 'config.yaml'}: {error}") from error
    return {key: value for key, value in config.items() if key not in NOT_RECORDED}
