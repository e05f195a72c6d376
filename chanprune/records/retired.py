"""Options of earlier versions, whose runs have recorded them at the one value that is left.

What was recorded is read without them. The names of run directories and of cached stages are made
with them, so that the same command finds what it left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DYNAMIC = {"momentum": "keep"}
_CUCB = {**_DYNAMIC, "reduce": "batch", "statistic": "mean"}
RETIRED: dict[str, dict[str, Any]] = {
    "random_every_step": _DYNAMIC,
    "cucb": _CUCB,
    "final_random": _CUCB,
    "selectconv": {
        "order": "largest",
        "moment": "mean",
        "taps": "sum",
        "padding": "ignored",
        "shift_decay": 1e-5,
    },
}


def without_retired(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without such options; those with another value stay."""
    match config:
        case {"method": {"name": str(name)}}:
            gone = RETIRED.get(name, {}).items()
            own = {
                key: value for key, value in config["method"].items() if (key, value) not in gone
            }
            return {**config, "method": own}
    return dict(config)


def with_retired(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with such options, as an earlier version had it."""
    method = config["method"]
    return {**config, "method": {**RETIRED.get(method["name"], {}), **method}}
