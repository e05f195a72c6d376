"""Gather finished runs into one table: `python -m chanprune.report DIRECTORY ...`.

Runs whose configurations differ in the seed alone are one row, with the mean over seeds. A
difference to the baseline is paired: over the seeds that both have. It is marked only if its
confidence interval leaves out zero.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t as student
from tabulate import tabulate

from chanprune.errors import UserError, one_line
from chanprune.run_dir import recorded_config

if TYPE_CHECKING:
    from chanprune.report_figures import Drawn

FORMATS = ("table", "markdown", "csv", "latex", "html")
CONFIDENCE = 0.95
REFERENCES = (("prune", "widths"), ("model", "run"))
NAMED = [".".join(place) for place in REFERENCES]
TABLES = {"table": "simple", "markdown": "github", "latex": "latex_booktabs"}


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, its configuration without the seed, and what it reached.

    Attributes:
        config: Another run that it names is named by its configuration without the seed.
        network: The options of the whole network.
    """

    folder: Path
    config: Mapping[str, Any]
    network: Mapping[str, Any]
    seed: int
    accuracy: float
    params: int
    macs: int
    seconds: float
    trained_macs: float


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seeds alone.

    Attributes:
        name: What tells the row from the others.
        runs: Seed -> run.
    """

    name: str
    runs: Mapping[int, Run]

    @property
    def network(self) -> Mapping[str, Any]:
        """Return the options of the whole network."""
        return next(iter(self.runs.values())).network

    @property
    def config(self) -> Mapping[str, Any]:
        """Return the configuration without the seed."""
        return next(iter(self.runs.values())).config

    def mean(self, attribute: str) -> float:
        """Return the mean over seeds of one of a run's numbers."""
        return float(np.mean([getattr(run, attribute) for run in self.runs.values()]))


def main() -> None:
    """Gather and print."""
    parser = argparse.ArgumentParser(prog="chanprune.report", description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIRECTORY", help="searched whole")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--sort", choices=("accuracy", "params", "macs", "name"), default="name")
    parser.add_argument("--baseline", default="none", metavar="METHOD", help="default: none")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="also draw PNG files there")
    options = parser.parse_args()
    with one_line():
        print(report(options.folders, options.format, options.sort, options.baseline))
        if options.pictures:
            draw(options.folders, options.pictures)


def draw(folders: Sequence[Path], target: Path) -> None:
    """Draw the figures over all runs below some folders, as PNG files."""
    from chanprune.drawing import render
    from chanprune.report_figures import figures

    target.mkdir(parents=True, exist_ok=True)
    for name, (figure, _) in figures(_drawn(group(gather(folders)[0]))).items():
        render(figure, target / f"{name}.png", dpi=130)
        print(f"picture: {target / name}.png")


def report(folders: Sequence[Path], form: str, sort: str, baseline: str) -> str:
    """Return the table of all runs below some folders, and what could not be read.

    Raises:
        UserError: There is no finished run.
    """
    found, unread = gather(folders)
    if not found:
        raise UserError(f"no finished run below {', '.join(map(str, folders))}")
    rows = group(found)
    rows.sort(key=lambda row: row.name)
    if sort != "name":
        rows.sort(key=lambda row: row.mean(sort), reverse=sort == "accuracy")
    lines = [_line(row, _baseline_of(row, rows, baseline)) for row in rows]
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue().rstrip("\n")
    notes = [
        f"test acc: mean over n seeds ± the half-width of its {100 * CONFIDENCE:.0f} % confidence "
        f"interval (Student's t); difference: to method={baseline} on the same seeds, paired, "
        "* if its interval leaves out zero. MACs: of one image.",
        *unread,
    ]
    if form == "html":
        from chanprune.report_figures import figures
        from chanprune.report_page import page

        methods = [row.config["method"]["name"] for row in rows]
        return page(lines, methods, len(found), figures(_drawn(rows)).values(), notes)
    table = tabulate(lines, headers="keys", tablefmt=TABLES[form], disable_numparse=True)
    return table if form == "latex" else "\n".join([table, "", *notes])


