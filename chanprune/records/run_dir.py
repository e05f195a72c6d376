"""A run's directory: which run it holds, how far it is, and that one process writes there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from chanprune.files.digest import digest, file_digest
from chanprune.files.reading import json_if_any, text_of, yaml_of
from chanprune.files.writing import flush_folder, make_folder, write_json, write_text
from chanprune.processes.errors import UserError
from chanprune.records.retired import with_retired, without_retired

CONFIG, METRICS, MANIFEST = "config.yaml", "metrics.jsonl", "manifest.json"
OURS = ["table.md", "table.csv", "summary.json", "plan.json", METRICS, CONFIG]
OURS += ["latency.json", "model.safetensors", "model.json", MANIFEST]
BENCHMARK, BENCHMARK_PICTURE = "benchmark.json", "benchmark.png"  # of a finished run; not sealed
LOCK, OWNER = ".lock", ".owner"
BLANK = {LOCK, OWNER, f".{CONFIG}.part"}
PICTURE = re.compile(r"[\w.-]+\.png")
FOLDERS = re.compile(r"(train|finetune)(-\d+)?|tensorboard")
LEFT = re.compile(r"\.tmp\w*|\..+\.part")  # what a kill left of a file that was being written
PLACES = [("dataset", "root"), ("model", "weights"), ("model", "run"), ("prune", "widths")]


@dataclass(frozen=True)
class Found:
    """What of a run is there.

    Attributes:
        state: How far it is.
        damaged: Its files that are missing or not what they were when it was finished.
        record: What config.yaml holds, or held when the run was finished.
    """

    state: Literal["nothing", "unfinished", "finished"]
    damaged: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


NOTHING = Found("nothing")


def default_dir(config: dict[str, Any], code: Mapping[str, str]) -> Path:
    """Return outputs/<dataset>/<model>-<method>-<hash>, the same for the same configuration.

    Args:
        config: The configuration.
        code: The user's own code that it names, see `components.own_code`.
    """
    model, method = config["model"]["name"], config["method"]["name"]
    described: Any = with_retired(config)
    key = digest([described, code["digest"]] if code else described, 8)
    return Path("outputs", config["dataset"]["name"], f"{model}-{method}-{key}")


def recorded_config(run_dir: Path) -> dict[str, Any] | None:
    """Return the configuration of the run in a directory, or None if no run of ours is there."""
    record = _recorded(run_dir)
    return record["config"] if record else None


def made_with(run_dir: Path) -> str | None:
    """Return what the run in a directory says that its user's own components were."""
    match _recorded(run_dir):
        case {"environment": {"components": {"name": str(name)}}}:
            return name
    return None


def _recorded(run_dir: Path) -> dict[str, Any] | None:
    """Return what config.yaml holds; None if it is missing or damaged."""
    try:
        values = yaml_of(run_dir / CONFIG)
    except (OSError, ValueError):
        return None
    return _record(values)


def _record(values: Any) -> dict[str, Any] | None:
    """Return a record of a run as this version writes it; None if it is none."""
    match values:
        case {"config": dict(config), "environment": dict(environment)} if len(values) == 2:
            return {"config": without_retired(config), "environment": environment}
    return None


def located(run_dir: Path, config: Mapping[str, Any], root: str | None = None) -> dict[str, Any]:
    """Return a configuration whose relative paths are taken from where its run began.

    If run and data were moved or copied together, they are taken from where that is now.

    Args:
        run_dir: The run's directory, which may not be there yet.
        config: The run's configuration.
        root: Where its data is now (dataset.root); None: where it was.
    """
    record = _recorded(run_dir)
    began = record["environment"] if record and record["config"] == config else {}
    here = {section: dict(config[section]) for section, _ in PLACES}
    for section, key in PLACES:
        path = config[section].get(key)
        if isinstance(path, str) and path and not Path(path).is_absolute():
            here[section][key] = _found(path, began, run_dir.absolute())
    if root is not None:
        here["dataset"]["root"] = root
    return {**config, **here}


