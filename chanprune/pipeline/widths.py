"""The widths that another run kept, read without PyTorch."""

from __future__ import annotations

from pathlib import Path

from chanprune.processes.errors import UserError
from chanprune.records.schemas import read_plan


def kept_widths(run_dir: Path) -> dict[str, int]:
    """Return how many channels each group kept in a run.

    Raises:
        UserError: No finished run is there.
    """
    try:
        return {name: len(kept) for name, kept in read_plan(run_dir).kept.items()}
    except (OSError, ValueError) as error:
        raise UserError(
            f"prune.widths={run_dir}: there is no plan.json of a finished run"
        ) from error
