"""Draw several runs in one picture.

python scripts/draw.py levels --out levels.png RUN ...   accuracy over MACs of all fidelity levels
python scripts/draw.py scales --out scales.png RUN ...   scales by channel, a panel for each run
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from chanprune.pipeline.pictures import draw_levels, draw_scales_by_channel
from chanprune.pipeline.table import levels_by_stage


def main() -> None:
    """Read the runs and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", choices=["levels", "scales"])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="")
    options = parser.parse_args()
    if options.picture == "levels":
        draw_levels(options.out, levels(options.runs), options.title)
    else:
        panels = {run.name: scales(run) for run in options.runs}
        draw_scales_by_channel(options.out, panels, options.title)


def levels(runs: list[Path]) -> dict[str, Any]:
    """Return "run, stage" -> its levels."""
    return {
        f"{run.name}, {stage}": rows
        for run in runs
        for stage, rows in levels_by_stage(read(run / "summary.json")["stages"]).items()
    }


def scales(run: Path) -> dict[str, list[float]]:
    """Return group -> |scale| at the end of training."""
    found: dict[str, list[float]] = read(run / "plan.json")["passes"][0]["scores"]
    return found


def read(path: Path) -> Any:
    """Read a JSON file of a run."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SystemExit(f"{path} cannot be read: {error.strerror}") from error


if __name__ == "__main__":
    main()
