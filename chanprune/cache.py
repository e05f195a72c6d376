"""List or delete the trained stages that are kept: `python -m chanprune.cache list|prune`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tabulate import tabulate

from chanprune.processes.errors import UserError, one_line
from chanprune.processes.texts import as_called, printable
from chanprune.records.cached_stages import About, Entry, entries, remove

DAY = 24 * 60 * 60


def main() -> None:
    """List or delete."""
    parser = argparse.ArgumentParser(
        prog=as_called("python -m chanprune.cache"), description=as_called(__doc__)
    )
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