def where_it_begins(run_dir: Path) -> dict[str, str]:
    """Return what `located` must know later of where a run begins."""
    return {"directory": str(Path.cwd()), "run_dir": str(run_dir.absolute())}


def _found(path: str, began: Mapping[str, Any], run_dir: Path) -> str:
    """Return where a relative path leads that was given where a run began; itself if that is here.

    Args:
        path: As it was given.
        began: See `where_it_begins`.
        run_dir: Where the run is now.
    """
    match began:
        case {"directory": str(directory), "run_dir": str(before)}:
            moved = Path(os.path.normpath(run_dir / os.path.relpath(directory, before)))
            for folder in (moved, Path(directory)):
                if (folder / path).exists():
                    return path if folder == Path.cwd() else str(folder / path)
    return path


def look(run_dir: Path, config: Mapping[str, Any], overwrite: bool) -> Found:
    """Tell what of the run is there; refuse a directory that holds something else.

    A directory belongs to a run from the moment that config.yaml is there. It is the first file of
    a run that is written, and the only one that `begin` replaces without a moment between. A run is
    finished if manifest.json, which is written last, says of every file what it is.
    """
    try:
        if run_dir.exists() and not run_dir.is_dir():
            raise UserError(f"run.dir={run_dir} is a file; give a directory")
        names = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
        if not names - BLANK or _is_stillborn(run_dir, names):
            return NOTHING
        record, files = _sealed(run_dir)
        damaged = [name for name, right in files.items() if _digest(run_dir / name) != right]
    except OSError as error:
        raise UserError(f"run.dir={run_dir} cannot be read: {error.strerror}") from error
    if record is None or CONFIG not in damaged:
        record = _recorded(run_dir)
    if record is None:
        return _without_config(run_dir, names, overwrite)
    if overwrite:
        return NOTHING
    if record["config"] != config:
        raise UserError(
            f"run.dir={run_dir} holds a run with another configuration; "
            f"give another run.dir, or run.overwrite=true to replace it"
        )
    if not files and "summary.json" in names:
        damaged = [MANIFEST]
    state: Literal["finished", "unfinished"] = "finished" if files else "unfinished"
    return Found(state, tuple(damaged), record)


def _is_stillborn(run_dir: Path, names: set[str]) -> bool:
    """Tell whether a run was killed before it was written down what run it is."""
    return names <= {*BLANK, METRICS} and LOCK in names and not (run_dir / METRICS).stat().st_size


def _without_config(run_dir: Path, names: set[str], overwrite: bool) -> Found:
    """Say what to do with a directory in which nothing says what run it holds."""
    if not {LOCK, METRICS} <= names or not all(map(_is_ours, names)):
        raise UserError(
            f"run.dir={run_dir} is not empty and holds no run; give a new or empty directory"
        )
    if overwrite:
        return NOTHING
    raise UserError(
        f"run.dir={run_dir} holds a run whose {CONFIG} is missing or damaged, so that nothing says "
        "what run it is; give another run.dir, or run.overwrite=true to replace it"
    )


def _is_ours(name: str) -> bool:
    kinds = (PICTURE, FOLDERS, LEFT)
    return name in {*OURS, BENCHMARK, LOCK, OWNER} or any(kind.fullmatch(name) for kind in kinds)


def announce(run_dir: Path, pictures: Sequence[str]) -> None:
    """Write down which pictures a run is about to draw, so that what replaces it removes them.

    Raises:
        RunError: The file cannot be written.
    """
    write_json(run_dir / MANIFEST, {"record": _recorded(run_dir), "pictures": list(pictures)})


def pictures_of(run_dir: Path) -> list[str]:
    """List the pictures that a run has drawn, or was about to draw."""
    match json_if_any(run_dir / MANIFEST):
        case {"pictures": list(names)} | {"files": dict(names)}:
            return [name for name in names if isinstance(name, str) and PICTURE.fullmatch(name)]
    return []


