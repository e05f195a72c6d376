"""Ours beside the paper's: the figures of finished runs, with a verdict for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from chanprune.config.asked import place
from chanprune.files.reading import json_of
from chanprune.papers.counts import counts_of
from chanprune.papers.job import Job, composed, control_command, is_finished
from chanprune.papers.published import COLUMNS, Row, like, verdict

CONTROL_NAMES = {
    "random": "same widths, random channels",
    "l1norm": "same widths, by filters' norms",
    "uniform": "uniform widths, same MACs",
    "scratch_e": "from scratch, equal epochs",
    "scratch_b": "from scratch, equal compute",
}


def results(job: Job, form: str = "simple") -> str:
    """Return ours beside the paper's, the accuracies of all stages, and what is known."""
    cells, stages = [], []
    for row in job.rows():
        found = measured(job, row)
        for number, (column, printed) in enumerate(row.printed.items()):
            values = [each[column] for each in found if column in each]
            name = "" if number else row.name
            cells.append([name, *_cell(job, row, column, printed, values)])
        if not job.why_not(row) and not row.control:
            stages += _stages(job, row)
    heads = ["row", "n", "figure", "ours", "paper", "verdict"]
    table = tabulate(cells, heads, tablefmt=form, disable_numparse=True)
    title = job.title().replace("\n", "\n\n") if form == "github" else job.title()
    parts = [title, "", table]
    if stages:
        most = max(map(len, stages))
        keys = next(list(line) for line in stages if len(line) == most)
        lines = [[line.get(key, "") for key in keys] for line in stages]
        parts += ["", "Test accuracy % after each stage, mean over seeds:", ""]
        parts += [tabulate(lines, keys, tablefmt=form, disable_numparse=True)]
    remarks = [*job.table.remarks, *(f"{r.name}: {r.remark}" for r in job.rows() if r.remark)]
    flops = f"FLOPs are counted as the paper does: {job.convention('flops')}."
    return "\n".join([*parts, "", flops, *(f"- {remark}" for remark in remarks), ""])


def _cell(job: Job, row: Row, column: str, printed: str, values: Sequence[float]) -> list[str]:
    is_share = column.endswith(("_pruned", "_left", "difference"))
    is_other = bool(values) and job.is_other(row)
    told = [
        f"{value:,.0f}" if is_other and column in ("params", "flops") else like(value, printed)
        for value in [*([sum(values) / len(values)] if values else []), *values]
    ]
    ours = "".join(told[:1]) + (f" ({', '.join(told[1:])})" if len(set(told)) > 1 else "")
    reason = row.differs.get(column, "")
    said = job.why_not(row) and f"not run: {job.why_not(row)}"
    if not said and is_other and not is_share:
        said = "differs by construction: another network or other images"
    said = said or verdict(values, printed, column, job.table, reason)
    return [str(len(values)), COLUMNS[column], ours, printed, said]


def measured(job: Job, row: Row) -> list[dict[str, float]]:
    """Return the figures of a row's finished runs, a dictionary for each seed."""
    if job.why_not(row):
        return []
    seeds = [seed for seed in range(job.options.seeds) if _is_done(job, row, seed)]
    return [_figures(job, row, seed) for seed in seeds]


def _is_done(job: Job, row: Row, seed: int) -> bool:
    if row.control and not _is_done(job, job.table.rows[row.of], seed):
        return False
    return is_finished(job.run_dir(row, seed))


def _figures(job: Job, row: Row, seed: int) -> dict[str, float]:
    run_dir = job.run_dir(row, seed)
    stage = stage_of(run_dir, row)
    accuracy = 100 * stage["test_accuracy"]
    params, flops = counts_of(run_dir, row, stage, job.table)
    figures = {"error": 100 - accuracy, "accuracy": accuracy, "params": params, "flops": flops}
    base = job.table.rows.get(row.baseline)
    if base is not None and _is_done(job, base, seed):
        theirs = _figures(job, base, seed)
        figures["difference"] = accuracy - theirs["accuracy"]
        for column in ("params", "flops"):
            figures[f"{column}_left"] = 100 * figures[column] / theirs[column]
            figures[f"{column}_pruned"] = 100 - figures[f"{column}_left"]
    return figures


def _stages(job: Job, row: Row) -> list[dict[str, str]]:
    """Return lines of the stages' accuracies: a row's runs, and their controls."""
    seeds = [seed for seed in range(job.options.seeds) if _is_done(job, row, seed)]
    if not seeds or row.level != "1.0" or (row.stage and not job.controls_of(row)):
        return []
    runs = {row.name: [job.run_dir(row, seed) for seed in seeds]}
    for name in job.controls_of(row):
        places = [place(composed(control_command(name, run))) for run in runs[row.name]]
        runs[f"- {CONTROL_NAMES[name]}"] = list(filter(is_finished, places))
    return [stage_line(name, places) for name, places in runs.items() if places]


def stage_of(run_dir: Path, row: Row) -> dict[str, Any]:
    """Return the line of a run's summary that a row prints."""
    stages = json_of(run_dir / "summary.json")["stages"]
    fitting = [s for s in stages if f"{s['stage']} ".startswith(f"{row.stage} ".lstrip())]
    found: dict[str, Any] = [s for s in fitting if s["fidelity"] == float(row.level)][-1]
    return found


def stage_line(name: str, places: Sequence[Path]) -> dict[str, str]:
    """Return the mean accuracies of all stages of some runs, stage by stage."""
    by_stage: dict[str, list[float]] = {}
    for place_ in places:
        stages = json_of(place_ / "summary.json")["stages"]
        for stage in stages:
            if stage["fidelity"] == 1:
                key = stage["stage"].partition(" (")[0]
                by_stage.setdefault(key, []).append(100 * stage["test_accuracy"])
    last = stages[-1]
    accuracies = {stage: f"{sum(v) / len(v):.2f}" for stage, v in by_stage.items()}
    return {
        "row": name,
        "n": str(len(places)),
        **accuracies,
        "params": f"{last['params']:,}",
        "MACs": f"{last['macs']:,}",
    }
