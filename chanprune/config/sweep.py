"""Sweeps: all jobs are checked before the first begins, and end in one table.

Hydra expands the command line and launches the jobs, in this process or in others, here or on a
cluster. Each job leaves its outcome in a file, which any launcher's jobs can.
"""

from __future__ import annotations

import csv
import io
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from tabulate import tabulate

from chanprune.files.reading import json_if_any
from chanprune.files.writing import make_folder, write_json, write_text
from chanprune.processes.errors import Interrupted, RunError, UserError

OUTCOMES = "jobs"
DIED = "its process ended without a word (killed, or out of memory)"


@dataclass(frozen=True)
class Job:
    """One job of a sweep: what it sets, KEY=VALUE, in the order of the command line."""

    overrides: tuple[str, ...]

    def named(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the values of some keys."""
        values = dict(override.partition("=")[::2] for override in self.overrides)
        return {key.lstrip("+"): values[key] for key in keys}


def expand(overrides: Sequence[str]) -> list[Job]:
    """List the jobs of a sweep, as Hydra's own sweeper will; inside an initialised Hydra."""
    loader = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    (batch,) = BasicSweeper.split_arguments(parsed, None)
    return [Job(tuple(job)) for job in batch]


def check_jobs(
    jobs: Sequence[Job], config_name: str, check: Callable[[DictConfig], Path | None]
) -> None:
    """Check every job's configuration.

    Args:
        jobs: The jobs.
        config_name: What they compose.
        check: Refuses a configuration; returns the directory that its results go to.

    Raises:
        UserError: A job cannot be, or two would write to one directory.
    """
    places: dict[Path, int] = {}
    for number, job in enumerate(jobs):
        try:
            place = check(compose(config_name, list(job.overrides)))
        except UserError as error:
            raise UserError(f"job {number} of the sweep: {error}") from error
        if place is not None and place in places:
            raise UserError(
                f"jobs {places[place]} and {number} of the sweep both write to {place}; without "
                "run.dir= every run gets a directory of its own"
            )
        if place is not None:
            places[place] = number


@dataclass(frozen=True)
class KeepOutcome:
    """A job as Hydra calls it; picklable, as it may be called in another process.

    Attributes:
        task: Does the work; returns what the table says of it, by column.
        folder: Where the outcome goes.
    """

    task: Callable[[DictConfig], Mapping[str, str] | None]
    folder: Path

    def __call__(self, config: DictConfig) -> None:
        """Do the job; a failure is written down and does not stop the others."""
        job = HydraConfig.get().job
        path = self.folder / OUTCOMES / f"{job.num}.json"
        named = " ".join(override.lstrip("+") for override in HydraConfig.get().overrides.task)
        print(f"job {job.num}: {named}", flush=True)
        try:
            outcome: dict[str, Any] = {"told": dict(self.task(config) or {})}
        except (UserError, RunError) as error:
            outcome = {"failed": " ".join(str(error).split())}
        except Interrupted as error:
            write_json(path, {"failed": str(error)})
            raise SystemExit(error.exit_code) from error
        except Exception as error:
            traceback.print_exc()
            outcome = {"failed": f"{type(error).__name__}: {error} (a bug; see its traceback)"}
        write_json(path, outcome)


def forget_outcomes(folder: Path) -> None:
    """Remove what an earlier call of the same sweep left."""
    make_folder(folder / OUTCOMES)
    for path in (folder / OUTCOMES).glob("*.json"):
        if path.stem.isdecimal():
            path.unlink()


def outcomes(folder: Path, number: int) -> list[dict[str, Any]]:
    """Read the outcomes of so many jobs: "told", by column, or the reason why it "failed"."""
    found = (json_if_any(folder / OUTCOMES / f"{job}.json") for job in range(number))
    return [outcome or {"failed": DIED} for outcome in found]


def write_table(folder: Path, jobs: Sequence[Job], ended: Sequence[Mapping[str, Any]]) -> str:
    """Write table.csv and table.md with a row for each job; return the latter."""
    keys = _swept(jobs)
    columns = list(dict.fromkeys(key for outcome in ended for key in outcome.get("told", {})))
    rows = [
        {
            "job": str(number),
            **job.named(keys),
            **{column: outcome.get("told", {}).get(column, "") for column in columns},
            "outcome": "failed" if "failed" in outcome else "done",
            "reason": outcome.get("failed", ""),
        }
        for number, (job, outcome) in enumerate(zip(jobs, ended, strict=True))
    ]
    as_csv = io.StringIO()
    writer = csv.DictWriter(as_csv, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "table.csv", as_csv.getvalue())
    shown = [{key: value for key, value in row.items() if key != "reason"} for row in rows]
    table = tabulate(shown, headers="keys", tablefmt="github", disable_numparse=True)
    reasons = [f"job {row['job']}: {row['reason']}" for row in rows if row["reason"]]
    text = "\n".join([table, "", *reasons, *([""] if reasons else [])])
    write_text(folder / "table.md", text)
    return text


def _swept(jobs: Sequence[Job]) -> list[str]:
    """List the keys whose values differ between jobs."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for override in job.overrides:
            key, _, value = override.partition("=")
            values.setdefault(key, set()).add(value)
    return [key for key, found in values.items() if len(found) > 1]
