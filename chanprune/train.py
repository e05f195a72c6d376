"""Train a network, take channels out of it, fine-tune what is left: `python -m chanprune.train`."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from chanprune import cli, ranks
from chanprune.control import control
from chanprune.errors import UserError
from chanprune.pipeline.widths import kept_widths
from chanprune.run_dir import (
    NOT_RECORDED,
    OURS,
    Found,
    begin,
    checked_config,
    default_dir,
    go_on,
    look,
    only_process,
    refuse_unwritable,
    seal,
)
from chanprune.schema import validate

if TYPE_CHECKING:
    from chanprune.pipeline.run import Watch


def main() -> None:
    """Compose, validate, run."""
    cli.main("config", train, place)


def train(composed: dict[str, Any], watch: Watch | None = None) -> dict[str, str]:
    """Do the run that the configuration describes, or what is left to do of it.

    Args:
        composed: The configuration, as composed.
        watch: See `chanprune.pipeline.run.run`.

    Returns:
        Its line in the table of a sweep.

    Raises:
        UserError: The configuration is wrong, or the run directory is another's.
    """
    config, run_dir, apart = _understood(composed)
    if apart["resume"] is not None:
        _refuse_changes("resume", "goes on with a run as it was recorded")
    if apart["control"] is not None:
        _refuse_changes("control", "has the options of the run that control_of names")
    if ranks.count() > 1:
        return _do_together(config, run_dir, apart)
    return _do(config, run_dir, apart, watch)


def _do_together(config: dict[str, Any], run_dir: Path, apart: dict[str, Any]) -> dict[str, str]:
    """Do a run as one of several processes, of which the first alone writes and speaks."""
    from chanprune.parallel import joined
    from chanprune.pipeline.prepare import prepare
    from chanprune.pipeline.run import run

    with joined():
        _refuse_differences(config)
        finished = _look_together(run_dir, config, apart["run"]["overwrite"])
        if ranks.is_first():
            return _do(config, run_dir, apart)
        if not finished:
            with (
                tempfile.TemporaryDirectory() as scratch,
                open(os.devnull, "w", encoding="utf-8") as nowhere,
                contextlib.redirect_stdout(nowhere),
            ):
                run(config, prepare(config), Path(scratch))
        return {}


def _look_together(run_dir: Path, config: dict[str, Any], overwrite: bool) -> bool:
    """Tell all processes whether the first one sees the run finished.

    Raises:
        UserError: The first one refuses the directory; in all of them.
    """
    from chanprune.parallel import shared

    seen: bool | UserError = False
    if ranks.is_first():
        try:
            seen = _is_whole(look(run_dir, config, overwrite))
        except UserError as error:
            seen = error
    seen = shared(seen)
    if isinstance(seen, UserError):
        raise seen
    return bool(seen)


def _do(
    config: dict[str, Any],
    run_dir: Path,
    apart: dict[str, Any],
    watch: Watch | None = None,
) -> dict[str, str]:
    """Do what is left of a run; raises as `train` does."""
    overwrite = apart["run"]["overwrite"]
    if _is_whole(look(run_dir, config, overwrite)):
        return _tell_finished(run_dir)
    if config["prune"]["widths"] is not None:
        kept_widths(Path(config["prune"]["widths"]))
    cache_dir = Path(apart["cache"]["dir"]) if apart["cache"]["enabled"] else None
    for key, folder in (("run.dir", run_dir), ("cache.dir", cache_dir)):
        if folder is not None:
            refuse_unwritable(key, folder)
    from chanprune.pipeline.prepare import prepare
    from chanprune.pipeline.provenance import describe_environment
    from chanprune.pipeline.run import run

    prepared = prepare(config)
    with only_process(run_dir):
        found = look(run_dir, config, overwrite)
        if _is_whole(found):  # another process was faster
            return _tell_finished(run_dir)
        if found.state == "nothing":
            begin(run_dir, {"config": config, "environment": describe_environment()})
        else:
            _tell_unfinished(run_dir, found)
            go_on(run_dir, found)
        run(config, prepared, run_dir, cache_dir, watch)
        seal(run_dir)
    print(f"\n{(run_dir / 'table.md').read_text(encoding='utf-8')}")
    written = [path.name for path in run_dir.iterdir() if path.name in OURS]
    print(f"in {run_dir}: {', '.join(sorted(written, key=OURS.index))}, tensorboard")
    for picture in sorted(run_dir.glob("*.png")):
        print(f"picture: {picture}")
    print(f"the compact model: chanprune.load({str(run_dir)!r})")
    return _line(run_dir)


def _is_whole(found: Found) -> bool:
    return found.state == "finished" and not found.damaged


def _tell_finished(run_dir: Path) -> dict[str, str]:
    print((run_dir / "table.md").read_text(encoding="utf-8"))
    print(f"{run_dir} holds this run, finished; run.overwrite=true runs it again")
    return _line(run_dir)


def _tell_unfinished(run_dir: Path, found: Found) -> None:
    if found.damaged:
        print(
            f"{run_dir} holds this run, finished, but damaged or missing: "
            f"{', '.join(found.damaged)}; it is mended from the stages that are there"
        )
    else:
        print(f"{run_dir} holds this run, unfinished; it goes on where it was saved")


def _refuse_differences(config: dict[str, Any]) -> None:
    """Refuse processes that were started with other options than the first.

    Raises:
        UserError: In all of them.
    """
    from chanprune.parallel import of_all

    first, *others = of_all(dict(_flat(config)))
    for number, own in enumerate(others, start=1):
        for key in sorted(first.keys() | own.keys()):
            values = [told.get(key, "not given") for told in (first, own)]
            if values[0] != values[1]:
                raise UserError(
                    f"{key} is {values[0]} in process 0 and {values[1]} in process {number}; "
                    "start all processes of a training with the same options"
                )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value)


def place(composed: Mapping[str, Any]) -> Path:
    """Return the directory of the run that a configuration describes; raises as `train` does."""
    return _understood(composed)[1]


def _understood(composed: Mapping[str, Any]) -> tuple[dict[str, Any], Path, dict[str, Any]]:
    """Return the run's configuration, its directory, and the sections that are not recorded."""
    config = validate(composed)
    apart = {key: config.pop(key) for key in NOT_RECORDED}
    if apart["control"] is not None:
        config = control(apart["control"], Path(apart["control_of"]))
    if apart["resume"] is None:
        given = apart["run"]["dir"]
        return config, Path(given) if given else default_dir(config), apart
    run_dir = Path(apart["resume"])
    recorded = checked_config(run_dir)
    if recorded is None:
        raise UserError(f"resume={run_dir}: no run is there; give the directory of a run")
    if apart["run"]["dir"] or apart["run"]["overwrite"]:
        raise UserError("resume=... goes on with a run as it was recorded; leave out run.*")
    return recorded, run_dir, apart


def _refuse_changes(key: str, reason: str) -> None:
    """Refuse options beside one that takes all others from a recorded run."""
    beside = (f"{key}=", f"{key}_of=", "cache.", "run.")
    for override in HydraConfig.get().overrides.task:
        if not override.lstrip("+").startswith(beside):
            raise UserError(f"{key}=... {reason}; leave out {override}")


def _line(run_dir: Path) -> dict[str, str]:
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    return {
        "test acc %": f"{100 * summary['accuracy']:.2f}",
        "params": f"{summary['params']:,}",
        "MACs": f"{summary['macs']:,}",
        "run": str(run_dir),
    }


if __name__ == "__main__":
    main()
