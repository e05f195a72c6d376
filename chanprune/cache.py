"""The trained stages that are kept for other runs: `python -m chanprune.cache list|prune`.

Every folder of the cache bears a mark, a CACHEDIR.TAG of its own. What does not bear it is not the
cache's: it is neither listed nor deleted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tabulate import tabulate

from chanprune.errors import UserError, one_line
from chanprune.reading import json_if_any, text_of
from chanprune.texts import printable

ABOUT, MARK = "about.json", "CACHEDIR.TAG"
MARKED = """Signature: 8a477f597d28d172789f06886806bc55
# A train stage that chanprune keeps; python -m chanprune.cache prune deletes it.
"""
LOCK, MAKER, PART = ".lock", ".maker", ".part"
DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Entry:
    """A train stage that is kept.

    Attributes:
        folder: Where it is.
        about: What is known of it; None if that is damaged.
        age: Seconds since it was made.
        size: Bytes on the disk, if no run is left that shares its checkpoint.
    """

    folder: Path
    about: About | None
    age: float
    size: int

    @property
    def key(self) -> str:
        """Return the hash of everything that the stage depends on."""
        return self.folder.name.removeprefix(".").removesuffix(PART)


@dataclass(frozen=True)
class About:
    """What is known of a train stage.

    Attributes:
        run: The run that made it.
        seconds: How long that took.
        depends_on: All that decides its bits.
    """

    run: str
    seconds: float
    depends_on: Mapping[str, Any]


def read_about(folder: Path) -> About | None:
    """Return what is known of an entry; None if that, or its mark, is missing or damaged."""
    match json_if_any(folder / ABOUT) if is_marked(folder) else None:
        case {"run": str(run), "seconds": float(seconds), "depends_on": dict(depends_on)}:
            return About(run, seconds, depends_on)
    return None


def entries(cache_dir: Path) -> list[Entry]:
    """List what is kept, the newest first."""
    found = []
    for folder in filter(is_marked, cache_dir.iterdir()):
        size = sum(path.lstat().st_size for path in folder.iterdir())
        age = time.time() - folder.stat().st_mtime
        found.append(Entry(folder, read_about(folder), age, size))
    return sorted(found, key=lambda entry: entry.age)


def is_marked(folder: Path) -> bool:
    """Tell whether a folder is the cache's; one that is linked there is not."""
    if folder.is_symlink() or (folder / MARK).is_symlink():
        return False
    try:
        return text_of(folder / MARK) == MARKED
    except (OSError, ValueError):
        return False


def remove(entry: Entry) -> bool:
    """Delete an entry, unless a run is at work on it; runs that took it keep what they took.

    Raises:
        OSError: It cannot be deleted.
    """
    lock, maker = (entry.folder.with_name(entry.key + beside) for beside in (LOCK, MAKER))
    try:
        with FileLock(lock, timeout=0):
            clear(entry.folder)
            maker.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    except Timeout:
        return False
    return True


def clear(folder: Path) -> None:
    """Delete a folder of the cache, the mark last, so that what a kill leaves is found again.

    Raises:
        OSError: It cannot be deleted.
    """
    for path in folder.iterdir():
        if path.name != MARK:
            path.unlink()
    (folder / MARK).unlink(missing_ok=True)
    folder.rmdir()


def main() -> None:
    """List or delete."""
    parser = argparse.ArgumentParser(prog="chanprune.cache", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("outputs/cache"), help="cache.dir of runs")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show what is kept")
    prune = commands.add_parser("prune", help="delete it; runs keep what they took")
    prune.add_argument("keys", nargs="*", metavar="KEY", help="only these, as list shows them")
    prune.add_argument("--older-than", type=float, default=0.0, metavar="DAYS")
    options = parser.parse_args()
    with one_line():
        if not options.dir.is_dir():
            raise UserError(
                f"--dir={options.dir}: there is no such directory; give a run's cache.dir"
            )
        try:
            found = entries(options.dir)
            if options.command == "list":
                print(_listed(found))
            else:
                _prune(found, options.keys, options.older_than)
        except OSError as error:
            raise UserError(f"--dir={options.dir}: {error.filename}: {error.strerror}") from error


def _listed(found: list[Entry]) -> str:
    rows = []
    for entry in found:
        held = [f"{entry.age / DAY:.1f}", f"{entry.size / 2**20:.1f}"]
        names = _names(entry.about) if entry.about else None
        if entry.about is None or names is None:
            rows.append([entry.key, "damaged", "", "", "", "", *held, ""])
            continue
        rows.append([entry.key, *names, f"{entry.about.seconds:.0f}", *held, entry.about.run])
    rows = [[printable(text) for text in row] for row in rows]
    heads = ["key", "method", "model", "dataset", "epochs", "time s", "age days", "MiB", "made by"]
    total = sum(entry.size for entry in found)
    table = tabulate(rows, heads, tablefmt="simple", disable_numparse=True)
    return f"{table}\n{len(found)} train stages, {total / 2**20:.1f} MiB"


def _names(about: About) -> list[str] | None:
    """Return method, model, data set and epochs of an entry; None if they are not there."""
    match about.depends_on:
        case {
            "method": {"name": str(method)},
            "model": {"name": str(model)},
            "dataset": {"name": str(dataset)},
            "train": {"epochs": int(epochs)},
        }:
            return [method, model, dataset, f"{epochs}"]
    return None


def _prune(found: list[Entry], keys: list[str], older_than: float) -> None:
    for unknown in set(keys) - {entry.key for entry in found}:
        raise UserError(f"{unknown} is not kept; `python -m chanprune.cache list` shows what is")
    chosen = [
        entry
        for entry in found
        if (not keys or entry.key in keys) and entry.age >= older_than * DAY
    ]
    gone = [entry for entry in chosen if remove(entry)]
    freed = sum(entry.size for entry in gone)
    print(f"{len(gone)} of {len(found)} train stages deleted, up to {freed / 2**20:.1f} MiB freed")
    if len(gone) < len(chosen):
        print(f"{len(chosen) - len(gone)} stay, as runs are at work on them")


if __name__ == "__main__":
    main()