def seal(run_dir: Path) -> None:
    """Write down that the run is finished, and what its files are.

    Raises:
        RunError: The file cannot be written.
    """
    pictures = pictures_of(run_dir)
    ours = [name for name in (*OURS, *pictures) if name != MANIFEST and (run_dir / name).exists()]
    files = {name: _digest(run_dir / name) for name in sorted(ours)}
    with contextlib.suppress(OSError):
        (run_dir / OWNER).unlink(missing_ok=True)
    flush_folder(run_dir)
    write_json(
        run_dir / MANIFEST,
        {"record": _recorded(run_dir), "pictures": pictures, "files": files},
    )


def _sealed(run_dir: Path) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Return what `seal` wrote: the record, and name -> digest; nothing of what is damaged."""
    match json_if_any(run_dir / MANIFEST):
        case {"record": dict(record), "files": dict(files)} if _record(record):
            if files and all(map(_is_ours, files)):
                return _record(record), files
    return None, {}


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file; "" if it is missing or cannot be read."""
    if not path.is_file():
        return ""
    try:
        return file_digest(path)
    except OSError:
        return ""


def refuse_unwritable(key: str, folder: Path) -> None:
    """Refuse a directory that nothing can be written to, before any work; makes nothing."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "cannot be written to" if there.is_dir() else "is not a directory"
        raise UserError(f"{key}={folder} cannot be written: {there} {why}; give another directory")


@contextmanager
def only_process(run_dir: Path) -> Iterator[None]:
    """Keep the directory to this process; the lock goes when the process does.

    Raises:
        UserError: Another process is writing there.
    """
    lock, owner = FileLock(run_dir / LOCK, timeout=0), run_dir / OWNER
    try:
        make_folder(run_dir)
        lock.acquire()
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
    except Timeout as error:
        raise UserError(
            f"run.dir={run_dir} is being written by {_told(owner)}; wait for it, or give another "
            "run.dir"
        ) from error
    except OSError as error:
        lock.release()
        raise UserError(f"run.dir={run_dir} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()


def _told(owner: Path) -> str:
    """Return the process that says it is writing, as far as that can be read."""
    try:
        return text_of(owner) or "another process"
    except (OSError, ValueError):
        return "another process"


def begin(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Clear the directory of what an earlier run left in it, and write down what run it holds now.

    The last step replaces config.yaml, so that the directory is a run's all the time. Other files
    stay.

    Raises:
        UserError: The directory cannot be written.
    """
    try:
        beside = (BENCHMARK, BENCHMARK_PICTURE)
        for name in (
            *pictures_of(run_dir),
            *beside,
            *OURS,
        ):  # the manifest last, which names the pictures
            if name != CONFIG and not (run_dir / name).is_dir():
                (run_dir / name).unlink(missing_ok=True)
        for old in list(run_dir.iterdir()):
            if LEFT.fullmatch(old.name):
                old.unlink()
            elif FOLDERS.fullmatch(old.name) and not old.is_symlink():
                shutil.rmtree(old)
    except OSError as error:
        raise UserError(f"run.dir={run_dir} cannot be written: {error.strerror}") from error
    write_record(run_dir, record)


def write_record(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Write config.yaml.

    Raises:
        RunError: It cannot be written.
    """
    write_text(run_dir / CONFIG, yaml.safe_dump(dict(record), sort_keys=False))


def go_on(run_dir: Path, found: Found) -> None:
    """Prepare a directory for what is left of its run.

    Raises:
        UserError: The directory cannot be written.
        RunError: config.yaml cannot be written.
    """
    if CONFIG in found.damaged:
        write_record(run_dir, found.record)
    try:
        _clear_leftovers(run_dir)
    except OSError as error:
        raise UserError(f"run.dir={run_dir} cannot be written: {error.strerror}") from error


def _clear_leftovers(run_dir: Path) -> None:
    """Remove what a kill left of files that were being written."""
    stages = [path for path in run_dir.iterdir() if FOLDERS.fullmatch(path.name) and path.is_dir()]
    for folder in (run_dir, *stages):
        for path in folder.iterdir():
            if LEFT.fullmatch(path.name) and path.is_file():
                path.unlink()
