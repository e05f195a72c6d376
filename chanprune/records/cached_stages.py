"""The trained stages that are kept for other runs, each in a folder that bears a mark.

The mark is a CACHEDIR.TAG of our own. A folder without it is not the cache's: it is neither listed
nor deleted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from chanprune.files.reading import json_if_any, text_of

ABOUT, MARK = "about.json", "CACHEDIR.TAG"
MARKED = """Signature: 8a477f597d28d172789f06886806bc55
# A train stage that chanprune keeps; python -m chanprune.cache prune deletes it.
"""
LOCK, MAKER, PART = ".lock", ".maker", ".part"


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
