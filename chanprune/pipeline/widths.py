"""The widths that another run kept, read without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

from chanprune.errors import UserError


def kept_widths(run_dir: Path) -> dict[str, int]:
    """Return how many channels each group kept in a run.

    Raises:
        UserError: No finished run is there.
    """
    try:
        plan = json.loads((run_dir / "plan.json").read_text(encoding="utf-8"))
        return {name: len(kept) for name, kept in plan["kept"].items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"prune.widths={run_dir}: there is no plan.json of a finished run"
        ) from error
