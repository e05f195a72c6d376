"""A table of a paper at a scale: which rows there are, and the command of each."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from chanprune import data
from chanprune.config import cli
from chanprune.config.asked import place
from chanprune.config.control import CONTROLS
from chanprune.config.schema import validate
from chanprune.data.archive import Archive
from chanprune.data.folder_index import index_of
from chanprune.methods import METHODS, PruneOptions
from chanprune.papers.published import Row, Table
from chanprune.pipeline.optimiser import TrainOptions, setting_of
from chanprune.processes.errors import UserError

SHARE = {"full": 1.0, "gpu-hour": 0.25, "smoke": 0.02}  # of the epochs of every stage
LARGEST_WEIGHT = 0.01  # of a sparsity penalty; beyond, every scale vanishes
SMOKE_THRESHOLD = 0.03  # of selective convolution; under its 0.001 nothing falls in so few steps


@dataclass
class Job:
    """A table at a scale.

    Attributes:
        sets: See `published.read`.
        options: Of the command line.
    """

    table: Table
    sets: Mapping[str, Mapping[str, Any]]
    options: argparse.Namespace

    def __post_init__(self) -> None:
        """Check what was asked for."""
        for given, known in (("rows", self.table.rows), ("controls", {**CONTROLS, "none": 0})):
            for name in (getattr(self.options, given) or "").split(","):
                if name and name not in known:
                    raise UserError(f"--{given}={name}: must be of {', '.join(known)}")

    def rows(self) -> list[Row]:
        """Return the rows that were asked for, baselines and originals of controls included."""
        asked = self.options.rows
        chosen = asked.split(",") if asked else list(self.table.rows)
        needed = {ref for name in chosen for ref in self._needs(self.table.rows[name])}
        return [row for row in self.table.rows.values() if row.id in {*chosen, *needed}]

    def _needs(self, row: Row) -> Iterator[str]:
        for ref in filter(None, (row.of, row.baseline)):
            yield ref
            yield from self._needs(self.table.rows[ref])

    def why_not(self, row: Row) -> str:
        """Say why a row cannot be run; "" if it can."""
        if row.missing:
            return row.missing
        if row.of:
            return self.why_not(self.table.rows[row.of])
        path = cli.config_dir() / "experiment" / f"{row.experiment}.yaml"
        return (
            "" if not row.experiment or path.exists() else f"experiment {row.experiment} is missing"
        )

    def compose(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Compose and check a configuration; an image folder that is not given gets a name."""
        said = " ".join(arguments)
        is_folder = "dataset=imagefolder" in said or "imagenet" in said
        extra = ["dataset.root=DIRECTORY"] if is_folder and "dataset.root=" not in said else []
        return validate(composed((*arguments, *extra)))

    def command(self, row: Row, seed: int) -> list[str]:
        """Return what the command line of a row's run says."""
        if row.control:
            return list(control_command(row.control, self.run_dir(self.table.rows[row.of], seed)))
        return [*self._without_seed(row), f"seed={seed}"]

    def _without_seed(self, row: Row) -> list[str]:
        return [*row.command(), *self._scaled(row), *self.options.overrides]

    def config(self, row: Row) -> dict[str, Any]:
        """Return the configuration of a row's runs, but for the seed."""
        return self.compose(self._without_seed(row))

    def run_dir(self, row: Row, seed: int) -> Path:
        """Return where a row's run goes."""
        if row.control:
            return place(composed(tuple(self.command(row, seed))))
        return place({**self.config(row), "seed": seed})

    def _scaled(self, row: Row) -> list[str]:
        """Return what shortens a row's schedule, at a constant travel of its scales."""
        share = SHARE[self.options.scale]
        if share == 1:
            return []
        full = self.compose(row.command())
        epochs = {stage: full[stage]["epochs"] for stage in ("train", "finetune")}
        short = [f"{s}.epochs={max(1, round(share * n))}" for s, n in epochs.items() if n]
        smoke = list(self.table.smoke) if self.options.scale == "smoke" else []
        if smoke and self.is_selective(row):
            smoke.append(f"method.threshold={SMOKE_THRESHOLD:g}")
        return [*smoke, *short, *self._same_travel(row, full, [*smoke, *short])]

    def is_selective(self, row: Row) -> bool:
        """Tell whether a row trains selective convolutions."""
        return bool(self.compose(row.command())["method"]["name"] == "selectconv")

    def _same_travel(self, row: Row, full: Mapping[str, Any], short: list[str]) -> list[str]:
        weight = full["method"].get("sparsity_weight")
        if weight is None or full["train"]["optimiser"] != "sgd":
            return []
        shortened = self.compose([*row.command(), *short, *self.options.overrides])
        travel = weight * self.lr_travel(full)
        if travel / self.lr_travel(shortened) > LARGEST_WEIGHT:
            return [f"method.sparsity_weight={LARGEST_WEIGHT:g}"]
        return [f"method.travel={travel:.4g}", "method.sparsity_weight=null"]

    def lr_travel(self, config: Mapping[str, Any]) -> float:
        """Return how far a unit gradient moves a parameter over a configuration's train stage."""
        options = TrainOptions(**config["train"])
        steps = -(-self.num_images(config) // options.batch_size)
        return setting_of(options, steps, 0, PruneOptions(ratio=0)).lr_travel

    def num_images(self, config: Mapping[str, Any]) -> int:
        """Return how many images training goes through in an epoch."""
        dataset = config["dataset"]
        root = Path(dataset.get("root", ""))
        number: int = self.sets[dataset["name"]]["images"]
        held: float = dataset["val_share"]
        if dataset["name"] == "imagefolder" and root.exists():
            splits = index_of(Archive(root)).splits
            number = sum(len(images) for images in splits["train"].values())
            held = 0 if "val" in splits else held
        return round(number * float(dataset["share"]) * (1 - held))

    def shape(self, row: Row, config: Mapping[str, Any]) -> tuple[tuple[int, int, int], int]:
        """Return the shape (C, H, W) of an image, and the number of classes."""
        dataset = config["dataset"]
        known = self.sets[dataset["name"]]
        if dataset["name"] == "imagefolder" and not Path(dataset["root"]).exists():
            channels, height, width = row.image.split(",") if row.image else known["shape"]
            image = int(channels), int(height), int(width)
            return image, int(row.classes or known["classes"])
        info = data.describe(**dataset)
        return info.input_shape, len(info.class_names)

    def convention(self, column: str) -> str:
        """Name the paper's way of counting."""
        if column == "flops":
            return self.table.flops
        return "without batch norms" if self.table.params == "without_norms" else "all"

    def controls_of(self, row: Row) -> list[str]:
        """Return the controls of a row's run; the first row of a run has them."""
        asked = self.options.controls
        names = self.table.controls if asked is None else asked.split(",")
        if row.control or self.why_not(row) or names == ["none"]:
            return []
        same = [other for other in self.rows() if other.command() == row.command()]
        config = self.config(row)
        prunes = METHODS[config["method"]["name"]].prunes
        return list(names) if prunes and same[0] is row else []

    def title(self) -> str:
        """Head the table: what it is, and how it was shortened."""
        lines = [self.table.title, self.table.source]
        share, scale = SHARE[self.options.scale], self.options.scale
        if share < 1:
            rows = self.table.rows.values()
            is_selective = scale == "smoke" and any(map(self.is_selective, rows))
            threshold = f"; selective convolution: at a threshold of {SMOKE_THRESHOLD:g}"
            lines.append(
                f"scale {scale}: {share:.0%} of the epochs, at the recipe's travel or a sparsity "
                f"weight of {LARGEST_WEIGHT:g}, whichever is less (with Adam: at its weight"
                f"{threshold if is_selective else ''})"
            )
        beside = [*(self.table.smoke if scale == "smoke" else ()), *self.options.overrides]
        latest = {option.partition("=")[0]: option for option in beside}
        return "\n".join([*lines, *([" ".join(latest.values())] if latest else [])])

    def is_other(self, row: Row) -> bool:
        """Tell whether the network or the images are not the experiment's."""
        row = self.table.rows[row.of] if row.of else row
        full, own = self.compose(row.command()), self.config(row)
        keys = ("name", "share", "image_size")
        images = [[each["dataset"][key] for key in keys] for each in (full, own)]
        return full["model"] != own["model"] or images[0] != images[1]


@cache
def composed(arguments: tuple[str, ...]) -> dict[str, Any]:
    """Compose a configuration."""
    return cli.composed("config", cli.checked(arguments))


def control_command(name: str, run_dir: Path) -> tuple[str, ...]:
    """Return what the command line of a control says."""
    return f"control={name}", f"control_of={run_dir}"


def is_finished(run_dir: Path) -> bool:
    """Tell whether a run is done."""
    return (run_dir / "summary.json").exists()
