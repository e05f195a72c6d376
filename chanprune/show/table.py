"""The table of a run: what each stage cost and what it saved."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate


@dataclass(frozen=True)
class Row:
    """The network after one stage.

    Attributes:
        stage: What was done.
        val_accuracy: On the held-out part of the training set, in [0, 1]; None without labels.
        test_accuracy: On the test set, in [0, 1]; likewise.
        channels: Channels that could have been pruned and are left.
        params: Weights, biases, batch-norm scales and shifts.
        macs: Multiply-accumulates of convolutions and linear layers, one image.
        seconds: Wall time of the stage.
        fidelity: Level that was measured: the share of its channels that the network ran with.
    """

    stage: str
    val_accuracy: float | None
    test_accuracy: float | None
    channels: int
    params: int
    macs: int
    seconds: float
    fidelity: float = 1.0


def as_markdown(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Format the table, with percentages of the first row, for Markdown and the terminal."""
    first = rows[0]
    heads = ["stage", "val acc %", "test acc %", "channels", "params", "MACs", "time s"]
    body = [
        [
            row.stage if row.fidelity == 1 else f"at level {row.fidelity:g}",
            *map(percent, (row.val_accuracy, row.test_accuracy)),
            _share(row.channels, first.channels),
            _share(row.params, first.params),
            _share(row.macs, first.macs),
            f"{row.seconds:.1f}",
        ]
        for row in rows
    ]
    if all(row.test_accuracy is None for row in rows):
        heads[1:3] = []
        body = [[line[0], *line[3:]] for line in body]
    align = ("left", *["right"] * (len(heads) - 1))
    table = tabulate(body, heads, tablefmt="github", colalign=align, disable_numparse=True)
    return "\n".join([table, "", *notes, ""])


def as_csv(rows: Sequence[Row]) -> str:
    """Format the table as comma-separated values: shares in [0, 1], full counts."""
    text = io.StringIO()
    records: list[dict[str, Any]] = [asdict(row) for row in rows]
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def levels_by_stage(stages: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Gather the rows of the stages that were measured at several fidelity levels.

    Args:
        stages: Rows, as they are in summary.json.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for stage in stages:
        rows.setdefault(stage["stage"], []).append(stage)
    return {stage: levels for stage, levels in rows.items() if len(levels) > 1}


def percent(accuracy: float | None) -> str:
    """Format an accuracy in [0, 1]; nothing where none was measured."""
    return "" if accuracy is None else f"{100 * accuracy:.2f}"


def _share(value: int, whole: int) -> str:
    """Format a count, and by how much it differs from the whole."""
    if value == whole:
        return f"{value:,}"
    return f"{value:,} ({100 * (value / whole - 1):+.1f} %)"
