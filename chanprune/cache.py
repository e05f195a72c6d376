"""The trained stages that are kept for other runs: `python -m chanprune.cache list|prune`."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from chanprune.errors import UserError, one_line

ABOUT = "about.json"
LOCK, MAKER = ".lock", ".maker"
DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Entry:
    """A train stage that is kept.

    Attributes:
        folder: Where it is; its name is the hash of everything that the stage depends on.
        about: What that is ("depends_on"), the run that made it ("run"), and the seconds that it
            took ("seconds").
        age: Seconds since it was made.
        size: Bytes on the disk, if no run is left that shares its checkpoint.
    """

    folder: Path
    about: Mapping[str, Any]
    age: float
    size: int


def entries(cache_dir: Path) -> list[Entry]:
    """List what is kept, the newest first; what is damaged has nothing in its `about`."""
    found = []
    for folder in cache_dir.glob("*/"):
        about = {}
        with contextlib.suppress(OSError, ValueError):
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        size = sum(path.stat().st_size for path in folder.iterdir())
        found.append(Entry(folder, about, time.time() - folder.stat().st_mtime, size))
    return sorted(found, key=lambda entry: entry.age)


def remove(entry: Entry) -> None:
    """Delete an entry; runs that took it keep what they took."""
    shutil.rmtree(entry.folder)
    for beside in (LOCK, MAKER):
        entry.folder.with_name(entry.folder.name + beside).unlink(missing_ok=True)


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
        found = entries(options.dir)
        if options.command == "list":
            print(_listed(found))
        else:
            _prune(found, options.keys, options.older_than)


def _listed(found: list[Entry]) -> str:
    rows = []
    for entry in found:
        held = [f"{entry.age / DAY:.1f}", f"{entry.size / 2**20:.1f}"]
        depends_on = entry.about.get("depends_on")
        if depends_on is None:
            rows.append([entry.folder.name, "damaged", "", "", "", "", *held, ""])
            continue
        rows.append(
            [
                entry.folder.name,
                *(depends_on[section]["name"] for section in ("method", "model", "dataset")),
                depends_on["train"]["epochs"],
                f"{entry.about['seconds']:.0f}",
                *held,
                entry.about["run"],
            ]
        )
    heads = ["key", "method", "model", "dataset", "epochs", "time s", "age days", "MiB", "made by"]
    total = sum(entry.size for entry in found)
    table = tabulate(rows, heads, tablefmt="simple", disable_numparse=True)
    return f"{table}\n{len(found)} train stages, {total / 2**20:.1f} MiB"


def _prune(found: list[Entry], keys: list[str], older_than: float) -> None:
    for unknown in set(keys) - {entry.folder.name for entry in found}:
        raise UserError(f"{unknown} is not kept; `python -m chanprune.cache list` shows what is")
    chosen = [
        entry
        for entry in found
        if (not keys or entry.folder.name in keys) and entry.age >= older_than * DAY
    ]
    for entry in chosen:
        remove(entry)
    freed = sum(entry.size for entry in chosen)
    print(
        f"{len(chosen)} of {len(found)} train stages deleted, up to {freed / 2**20:.1f} MiB freed"
    )


if __name__ == "__main__":
    main()
