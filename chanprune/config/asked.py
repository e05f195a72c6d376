"""What a command line asks for: which run, where, and how it goes on with what is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chanprune import components
from chanprune.config.control import control
from chanprune.config.recorded import NOT_RECORDED, checked_config
from chanprune.config.schema import refuse_missing_data, validate, vouch_for_code
from chanprune.processes.errors import UserError
from chanprune.records.run_dir import default_dir, located


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes:
        config: The run's configuration, as it is recorded.
        here: The same, with the paths at which its data and weights are now.
        run_dir: The run's directory.
        overwrite: Whether the run that is there is replaced.
        cache_dir: Where trained stages are kept for other runs, if they are.
        control: Of a control, its "name" and the run that it is "of".
    """

    config: dict[str, Any]
    here: dict[str, Any]
    run_dir: Path
    overwrite: bool
    cache_dir: Path | None
    control: Mapping[str, str] | None


def understood(composed: Mapping[str, Any]) -> Asked:
    """Check what is asked for; raises UserError."""
    composed, root = dict(composed), None
    vouch_for_code(composed)
    if composed["resume"] is not None or composed["control"] is not None:
        dataset, model = dict(composed["dataset"]), dict(composed["model"])
        root = dataset.pop("root", None)
        model.pop("target", None)
        composed |= {"dataset": dataset, "model": model}
    config = validate(composed)
    apart = {key: config.pop(key) for key in NOT_RECORDED}
    run_dir = Path(apart["run"]["dir"]) if apart["run"]["dir"] else None
    origin = None
    if apart["control"] is not None:
        origin = {"name": apart["control"], "of": apart["control_of"]}
        config = control(apart["control"], Path(apart["control_of"]), root)
    elif apart["resume"] is not None:
        if run_dir or apart["run"]["overwrite"]:
            raise UserError("resume=... goes on with a run as it was recorded; leave out run.*")
        run_dir = Path(apart["resume"])
        recorded = checked_config(run_dir)
        if recorded is None:
            raise UserError(f"resume={run_dir}: no run is there; give the directory of a run")
        config = recorded
    run_dir = run_dir or default_dir(config, components.own_code(config))
    cache_dir = Path(apart["cache"]["dir"]) if apart["cache"]["enabled"] else None
    overwrite = apart["run"]["overwrite"]
    here = config if overwrite else located(run_dir, config, root)
    if apart["resume"] is None:
        _refuse_other_data(config["dataset"], here["dataset"], run_dir)
    return Asked(config, here, run_dir, overwrite, cache_dir, origin)


def place(composed: Mapping[str, Any]) -> Path:
    """Return the directory of the run that a configuration describes; raises as `train` does."""
    asked = understood(composed)
    refuse_missing_data(asked.here)
    return asked.run_dir


def _refuse_other_data(
    asked: Mapping[str, Any], recorded: Mapping[str, Any], run_dir: Path
) -> None:
    """Refuse a run whose relative dataset.root led elsewhere when it began; raises UserError."""
    roots = [Path(dataset.get("root", ".")) for dataset in (asked, recorded)]
    if all(root.exists() for root in roots) and not roots[0].samefile(roots[1]):
        raise UserError(
            f"run.dir={run_dir} holds a run on {roots[1]}, not on {roots[0].absolute()}; give "
            "another run.dir, or run.overwrite=true to replace it"
        )
