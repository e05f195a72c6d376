"""The lines of a report: for people, and as tidy columns."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from chanprune.processes.texts import cell
from chanprune.show.report_runs import Row, method_of

CONFIDENCE = 0.95
SPLITS = ("val", "test")


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: The mean; not a number of none.
        half: Half the width of its confidence interval; not a number of fewer than two.
        number: How many values there are.
    """

    value: float
    half: float
    number: int

    @property
    def is_not_zero(self) -> bool:
        """Tell whether the interval leaves out zero; of one value nothing is known."""
        return abs(self.value) > self.half

    def __str__(self) -> str:
        """Return the mean and its interval in words; "" of no value."""
        if not self.number:
            return ""
        return f"{self.value:.2f}" + ("" if math.isnan(self.half) else f" ± {self.half:.2f}")


def mean_of(values: Iterable[float]) -> Mean:
    """Return the mean of values, with the half-width of its interval (Student's t)."""
    own = list(values)
    if not own:
        return Mean(math.nan, math.nan, 0)
    return Mean(float(np.mean(own)), interval(own), len(own))


def interval(values: Sequence[float]) -> float:
    """Return the half-width of the mean's confidence interval; not a number of one value."""
    if len(values) < 2:
        return math.nan
    factor = student.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(factor * np.std(values, ddof=1) / math.sqrt(len(values)))


def accuracy(row: Row, split: str) -> Mean:
    """Return a row's accuracy on a split, in percent."""
    return mean_of(100 * getattr(run, f"{split}_accuracy") for run in row.runs.values())


def difference(row: Row, baseline: Row | None, split: str) -> Mean:
    """Return by how much a row is above the baseline, in points, over the seeds that both have."""
    if baseline is None:
        return mean_of([])
    name = f"{split}_accuracy"
    seeds = sorted(row.runs.keys() & baseline.runs.keys())
    return mean_of(
        100 * (getattr(row.runs[seed], name) - getattr(baseline.runs[seed], name)) for seed in seeds
    )


def baseline_of(row: Row, rows: Sequence[Row], method: str) -> Row | None:
    """Return the row of the baseline on the same data set and network, if there is just one."""
    same = [
        other
        for other in rows
        if method_of(other.config) == method
        and other.config["dataset"] == row.config["dataset"]
        and other.config["model"] == row.network
    ]
    return same[0] if len(same) == 1 and same[0] is not row else None


def line(row: Row, baseline: Row | None) -> dict[str, str]:
    """Return a row as people read it."""
    gains = {split: difference(row, baseline, split) for split in SPLITS}
    signed = {k: f"{'+' if gain.value >= 0 else ''}{gain}" for k, gain in gains.items()}
    return {
        "run": row.name,
        "n": f"{len(row.runs)}",
        "val acc %": f"{accuracy(row, 'val')}",
        "difference": signed["val"] + (" *" if gains["val"].is_not_zero else ""),
        "test acc %": f"{accuracy(row, 'test')}",
        "test difference": signed["test"],
        "params": f"{row.mean('params'):,.0f}",
        "MACs": f"{row.mean('macs'):,.0f}",
        "training MACs": f"{row.mean('trained_macs'):.3g}",
        "time s": f"{row.mean('seconds'):.0f}",
    }


def as_csv(pairs: Iterable[tuple[Row, Row | None]]) -> str:
    """Return rows, each with its baseline, as CSV: one number or text in each cell."""
    records = [_record(row, baseline) for row, baseline in pairs]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().rstrip("\n")


def _record(row: Row, baseline: Row | None) -> dict[str, str]:
    record = {
        "run": cell(row.name),
        "control_of": cell(row.control_of),
        "n": f"{len(row.runs)}",
    }
    for split in SPLITS:
        for what, mean in (
            (f"{split}_accuracy_percent", accuracy(row, split)),
            (f"{split}_difference_points", difference(row, baseline, split)),
        ):
            record |= {what: _number(mean.value), f"{what}_half_width": _number(mean.half)}
    record["difference_n"] = f"{difference(row, baseline, 'val').number}"
    for name in ("params", "macs", "trained_macs", "seconds"):
        record[name] = _number(row.mean(name))
    return {**record, "paths": cell(";".join(f"{run.folder}" for run in row.runs.values()))}


def _number(value: float) -> str:
    """Write a number in full; "" if it is none."""
    return "" if math.isnan(value) else f"{value:.12g}"
