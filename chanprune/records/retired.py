"""Options that earlier versions had, and those that they had not.

Their runs have recorded the first at the one value that is left, and not the second, which then had
no effect. What was recorded is read as it would be recorded now. The names of run directories and
of cached stages are made of what was recorded then, so that the same command finds what it left.
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


ADDED: dict[str, dict[str, Any]] = {
    "criterion": {"name": "own"},
    "dataset": {"mean": None, "std": None},
    "prune": {
        "target_macs": None,
        "target_params": None,
        "target_memory": None,
        "scope": "global",
        "keep": [],
        "shares": {},
        "least_squares": 0,
        "target_latency_ms": None,
        "latency": {"runtime": "eager", "batch": 1, "threads": None},
    },
}


def without_retired(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded configuration as it would be recorded now.

    Options that are gone stay where they have another value than the one that is left.
    """
    match config:
        case {"method": {"name": str(name)}, "prune": dict()}:
            gone = RETIRED.get(name, {}).items()
            own = {
                key: value for key, value in config["method"].items() if (key, value) not in gone
            }
            added = {section: {**new, **config.get(section, {})} for section, new in ADDED.items()}
            return {**config, **added, "method": own}
    return dict(config)


def with_retired(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as an earlier version would have recorded it, where it could."""
    method = config["method"]
    before = {**config, "method": {**RETIRED.get(method["name"], {}), **method}}
    for section, new in ADDED.items():
        own = config.get(section, {})
        left = {key: value for key, value in own.items() if (key, value) not in new.items()}
        before[section] = left
    return {section: values for section, values in before.items() if values != {}}