def gather(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Read all runs below some folders; return them, and a line for each that cannot be read."""
    found, unread = [], []
    for path in sorted({path.parent for folder in folders for path in folder.rglob("config.yaml")}):
        config = recorded_config(path)
        if config is None:
            continue
        if not (path / "summary.json").exists():
            unread.append(f"unfinished: {path}")
            continue
        try:
            summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
            stages = [cost for key, cost in summary["cost"].items() if key != "whole_network_step"]
            rest, network = _without_seed(config, path)
            numbers = (summary["accuracy"], summary["params"], summary["macs"])
            cost = [sum(stage[key] for stage in stages) for key in ("seconds", "macs")]
            found.append(Run(path, rest, network, config["seed"], *numbers, *cost))
        except (OSError, ValueError, KeyError, TypeError) as error:
            unread.append(f"damaged: {path} ({type(error).__name__}: {error})")
    return found, unread


def _without_seed(config: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a run's configuration without what differs by seed, and its whole network's options.

    Controls name a run, which is another one for each seed: they are told apart by its `_label`.
    """
    rest = {key: value for key, value in config.items() if key != "seed"}
    network = config["model"]
    for section, key in REFERENCES:
        named = config[section].get(key)
        if named is None:
            continue
        places = [Path(named), *(parent / named for parent in folder.resolve().parents)]
        other = next(filter(None, map(_recorded, places)), None)
        if other is not None:
            theirs, whole = _without_seed(other, Path(named))
            rest[section] = {**config[section], key: _label(theirs)}
            network = whole if section == "model" else network
    return rest, network


@cache
def _recorded(folder: Path) -> dict[str, Any] | None:
    return recorded_config(folder)


def _label(config: Mapping[str, Any]) -> str:
    """Name a configuration without a seed in a few characters."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:6]
    return f"{config['method']['name']}-{digest}"


def group(found: Sequence[Run]) -> list[Row]:
    """Put runs into rows, named by what differs between them."""
    by_config: dict[str, dict[int, Run]] = {}
    for run in found:
        by_config.setdefault(json.dumps(run.config, sort_keys=True), {})[run.seed] = run
    flat = {key: dict(_flat(json.loads(key))) for key in by_config}
    telling = {}
    for key, own in flat.items():
        alike = [other for other in flat.values() if _kind(other) == _kind(own)]
        differing = (k for k in own if any(k in o and o[k] != own[k] for o in alike))
        telling[key] = [k for k in differing if k not in NAMED]
    said = {
        _label(json.loads(key)): " ".join(
            [_names(flat[key])[2], *(f"{k}={_as_given(flat[key][k])}" for k in telling[key])]
        )
        for key in flat
    }
    rows = []
    for key, runs in by_config.items():
        values = [f"{k}={_as_given(flat[key][k])}" for k in telling[key]]
        labels = [flat[key][k] for k in NAMED if flat[key].get(k)]
        of = [f"of [{said.get(label, label)}]" for label in labels]
        dataset, model, method = _names(flat[key])
        whole = next(iter(runs.values())).network["name"]
        network = model if model == whole else f"{model}-{whole}"
        rows.append(Row(" ".join([dataset, network, method, *of, *values]), runs))
    return rows


def _drawn(rows: Sequence[Row]) -> list[Drawn]:
    """Return what the figures show of all runs."""
    from chanprune.report_figures import Drawn

    drawn = []
    for row in rows:
        dataset, model, *rest = row.name.split(" ")
        method, prune = row.config["method"], row.config["prune"]
        weight = ""
        by_scale = method.get("criterion", "scale") == "scale"
        if "sparsity_weight" in method:
            given = [f"{k} {method[k]:g}" for k in ("sparsity_weight", "travel") if method[k]]
            weight = " ".join(given).replace("_", " ") or "default weight"
            weight += "" if by_scale else f" {method['criterion']}"
        for number, seed in enumerate(sorted(row.runs)):
            run = row.runs[seed]
            scores, kept = ({}, {}) if number else _plan(run.folder)
            network = f"{dataset} {row.network['name']}"
            macs, ratio = (run.macs, run.accuracy), prune["ratio"]
            told = (" ".join(rest) or model, network, method["name"])
            drawn.append(Drawn(*told, *macs, weight, ratio, scores, kept, by_scale))
    return drawn


def _plan(folder: Path) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return scores and numbers of kept channels of a run of one pass, or nothing."""
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        (only,) = plan["passes"]
        scores: dict[str, list[float]] = only["scores"]
        return scores, {k: len(plan["kept"].get(k, own)) for k, own in scores.items()}
    except (OSError, ValueError, KeyError):
        return {}, {}


def _as_given(value: Any) -> str:
    """Write a value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _names(flat: Mapping[str, Any]) -> list[str]:
    return [str(flat[f"{section}.name"]) for section in ("dataset", "model", "method")]


def _kind(flat: Mapping[str, Any]) -> list[str]:
    """Return what rows have in common that are told apart by their options."""
    return [*_names(flat), *(str(flat.get(key)) for key in NAMED)]


def interval(values: Sequence[float]) -> float:
    """Return the half-width of the mean's confidence interval; not a number of one value."""
    if len(values) < 2:
        return float("nan")
    factor = student.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(factor * np.std(values, ddof=1) / math.sqrt(len(values)))


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _baseline_of(row: Row, rows: Sequence[Row], method: str) -> Row | None:
    """Return the row of the baseline on the same data set and network, if there is just one."""
    same = [
        other
        for other in rows
        if other.config["method"]["name"] == method
        and other.config["dataset"] == row.config["dataset"]
        and other.config["model"] == row.network
    ]
    return same[0] if len(same) == 1 and same[0] is not row else None


def _line(row: Row, baseline: Row | None) -> dict[str, str]:
    accuracies = [100 * run.accuracy for run in row.runs.values()]
    difference = ""
    if baseline is not None:
        seeds = sorted(row.runs.keys() & baseline.runs.keys())
        gains = [100 * (row.runs[s].accuracy - baseline.runs[s].accuracy) for s in seeds]
        if gains:
            half = interval(gains)
            mark = " *" if abs(np.mean(gains)) > half else ""
            difference = f"{np.mean(gains):+.2f}{_plus_minus(half)}{mark}"
    return {
        "run": row.name,
        "n": f"{len(row.runs)}",
        "test acc %": f"{np.mean(accuracies):.2f}{_plus_minus(interval(accuracies))}",
        "difference": difference,
        "params": f"{row.mean('params'):,.0f}",
        "MACs": f"{row.mean('macs'):,.0f}",
        "training MACs": f"{row.mean('trained_macs'):.3g}",
        "time s": f"{row.mean('seconds'):.0f}",
    }


def _plus_minus(half: float) -> str:
    return "" if np.isnan(half) else f" ± {half:.2f}"


if __name__ == "__main__":
    main()
