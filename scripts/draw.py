"""Draw several runs in one picture.

python scripts/draw.py levels --out levels.png RUN ...   accuracy over MACs of all fidelity levels
python scripts/draw.py scales --out scales.png RUN ...   scales by channel, a panel for each run
python scripts/draw.py shares --out shares.png RUN ...   accuracy over active share, by method
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from chanprune.files.reading import json_of, yaml_of
from chanprune.show.charts import AccuracyByShare, Chart, Levels, Profiles
from chanprune.show.pictures import draw
from chanprune.show.table import levels_by_stage


def main() -> None:
    """Read the runs and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", choices=["levels", "scales", "shares"])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="")
    options = parser.parse_args()
    if options.out.suffix != ".png":
        raise SystemExit(f"--out={options.out}: must end in .png")
    chart = chart_of(options.picture, options.out.stem, options.title, options.runs)
    draw(chart, options.out.parent, "")


def chart_of(picture: str, name: str, heading: str, runs: list[Path]) -> Chart:
    """Return what is to be drawn."""
    if picture == "levels":
        return Levels(name, heading, levels(runs))
    if picture == "shares":
        return AccuracyByShare(name, heading, shares(runs))
    return Profiles(name, heading, {run.name: scales(run) for run in runs})


def levels(runs: list[Path]) -> dict[str, Any]:
    """Return "run, stage" -> its levels."""
    return {
        f"{run.name}, {stage}": rows
        for run in runs
        for stage, rows in levels_by_stage(read(run / "summary.json")["stages"]).items()
    }


def shares(runs: list[Path]) -> dict[str, dict[float, list[float]]]:
    """Return method -> share of the channels that stayed -> test accuracies of its runs."""
    curves: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        config = yaml_of(run / "config.yaml")["config"]
        method, prune = config["method"], config["prune"]
        label = method["name"] + (", widths of CUCB" if prune["widths"] else "")
        if method["name"] == "cucb":
            label += f", exploration {method['exploration']}, every {method['every']}"
            label += f", frozen after {method['freeze']}" if method["freeze"] < 1 else ""
        share = 1.0 if method["name"] == "none" else round(1 - prune["ratio"], 6)
        accuracy = read(run / "summary.json")["accuracy"]
        curves.setdefault(label, {}).setdefault(share, []).append(accuracy)
    return curves


def scales(run: Path) -> dict[str, list[float]]:
    """Return group -> |scale| at the end of training."""
    found: dict[str, list[float]] = read(run / "plan.json")["passes"][0]["scores"]
    return found


def read(path: Path) -> Any:
    """Read a JSON file of a run."""
    try:
        return json_of(path)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from error


if __name__ == "__main__":
    main()
