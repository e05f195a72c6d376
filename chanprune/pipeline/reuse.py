"""The train stage's results, kept so that runs that train alike train once.

Training is found again by a hash of everything it depends on (`training_depends_on`). Where that is
the same, training gives the same bits, and a run takes the other's last checkpoint and metrics for
its own.

One process at a time makes an entry, the others wait for it. The operating system takes the lock
from a process that died, so that no lock goes stale; the next process goes on at the last
checkpoint of the one that died.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from chanprune.components import find, is_own, own_code
from chanprune.files.digest import digest
from chanprune.files.reading import json_if_any, text_of
from chanprune.files.writing import (
    flush_folder,
    make_folder,
    part_of,
    replace,
    write_json,
    write_text,
)
from chanprune.methods import METHODS, Method, PruneOptions
from chanprune.pipeline.checkpoint import BEFORE, NEWEST, CheckpointError, epochs_done, read
from chanprune.pipeline.prepare import Prepared
from chanprune.pipeline.record import Record
from chanprune.processes import ranks
from chanprune.processes.errors import RunError
from chanprune.processes.interruption import Interruption
from chanprune.records.cached_stages import ABOUT, LOCK, MAKER, MARK, MARKED, clear, read_about
from chanprune.records.retired import with_retired

FORMAT = 2  # to be raised when a checkpoint's layout, or what training does, changes
PLACES = {"root", "weights", "run"}  # options that say where something is, not what
WITHOUT_EFFECT = {"workers", "memory_limit"}


def training_depends_on(config: Mapping[str, Any], prepared: Prepared) -> dict[str, Any]:
    """Return everything that decides the bits of the first train stage.

    Data and weights are known by what they are: by the digests of the images and of the network's
    initial tensors.
    """
    name = config["method"]["name"]
    trains_as, after_training = _said(name, "trains_as"), _said(name, "after_training")
    then_prunes = config["criterion"]["name"] != "own" and not METHODS[name].prunes
    before = with_retired(config)
    own = {key: value for key, value in before["method"].items() if key not in after_training}
    dataset, network = prepared.dataset, prepared.network
    options = {
        section: {k: v for k, v in before[section].items() if k not in PLACES | WITHOUT_EFFECT}
        for section in ("model", "dataset")
    }
    code = own_code(config)
    return {
        **({"components": code["digest"]} if code else {}),
        "format": FORMAT,
        "torch": str(torch.__version__),
        "processor": _processor(prepared.device),
        "processes": ranks.count(),
        "seed": config["seed"],
        **options,
        "architecture": prepared.architecture,
        "plan": network.plan.to_json(),
        "tensors": _digest_of(network.model),
        "images": [dataset.digest(), dataset.times(), dataset.mean, dataset.std, dataset.streams],
        "method": {"name": trains_as} if trains_as else own,
        "train": {k: v for k, v in config["train"].items() if k != "save_every_minutes"},
        **({"then_prunes": True} if then_prunes else {}),
        "prune": _selecting(prepared.prune) if METHODS[name].trains_for_pruning else None,
    }


def _selecting(options: PruneOptions) -> dict[str, Any]:
    """Return how channels are selected, without what an earlier version did not know."""
    added: dict[str, Any] = {"budget": None, "scope": "global", "shares": {}}
    return {k: v for k, v in asdict(options).items() if k not in added or v != added[k]}


def _said(name: str, what: str) -> Any:
    """Return an attribute of a method; of a user's own, not what it inherits from one of ours.

    Its training may be another than that of the class that it extends.
    """
    method, component = METHODS[name], find("method", name)
    is_ours = component is None or not is_own(component)
    return getattr(method if is_ours or what in vars(method) else Method, what)


def _processor(device: torch.device) -> list[str | int]:
    """Name what computes: its kind, its number of threads and its vector instructions."""
    if device.type == "cuda":
        return ["cuda", torch.cuda.get_device_name(device)]
    return [device.type, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()]


def _digest_of(model: nn.Module) -> str:
    """Return a hash of all tensors of a network."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        hashed.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


