"""What a finished run leaves: the compact model, the plan, the table, the pictures, a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from chanprune.channels import count
from chanprune.files.writing import write_json, write_text
from chanprune.pipeline.cost import Cost, in_words
from chanprune.pipeline.job import Job
from chanprune.pipeline.model_file import Preprocessing, save_model
from chanprune.pipeline.network import Facts, Network
from chanprune.records.run_dir import announce
from chanprune.show.charts import Chart, KeptChannels, Levels
from chanprune.show.pictures import draw
from chanprune.show.table import as_csv, as_markdown, levels_by_stage

NOTES = (
    "MACs: multiply-accumulates of convolutions and linear layers for one image "
    "(FLOPs = 2 x MACs). Percentages: what is gone since the first row.",
    "val: held out of the training set, chooses the epoch where one is chosen. "
    "test: looked at once per row, chooses nothing.",
)


def write_products(network: Network, facts: Facts, whole: Cost | None, job: Job) -> dict[str, Any]:
    """Write everything but checkpoints and metrics.

    Args:
        network: The product.
        facts: What all stages said.
        whole: Cost of a training step of the whole network; None if nothing is trained.
        job: The run.

    Returns:
        What summary.json holds.

    Raises:
        RunError: A file cannot be written.
    """
    stages = [asdict(row) for row in facts.rows]
    charts = [*facts.charts, *_charts(network, facts, stages)]
    charts = list({chart.file: chart for chart in charts}.values())
    announce(job.run_dir, [chart.file for chart in charts])
    _write_model(network, job)
    if facts.prunings:
        write_json(job.run_dir / "plan.json", _plan(network, facts, job))
    for chart in charts:
        draw(chart, job.run_dir, job.title)
    notes = [*NOTES, in_words(facts.costs.values(), whole)] if whole else NOTES[:1]
    write_text(job.run_dir / "table.md", as_markdown(facts.rows, notes))
    write_text(job.run_dir / "table.csv", as_csv(facts.rows))
    job.record.close()
    final = [row for row in facts.rows if row.fidelity == 1][-1]
    costs = {name: asdict(cost) for name, cost in facts.costs.items()}
    summary = {
        "accuracy": final.test_accuracy,
        "params": final.params,
        "macs": final.macs,
        "cost": {**costs, "whole_network_step": asdict(whole)} if whole else {},
        "stages": stages,
    }
    write_json(job.run_dir / "summary.json", summary)
    return summary


def _write_model(network: Network, job: Job) -> None:
    info = job.dataset.info
    save_model(
        job.run_dir,
        network.model,
        {**job.architecture, **network.options},
        network.plan,
        Preprocessing(info.input_shape, job.dataset.mean, job.dataset.std),
        info.class_names,
        count(network.model, info.input_shape),
        network.form,
        network.fidelity.statistics if network.fidelity else {},
    )


def _plan(network: Network, facts: Facts, job: Job) -> dict[str, Any]:
    """Return what plan.json holds: what was kept, and why."""
    order = {"order": network.order} if network.order else {}
    return {
        "kept": network.plan.to_json(),
        "policy": asdict(job.select),
        **order,
        "fixed": {g.name: g.fixed for g in network.graph.groups.values() if g.fixed},
        "passes": [report.to_json() for report in facts.prunings],
    }


def _charts(network: Network, facts: Facts, stages: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Show what the run came to: accuracy by level, and widths."""
    charts: list[Chart] = []
    if network.fidelity:
        charts.append(Levels("levels", "levels", levels_by_stage(stages)))
    if facts.prunings:
        groups = network.graph.groups
        widths = {name: (groups[name].size, whole) for name, whole in network.widths.items()}
        charts.append(KeptChannels("channels", "channels kept", widths))
    return charts
