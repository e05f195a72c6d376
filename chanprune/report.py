"""Gather finished runs into one table: `python -m chanprune.report DIRECTORY ...`.

Runs whose configurations differ in the seed alone are one row, with the mean over seeds. Rows are
sorted and marked by validation accuracy, so that whoever chooses by them does not choose on the
test set, whose accuracy stands beside it. A difference to the baseline is paired: over the seeds
that both have. It is marked only if its confidence interval leaves out zero.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from chanprune.processes.errors import UserError, one_line
from chanprune.processes.texts import as_called
from chanprune.records.schemas import read_plan
from chanprune.show.report_runs import Row, Run, gather, group, method_of
from chanprune.show.report_table import CONFIDENCE, as_csv, baseline_of, line

if TYPE_CHECKING:
    from chanprune.show.report_figures import Drawn

FORMATS = ("table", "markdown", "csv", "latex", "html")
TABLES = {"table": "simple", "markdown": "github", "latex": "latex_booktabs"}
SORTED_BY = {"accuracy": "val_accuracy"}


def main() -> None:
    """Gather and print."""
    parser = argparse.ArgumentParser(
        prog=as_called("python -m chanprune.report"),
        description=as_called(__doc__.split("\n\n")[0]),
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIRECTORY", help="searched whole")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--sort", choices=("accuracy", "params", "macs", "name"), default="name")
    parser.add_argument("--baseline", default="none", metavar="METHOD", help="default: none")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="also draw PNG files there")
    options = parser.parse_args()
    with one_line():
        found, notes = gather(options.folders)
        if not found:
            raise UserError(f"no finished run below {', '.join(map(str, options.folders))}")
        rows, doubles = group(found)
        notes += doubles
        print(report(rows, notes, options.format, options.sort, options.baseline))
        if options.format in {"csv", "latex"}:
            print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
        if options.pictures:
            draw(rows, options.pictures)


def draw(rows: Sequence[Row], target: Path) -> None:
    """Draw the figures over all rows, as PNG files.

    Raises:
        UserError: The folder cannot be written.
    """
    from chanprune.show.drawing import render
    from chanprune.show.report_figures import figures

    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, (figure, _) in figures(drawn(rows)).items():
            render(figure, target / f"{name}.png", dpi=130)
            print(f"picture: {target / name}.png", file=sys.stderr)
    except OSError as error:
        raise UserError(f"--pictures {target} cannot be written: {error.strerror}") from error


def report(
    rows: Sequence[Row], notes: Sequence[str], form: str, sort: str = "name", baseline: str = "none"
) -> str:
    """Return the table of some rows.

    Args:
        rows: In order of their names.
        notes: What is to be said under it.
        form: One of `FORMATS`.
        sort: "accuracy" (on validation), "params", "macs" or "name".
        baseline: The method that differences are to.
    """
    ordered = list(rows)
    if sort != "name":
        by = SORTED_BY.get(sort, sort)
        ordered.sort(key=lambda row: row.mean(by), reverse=sort == "accuracy")
    pairs = [(row, baseline_of(row, rows, baseline)) for row in ordered]
    if form == "csv":
        return as_csv(pairs)
    lines = [line(*pair) for pair in pairs]
    told = [
        f"acc: mean over n seeds ± the half-width of its {100 * CONFIDENCE:.0f} % confidence "
        f"interval (Student's t); difference: to method={baseline} on the same seeds, paired, in "
        "validation accuracy, * if its interval leaves out zero. Rows are compared by validation "
        "accuracy; test stands beside it and chooses nothing. MACs: of one image.",
        *notes,
    ]
    if form == "html":
        from chanprune.show.report_figures import figures
        from chanprune.show.report_page import page

        methods = [method_of(row.config) for row in ordered]
        return page(lines, methods, _heading(rows), figures(drawn(rows)).values(), told)
    if form == "markdown":
        lines = [{k: text.replace("|", "\\|") for k, text in each.items()} for each in lines]
    table = tabulate(lines, headers="keys", tablefmt=TABLES[form], disable_numparse=True)
    return table if form == "latex" else "\n".join([table, "", *told])


def _heading(rows: Sequence[Row]) -> str:
    own, controls = ([row for row in rows if bool(row.control_of) == k] for k in (False, True))
    numbers = [(len(part), sum(len(row.runs) for row in part)) for part in (own, controls)]
    told = f"{numbers[0][0]} configurations, {numbers[0][1]} runs"
    return told + (f"; {numbers[1][0]} controls, {numbers[1][1]} runs" if controls else "")


def drawn(rows: Sequence[Row]) -> list[Drawn]:
    """Return what the figures show of all runs, in the order of the rows' names."""
    return [
        _drawn(row, run, is_first=number == 0)
        for row in sorted(rows, key=lambda row: row.name)
        for number, (_, run) in enumerate(sorted(row.runs.items()))
    ]


def _drawn(row: Row, run: Run, is_first: bool) -> Drawn:
    from chanprune.show.report_figures import Drawn

    dataset, model, *rest = row.name.split(" ")
    method, prune = row.config["method"], row.config["prune"]
    by_ratio = not any(value for key, value in prune.items() if key.startswith("target_"))
    control = row.config.get("control", {}).get("name")
    scores, kept = _plan(run.folder) if is_first else ({}, {})
    return Drawn(
        label=" ".join(rest) or model,
        network=f"{dataset} {row.network['name']}",
        method=f"{control or method_of(row.config)}",
        macs=run.macs,
        accuracy=run.val_accuracy,
        test_accuracy=run.test_accuracy,
        weight=_weight(method) if by_ratio else "",
        ratio=prune.get("ratio", 0.0),
        scores=scores,
        kept=kept,
        by_scale=method.get("criterion", "scale") == "scale",
        is_control=bool(row.control_of),
    )


def _weight(method: Mapping[str, Any]) -> str:
    """Say what a method presses scales down with; "" if it does not."""
    if "sparsity_weight" not in method:
        return ""
    given = {key: method.get(key) for key in ("sparsity_weight", "travel")}
    told = [f"{k} {v:g}" for k, v in given.items() if isinstance(v, int | float) and v]
    weight = " ".join(told).replace("_", " ") or "default weight"
    criterion = method.get("criterion", "scale")
    return weight if criterion == "scale" else f"{weight} {criterion}"


def _plan(folder: Path) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return scores and numbers of kept channels of a run of one pass, or nothing."""
    try:
        plan = read_plan(folder)
        (only,) = plan.passes
        return only.scores, {k: len(plan.kept.get(k, own)) for k, own in only.scores.items()}
    except (OSError, ValueError):
        return {}, {}


if __name__ == "__main__":
    main()
