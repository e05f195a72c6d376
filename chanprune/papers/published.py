"""Published figures: read from a file, compared with ours to the digits that are printed.

The file is published.yaml, beside this one. A table has a title, a source, the conventions of its
counts, how far ours may be off, and rows. A row says how it is had here, and what the paper prints
of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from chanprune.processes.errors import UserError

PUBLISHED = Path(__file__).with_name("published.yaml")
COLUMNS = {
    "error": "error %",
    "accuracy": "accuracy %",
    "difference": "accuracy, points above the baseline",
    "params": "params",
    "params_pruned": "params gone %",
    "params_left": "params left %",
    "flops": "FLOPs",
    "flops_pruned": "FLOPs gone %",
    "flops_left": "FLOPs left %",
}
UNITS = {"M": 1e6, "G": 1e9}
FIGURE = re.compile(r"([+-]?)([\d,]+)(?:\.(\d+))?(?:e(\d+)|([MG]))?")


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        id: Its name in the table.
        name: What the table calls it.
        printed: Column of `COLUMNS` -> figure as printed; "A..B" is a range, "A.." has no end.
        experiment: Its experiment; None if `overrides` say all.
        overrides: What the command line says besides.
        control: It is this control ...
        of: ... of that row.
        level: The fidelity level that is measured.
        stage: The stage that is measured, as the run's table names it; "": the last.
        baseline: The row that differences and percentages refer to.
        counted_as: What the command line says of the network whose counts are printed, where that
            is not the one that is trained.
        counted_whole: Channel groups that the paper's counter does not narrow.
        image: Shape (C, H, W) where the data set has none of its own; "" for the usual one.
        classes: Number of classes, likewise.
        differs: Column -> why ours is another by construction.
        remark: What is known of the published figures.
        missing: Why the row is not to be had here; "" if it is.
    """

    id: str
    name: str
    printed: Mapping[str, str]
    experiment: str = ""
    overrides: Sequence[str] = ()
    control: str = ""
    of: str = ""
    level: str = "1.0"
    stage: str = ""
    baseline: str = ""
    counted_as: Sequence[str] = ()
    counted_whole: Sequence[str] = ()
    image: str = ""
    classes: str = ""
    differs: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""
    missing: str = ""

    def command(self) -> list[str]:
        """Return what the command line of its training says."""
        return [*([f"experiment={self.experiment}"] if self.experiment else []), *self.overrides]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        flops: The paper's way of counting operations, of `channels.counting.CONVENTIONS`.
        params: "all", or "without_norms" where the paper leaves out batch norms.
        tolerance: How far ours may be off: "points" of accuracy, "counts" relative, "shares" in
            percentage points of what is gone or left.
        controls: Controls of the rows that lose channels.
        smoke: What the command line says besides at the scale "smoke".
        remarks: What is known of the table.
    """

    id: str
    title: str
    source: str
    flops: str
    params: str
    tolerance: Mapping[str, float]
    controls: Sequence[str]
    rows: Mapping[str, Row]
    smoke: Sequence[str] = ()
    remarks: Sequence[str] = ()


def read(path: Path) -> tuple[dict[str, Table], dict[str, dict[str, Any]]]:
    """Read all tables, and what is known of the data sets without having them.

    Returns:
        Table id -> table; data set -> "images" (int), "shape" (C, H, W), "classes" (int).
    """
    values = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # noqa: S506
    sets = {
        name: {
            "images": int(known["images"]),
            "shape": tuple(map(int, known["shape"])),
            "classes": int(known["classes"]),
        }
        for name, known in values["datasets"].items()
    }
    return {name: _table(name, table) for name, table in values["tables"].items()}, sets


def _table(name: str, values: Mapping[str, Any]) -> Table:
    common = values.get("differs", {})
    rows = {key: _row(key, row, common) for key, row in values["rows"].items()}
    tolerance = {key: float(value) for key, value in values["tolerance"].items()}
    rest = {k: v for k, v in values.items() if k not in {"differs", "rows", "tolerance"}}
    return Table(id=name, rows=rows, tolerance=tolerance, **rest)


def _row(name: str, values: Mapping[str, Any], common: Mapping[str, str]) -> Row:
    printed = {key: values[key] for key in COLUMNS if key in values}
    known = {each.name for each in fields(Row)}
    rest = {key: value for key, value in values.items() if key in known}
    odd = values.keys() - known - COLUMNS.keys()
    if odd:
        raise UserError(f"published row {name}: unknown field {min(odd)}")
    differs = {**common, **values.get("differs", {})}
    return Row(**{**rest, "id": name, "printed": printed, "differs": differs})


def number(printed: str) -> float:
    """Return the value of a figure: "2.30M" is 2 300 000, "7.97e8" 797 000 000."""
    matched = FIGURE.fullmatch(printed)
    if matched is None:
        raise UserError(f"published figure {printed!r}: not a number")
    sign, whole, part, power, unit = matched.groups()
    value = float(f"{whole.replace(',', '')}.{part or 0}")
    return (-1 if sign == "-" else 1) * value * _scale(power, unit)


def bounds(printed: str) -> tuple[float, float]:
    """Return the ends of a range, or a figure twice."""
    if ".." not in printed:
        return number(printed), number(printed)
    low, high = printed.split("..")
    return number(low), number(high) if high else math.inf


def like(value: float, printed: str) -> str:
    """Write a value with the digits, and the power of ten, of a printed figure."""
    matched = FIGURE.fullmatch(printed.split("..", maxsplit=1)[0])
    assert matched is not None
    sign, whole, part, power, unit = matched.groups()
    form = f"{'+' if sign else ''}{',' if ',' in whole else ''}.{len(part or '')}f"
    digits = f"{value / _scale(power, unit):{form}}"
    return digits + (f"e{power}" if power else unit or "")


def _scale(power: str | None, unit: str | None) -> float:
    return 10.0 ** int(power) if power else UNITS.get(unit or "", 1.0)


def verdict(values: Sequence[float], printed: str, column: str, table: Table, reason: str) -> str:
    """Say how our values, of all seeds, compare with a printed figure.

    Args:
        values: Ours; empty if nothing was run.
        printed: The figure.
        column: A key of `COLUMNS`.
        table: Says how far ours may be off.
        reason: Why ours may be another by construction; "" if there is none.
    """
    if not values:
        return "not run"
    low, high = bounds(printed)
    mean = float(np.mean(values))
    kind = _kind(column)
    slack = table.tolerance[kind] * (high if kind == "counts" else 1)
    told = f"{table.tolerance[kind]:.0%}" if kind == "counts" else f"{table.tolerance[kind]:g}"
    if low - slack - 1e-9 <= mean <= high + slack + 1e-9:
        return f"within {told}"
    return f"differs by construction: {reason}" if reason else f"outside {told}"


def _kind(column: str) -> str:
    if column in ("params", "flops"):
        return "counts"
    return "shares" if column.endswith(("_pruned", "_left")) else "points"
