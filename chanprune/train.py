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

from chanprune import components
from chanprune.config import cli
from chanprune.config.asked import Asked, place, understood
from chanprune.config.composing import OF_CODE
from chanprune.config.schema import refuse_missing_data
from chanprune.files.digest import file_digest
from chanprune.files.reading import text_of
from chanprune.pipeline.widths import kept_widths
from chanprune.processes import ranks
from chanprune.processes.errors import UserError
from chanprune.records.run_dir import (
    OURS,
    Found,
    begin,
    go_on,
    look,
    only_process,
    pictures_of,
    refuse_unwritable,
    seal,
    where_it_begins,
)
from chanprune.records.schemas import read_summary
from chanprune.show.table import percent

if TYPE_CHECKING:
    from chanprune.pipeline.job import Watch


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
    asked = understood(composed)
    if composed["resume"] is not None:
        _refuse_changes("resume", "goes on with a run as it was recorded")
    if composed["control"] is not None:
        _refuse_changes("control", "has the options of the run that control_of names")
    if ranks.count() > 1:
        return _do_together(asked)
    return _do(asked, watch)


def _do_together(asked: Asked) -> dict[str, str]:
    """Do a run as one of several processes, of which the first alone writes and speaks."""
    from chanprune.pipeline.prepare import prepare
    from chanprune.pipeline.run import run
    from chanprune.processes.parallel import joined

    with joined():
        _refuse_differences({**asked.config, "components": components.own_code(asked.config)})
        finished = _look_together(asked)
        if ranks.is_first():
            return _do(asked)
        if not finished:
            with (
                tempfile.TemporaryDirectory() as scratch,
                open(os.devnull, "w", encoding="utf-8") as nowhere,
                contextlib.redirect_stdout(nowhere),
            ):
                run(asked.here, prepare(asked.here), Path(scratch))
        return {}


def _look_together(asked: Asked) -> bool:
    """Tell all processes whether the first one sees the run finished.

    Raises:
        UserError: The first one refuses the directory; in all of them.
    """
    from chanprune.processes.parallel import shared

    seen: bool | UserError = False
    if ranks.is_first():
        try:
            seen = _is_whole(_look(asked))
        except UserError as error:
            seen = error
    seen = shared(seen)
    if isinstance(seen, UserError):
        raise seen
    return bool(seen)


def _do(asked: Asked, watch: Watch | None = None) -> dict[str, str]:
    """Do what is left of a run; raises as `train` does."""
    run_dir, here = asked.run_dir, asked.here
    if _is_whole(_look(asked)):
        return _tell_finished(run_dir)
    refuse_missing_data(here)
    if here["prune"]["widths"] is not None:
        kept_widths(Path(here["prune"]["widths"]))
    for key, folder in (("run.dir", run_dir), ("cache.dir", asked.cache_dir)):
        if folder is not None:
            refuse_unwritable(key, folder)
    from chanprune.pipeline.prepare import prepare
    from chanprune.pipeline.provenance import describe_environment
    from chanprune.pipeline.run import run

    prepared = prepare(here)
    images = {"images": prepared.dataset.digest(), "files": prepared.dataset.times()}
    with only_process(run_dir):
        found = _look(asked)
        if _is_whole(found):  # another process was faster
            return _tell_finished(run_dir)
        if found.state == "nothing":
            origin: dict[str, Any] = {"control": dict(asked.control)} if asked.control else {}
            where = where_it_begins(run_dir)
            code = components.own_code(asked.config)
            origin |= {"components": code} if code else {}
            weights = _digest_of_weights(asked)
            environment = {**describe_environment(), **where, **images, **weights, **origin}
            begin(run_dir, {"config": asked.config, "environment": environment})
        else:
            _compare_images(found, images, run_dir, here["dataset"])
            _tell_unfinished(run_dir, found)
            go_on(run_dir, found)
        run(here, prepared, run_dir, asked.cache_dir, watch)
        seal(run_dir)
    print(f"\n{text_of(run_dir / 'table.md')}")
    written = [name for name in OURS if (run_dir / name).exists()]
    print(f"in {run_dir}: {', '.join(written)}, tensorboard")
    for picture in sorted(pictures_of(run_dir)):
        print(f"picture: {run_dir / picture}")
    factory = ", factory=...)" if "target" in asked.config["model"] else ")"
    print(f"the compact model: chanprune.load({str(run_dir)!r}{factory}")
    return _line(run_dir)


def _look(asked: Asked) -> Found:
    """Look at the run's directory; refuse what `look` does, and a run of other code.

    Raises:
        UserError: The directory holds something else.
    """
    found = look(asked.run_dir, asked.config, asked.overwrite)
    code = components.own_code(asked.config)
    what = "model.target" if "target" in asked.config["model"] else "components"
    match found.record:
        case {"environment": {"components": {"digest": began}}} if code and began != code["digest"]:
            raise UserError(
                f"run.dir={asked.run_dir} holds a run that was made with other code than "
                f"{what}={code['name']} is now; put that back, or give another run.dir, or "
                "run.overwrite=true"
            )
    weights = _digest_of_weights(asked)
    match found.record:
        case {"environment": {"weights": began}} if weights and began != weights["weights"]:
            raise UserError(
                f"run.dir={asked.run_dir} holds a run that began with other weights than "
                f"model.weights={asked.config['model']['weights']} are now; give another run.dir, "
                "or run.overwrite=true"
            )
    return found


def _digest_of_weights(asked: Asked) -> dict[str, str]:
    """Return what the file of weights is that a run begins with; nothing if there is none."""
    path = Path(asked.here["model"].get("weights") or "")
    return {"weights": file_digest(path)} if path.is_file() else {}


def _is_whole(found: Found) -> bool:
    return found.state == "finished" and not found.damaged


def _tell_finished(run_dir: Path) -> dict[str, str]:
    print(text_of(run_dir / "table.md"))
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


def _compare_images(
    found: Found, now: Mapping[str, str], run_dir: Path, dataset: Mapping[str, Any]
) -> None:
    """Notice that a run which goes on would see other images than it began with.

    Raises:
        UserError: They are others.
    """
    began = {**now, **found.record["environment"]}
    where = f"dataset.root={dataset['root']}" if "root" in dataset else f"dataset={dataset['name']}"
    if began["images"] != now["images"]:
        raise UserError(
            f"{where} holds other images or classes than when the run in {run_dir} began; put back "
            "those that were there, or begin anew (run.overwrite=true, or another run.dir)"
        )
    if began["files"] != now["files"]:
        print(f"{where} was written to since the run began; names and sizes are the same")


def _refuse_differences(config: dict[str, Any]) -> None:
    """Refuse processes that were started with other options than the first.

    Raises:
        UserError: In all of them.
    """
    from chanprune.processes.parallel import of_all

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


def _refuse_changes(key: str, reason: str) -> None:
    """Refuse options beside one that takes all others from a recorded run."""
    beside = (f"{key}=", f"{key}_of=", "cache.", "run.", "dataset.root=", *OF_CODE[1:])
    for override in HydraConfig.get().overrides.task:
        if not override.lstrip("+").startswith(beside):
            raise UserError(f"{key}=... {reason}; leave out {override}")


def _line(run_dir: Path) -> dict[str, str]:
    summary = read_summary(run_dir)
    return {
        "val acc %": percent(summary.final.val_accuracy),
        "test acc %": percent(summary.accuracy),
        "params": f"{summary.params:,}",
        "MACs": f"{summary.macs:,}",
        "run": str(run_dir),
    }


if __name__ == "__main__":
    main()
