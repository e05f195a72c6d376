"""A run's directory: which run it holds, how far it is, and that one process writes there."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from chanprune.digest import digest
from chanprune.errors import UserError
from chanprune.schema import validate

OURS = ["table.md", "table.csv", "summary.json", "plan.json", "metrics.jsonl", "config.yaml"]
OURS += ["model.safetensors", "model.json"]
LOCK, OWNER = ".lock", ".owner"
PICTURES = re.compile(r"((scales|order|times_active)(-\d+)?|channels|levels|active)\.png")
FOLDERS = re.compile(r"(train|finetune)(-\d+)?|tensorboard")
Found = Literal["nothing", "unfinished", "finished"]
NOT_RECORDED: dict[str, Any] = {
    "run": {"dir": None, "overwrite": False},
    "cache": {"dir": "outputs/cache", "enabled": True},
    "resume": None,
    "control": None,
    "control_of": None,
}


def default_dir(config: dict[str, Any]) -> Path:
    """Return outputs/<dataset>/<model>-<method>-<hash>, the same for the same configuration."""
    model, method = config["model"]["name"], config["method"]["name"]
    return Path("outputs", config["dataset"]["name"], f"{model}-{method}-{digest(config, 8)}")


def recorded_config(run_dir: Path) -> dict[str, Any] | None:
    """Return the configuration of the run in a directory, or None if no run of ours is there."""
    try:
        text = (run_dir / "config.yaml").read_text(encoding="utf-8")
        values = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    if not isinstance(values, dict) or set(values) != {"config", "environment"}:
        return None
    config = values["config"]
    return config if isinstance(config, dict) else None


def checked_config(run_dir: Path) -> dict[str, Any] | None:
    """Return what `recorded_config` does, checked.

    Raises:
        UserError: It is not what this version of the program would record.
    """
    recorded = recorded_config(run_dir)
    if recorded is None:
        return None
    try:
        config = validate({**recorded, **NOT_RECORDED})
    except UserError as error:
        raise UserError(f"{run_dir / 'config.yaml'}: {error}") from error
    return {key: value for key, value in config.items() if key not in NOT_RECORDED}


def look(run_dir: Path, config: dict[str, Any], overwrite: bool) -> Found:
    """Tell what of the run is there; refuse a directory that holds something else."""
    try:
        if run_dir.exists() and not run_dir.is_dir():
            raise UserError(f"run.dir={run_dir} is a file; give a directory")
        names = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
    except OSError as error:
        raise UserError(f"run.dir={run_dir} cannot be read: {error.strerror}") from error
    if not names - {LOCK, OWNER}:
        return "nothing"
    recorded = recorded_config(run_dir)
    if recorded is None:
        raise UserError(
            f"run.dir={run_dir} is not empty and holds no run; give a new or empty directory"
        )
    if overwrite:
        return "nothing"
    if recorded != config:
        raise UserError(
            f"run.dir={run_dir} holds a run with another configuration; "
            f"give another run.dir, or run.overwrite=true to replace it"
        )
    return "finished" if "summary.json" in names else "unfinished"


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
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
    except Timeout as error:
        who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        raise UserError(
            f"run.dir={run_dir} is being written by {who}; wait for it, or give another run.dir"
        ) from error
    except OSError as error:
        raise UserError(f"run.dir={run_dir} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def begin(run_dir: Path) -> None:
    """Clear the directory of what an earlier run left in it; other files stay."""
    try:
        for old in list(run_dir.iterdir()):
            if old.name in OURS or PICTURES.fullmatch(old.name):
                old.unlink()
            elif FOLDERS.fullmatch(old.name):
                shutil.rmtree(old)
        (run_dir / "metrics.jsonl").touch()
    except OSError as error:
        raise UserError(f"run.dir={run_dir} cannot be written: {error.strerror}") from error