class StageCache:
    """The entry of one run's train stage.

    Args:
        cache_dir: Where entries are.
        depends_on: What `training_depends_on` says of the run.
        run_dir: The run's directory.
    """

    def __init__(self, cache_dir: Path, depends_on: Mapping[str, Any], run_dir: Path):
        self.depends_on = depends_on
        self.folder = cache_dir / digest(depends_on, 16)
        self.run_dir = run_dir.resolve()
        self._maker = self.folder.with_name(self.folder.name + MAKER)

    @contextmanager
    def claim(self, stage: str, record: Record, interruption: Interruption) -> Iterator[None]:
        """Take the stage from the cache, or be the only process that trains it, and keep it.

        Args:
            stage: Name of the stage: its folder in the run, and its name in the metrics.
            record: Where the metrics of what is taken go.
            interruption: Ends the wait for another process.

        Raises:
            Interrupted: A signal came during the wait.
        """
        own = self.run_dir / stage
        if self._take(own, stage, record):
            yield
            return
        with self._only_maker(record, interruption):
            if not self._take(own, stage, record):
                self._take_over(own, stage, record)
                write_json(self._maker, self._signature())
            yield
            try:
                self._keep(own / NEWEST)
            except (OSError, RunError) as error:
                record.say(f"  not kept for other runs: {error}")

    def _take(self, own: Path, stage: str, record: Record) -> bool:
        """Take what is finished, unless the run has finished the stage itself."""
        about, kept = read_about(self.folder), self.folder / NEWEST
        if not self.folder.exists():
            return False
        try:
            if about is None:
                raise CheckpointError(f"{MARK} or {ABOUT} cannot be read")
            _, facts = read(kept)
        except CheckpointError as error:
            record.say(f"{stage}: what {self.folder} keeps of it is damaged ({error})")
            return False
        if epochs_done(own / NEWEST) == facts["epoch"]:
            return True
        try:
            _link(kept, own / NEWEST)
        except RunError as error:
            record.say(f"{stage}: what {self.folder} keeps of it cannot be taken: {error}")
            return False
        record.say(f"{stage}: {about.run} has trained the same; its result is taken")
        return True

    def _take_over(self, own: Path, stage: str, record: Record) -> None:
        """Go on where a process ended that was making the same."""
        signature = self._last_maker()
        if signature is None or (own / NEWEST).exists():
            return
        maker = Path(signature["run"])
        theirs = maker / stage
        if maker == self.run_dir or not (theirs / NEWEST).exists():
            return
        for name in (BEFORE, NEWEST):
            if (theirs / name).exists():
                _link(theirs / name, own / name)
        record.say(f"{stage}: goes on where {maker} was left")

    @contextmanager
    def _only_maker(self, record: Record, interruption: Interruption) -> Iterator[None]:
        make_folder(self.folder.parent)
        lock = FileLock(self.folder.with_name(self.folder.name + LOCK))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            maker = self._last_maker() or {"run": "another run"}
            record.say(f"waits for {maker['run']}, which trains the same")
            _wait(lock, interruption)
        try:
            yield
        finally:
            lock.release()

    def _signature(self) -> dict[str, str]:
        """Name the run, so that it is noticed when its directory holds another by now."""
        return {"run": str(self.run_dir), "config": _checksum(self.run_dir)}

    def _last_maker(self) -> dict[str, str] | None:
        """Return the signature of the run that began to make the entry, if it is still there."""
        match json_if_any(self._maker):
            case {"run": str(run), "config": str(config)} if _checksum(Path(run)) == config:
                return {"run": run, "config": config}
        return None

    def _keep(self, own: Path) -> None:
        """Put the finished stage's checkpoint into the cache, whole or not at all."""
        kept = self.folder / NEWEST
        if kept.exists() and kept.samefile(own) and read_about(self.folder):
            return
        _, facts = read(own)
        about = {
            "run": str(self.run_dir),
            "seconds": float(facts["cost"]["seconds"]),
            "depends_on": self.depends_on,
        }
        part = part_of(self.folder)
        for old in (self.folder, part):
            if old.exists() and not old.is_symlink():
                write_text(old / MARK, MARKED)
                clear(old)
        write_text(part / MARK, MARKED)
        _link(own, part / NEWEST)
        write_json(part / ABOUT, about)
        part.replace(self.folder)
        flush_folder(self.folder.parent)
        self._maker.unlink(missing_ok=True)


def _checksum(run_dir: Path) -> str:
    """Return a hash of a run's recorded configuration; "" if it cannot be read."""
    try:
        return hashlib.sha256(text_of(run_dir / "config.yaml").encode()).hexdigest()
    except (OSError, ValueError):
        return ""


def _wait(lock: FileLock, interruption: Interruption) -> None:
    """Wait for the lock, but not longer than until a signal comes."""
    while not lock.is_locked:
        interruption.stop_if_requested()
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=1)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot; replaces `target`."""

    def link(part: Path) -> None:
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)

    replace(target, link)
