"""The tables of the papers: what is missing of one is run, and ours printed beside the paper's.

python -m chanprune.reproduce --list                       every table with its rows
python -m chanprune.reproduce slimming-cifar10 --dry-run   commands, counts, time
python -m chanprune.reproduce slimming-cifar10 --scale smoke --seeds 2 train.batch_size=32

Runs are found by their directories; what is finished is not run again, what trains alike trains
once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from chanprune.channels.counting import Counts
from chanprune.config.asked import place
from chanprune.papers.counts import (
    device_name,
    estimate,
    in_words,
    network,
    static_counts,
    whole_counts,
)
from chanprune.papers.job import SHARE, Job, composed, control_command, is_finished
from chanprune.papers.published import PUBLISHED, Row, Table, bounds, like, read
from chanprune.papers.results import results
from chanprune.processes.errors import RunError, UserError, one_line
from chanprune.processes.texts import as_called

TRAIN = "python -m chanprune.train"
TRAINED = "decided by training"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=as_called("python -m chanprune.reproduce"),
        description=as_called(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", nargs="?", help="a table; --list names them")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every run")
    parser.add_argument("--list", action="store_true", help="name every table with its rows")
    parser.add_argument("--scale", choices=SHARE, default="full")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 .. N-1")
    parser.add_argument("--rows", metavar="A,B", help="these rows alone")
    parser.add_argument("--controls", metavar="A,B", help="these controls alone; none: without")
    parser.add_argument("--dry-run", action="store_true", help="show what would be run")
    parser.add_argument("--no-timing", action="store_true", help="dry run without a time")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="also write TABLE-SCALE.md")
    options = parser.parse_intermixed_args()
    with one_line():
        tables, sets = read(PUBLISHED)
        if options.list:
            print("\n\n".join(map(listed, tables.values())))
            return
        if options.table not in tables:
            raise UserError(f"{options.table}: no such table; choose from: {', '.join(tables)}")
        job = Job(tables[options.table], sets, options)
        if options.dry_run:
            for line in dry_run(job):
                print(as_called(line), flush=True)
            return
        failed = run(job)
        text = results(job)
        print(f"\n{text}")
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            path = options.out / f"{job.table.id}-{options.scale}.md"
            path.write_text(results(job, "github"), encoding="utf-8")
            print(f"in {path}")
        if failed:
            raise RunError(f"{failed} runs failed; the same command does them again")


def listed(table: Table) -> str:
    """Name a table's rows, and how each is had."""
    lines = [f"{table.id}: {table.title}", f"  {table.source}"]
    for row in table.rows.values():
        how = row.missing and f"not here: {row.missing}"
        how = how or (f"control={row.control} of {row.of}" if row.control else "")
        lines.append(f"  {row.id:28} {row.name:44} {how or ' '.join(row.command())}")
    return "\n".join(lines)


def dry_run(job: Job) -> Iterator[str]:
    """Yield the lines that show what would be run."""
    yield job.title()
    total = 0.0
    for row in job.rows():
        yield f"\n{row.id}: {row.name}"
        reason = job.why_not(row)
        if reason:
            yield f"  not run: {reason}"
            if not row.counted_as:
                continue
        elif row.control:
            yield f"  {TRAIN} control={row.control} control_of=<run of {row.of}>"
            continue
        else:
            for seed in range(job.options.seeds):
                yield f"  {TRAIN} {' '.join(job.command(row, seed))}"
            names = ",".join(job.controls_of(row))
            if names:
                yield f"  {TRAIN} -m control={names} control_of=<directory of the run above>"
        counts, lines = counted(job, row)
        yield f"  whole network: {counts.params:,} params, {counts.macs:,} MACs"
        yield from (f"  {line}" for line in lines)
        if not job.options.no_timing and not reason:
            seconds = estimate(job, row)
            total += job.options.seeds * seconds
            yield f"  about {in_words(seconds)} a seed on {device_name()}, without controls"
        if row.remark:
            yield f"  remark: {row.remark}"
    if total:
        yield f"\nall rows and seeds: about {in_words(total)}, without controls"
    yield ""
    yield from (f"- {remark}" for remark in job.table.remarks)


def counted(job: Job, row: Row) -> tuple[Counts, list[str]]:
    """Count a row's network, and compare what does not depend on training with the paper's.

    Returns:
        The counts of the whole network, and a line for each printed count.
    """
    config = job.compose(row.counted_as) if job.why_not(row) else job.config(row)
    whole = whole_counts(*network(job, row, config))
    own = job.compose(row.counted_as or row.command())
    ours = static_counts(job.table, row, own, *network(job, row, own))
    lines = []
    for column in ("params", "flops"):
        if column not in row.printed:
            continue
        printed, value = row.printed[column], ours.get(column)
        label = f"{column} ({job.convention(column)})"
        if value is None:
            lines.append(f"{label}: {TRAINED}; paper {printed}")
            continue
        said = "equal"
        if like(value, printed) != printed:
            off = 100 * (value / bounds(printed)[0] - 1)
            reason = row.differs.get(column, "UNEXPLAINED")
            said = f"{off:+.1f} %: {reason}"
        lines.append(f"{label}: {value:,.0f} = {like(value, printed)}, paper {printed}, {said}")
    return whole, lines


def run(job: Job) -> int:
    """Run what is missing; return how many runs failed."""
    failed = 0
    for row in sorted(job.rows(), key=lambda row: bool(row.control)):
        if job.why_not(row):
            continue
        for seed in range(job.options.seeds):
            failed += _do(job, row, seed)
    return failed


def _do(job: Job, row: Row, seed: int) -> int:
    if row.control and not is_finished(job.run_dir(job.table.rows[row.of], seed)):
        return 1
    run_dir = job.run_dir(row, seed)
    if call(job.command(row, seed), run_dir):
        return 1
    commands = [control_command(name, run_dir) for name in job.controls_of(row)]
    return sum(call(command, place(composed(command))) for command in commands)


def call(arguments: Sequence[str], run_dir: Path) -> bool:
    """Run a training unless it is finished; tell whether it failed."""
    if is_finished(run_dir):
        return False
    print(as_called(f"\n{TRAIN} {' '.join(arguments)}"), flush=True)
    train = [sys.executable, "-m", "chanprune.train", *arguments]
    return subprocess.run(train, check=False).returncode != 0


if __name__ == "__main__":
    main()
