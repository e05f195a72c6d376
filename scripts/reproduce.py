"""The tables of the papers: what is missing of one is run, and ours printed beside the paper's.

python scripts/reproduce.py --list                       every table with its rows
python scripts/reproduce.py slimming-cifar10 --dry-run   commands, counts, time
python scripts/reproduce.py slimming-cifar10 --scale smoke --seeds 2 train.batch_size=32

Runs are found by their directories; what is finished is not run again, what trains alike trains
once. The published figures are in docs/published.yaml.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

import chanprune
from chanprune import data
from chanprune.channels import Plan, count, count_plan, prefix_plan, trace
from chanprune.channels.counting import Counts
from chanprune.config import cli
from chanprune.config.control import CONTROLS
from chanprune.config.schema import validate
from chanprune.data.archive import Archive
from chanprune.data.folder_index import index_of
from chanprune.files.reading import json_of
from chanprune.methods import METHODS, PruneOptions, Setting
from chanprune.models import architecture, build
from chanprune.papers.published import COLUMNS, Row, Table, bounds, like, read, verdict
from chanprune.pipeline.optimiser import TrainOptions, make_optimiser, setting_of
from chanprune.processes.errors import RunError, UserError, one_line
from chanprune.train import place

PUBLISHED = Path(__file__).resolve().parents[1] / "docs" / "published.yaml"
SHARE = {"full": 1.0, "gpu-hour": 0.25, "smoke": 0.02}  # of the epochs of every stage
LARGEST_WEIGHT = 0.01  # of a sparsity penalty; beyond, every scale vanishes
SMOKE_THRESHOLD = 0.03  # of selective convolution; under its 0.001 nothing falls in so few steps
MEASURED_FOR = 1.0  # seconds of a time measurement
TRAIN = "python -m chanprune.train"
TRAINED = "decided by training"
CONTROL_NAMES = {
    "random": "same widths, random channels",
    "l1norm": "same widths, by filters' norms",
    "uniform": "uniform widths, same MACs",
    "scratch_e": "from scratch, equal epochs",
    "scratch_b": "from scratch, equal compute",
}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="reproduce.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", nargs="?", help="a table; --list names them")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every run")
    parser.add_argument("--list", action="store_true", help="name every table with its rows")
    parser.add_argument("--scale", choices=SHARE, default="full")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 .. N-1")
    parser.add_argument("--rows", metavar="A,B", help="these rows alone")
    parser.add_argument("--controls", metavar="A,B", help="these controls alone; none: without")
    parser.add_argument("--dry-run", action="store_true", help="show what would be run")
    parser.add_argument("--no-timing", action="store_true", help="dry run without a time")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="also write TABLE-SCALE.md")
    options = parser.parse_intermixed_args()
    with one_line():
        tables, sets = read(PUBLISHED)
        if options.list:
            print("\n\n".join(map(listed, tables.values())))
            return
        if options.table not in tables:
            raise UserError(f"{options.table}: no such table; choose from: {', '.join(tables)}")
        job = Job(tables[options.table], sets, options)
        if options.dry_run:
            for line in job.dry_run():
                print(line, flush=True)
            return
        failed = job.run()
        text = job.results()
        print(f"\n{text}")
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            path = options.out / f"{job.table.id}-{options.scale}.md"
            path.write_text(job.results("github"), encoding="utf-8")
            print(f"in {path}")
        if failed:
            raise RunError(f"{failed} runs failed; the same command does them again")


def listed(table: Table) -> str:
    """Name a table's rows, and how each is had."""
    lines = [f"{table.id}: {table.title}", f"  {table.source}"]
    for row in table.rows.values():
        how = row.missing and f"not here: {row.missing}"
        how = how or (f"control={row.control} of {row.of}" if row.control else "")
        lines.append(f"  {row.id:28} {row.name:44} {how or ' '.join(row.command())}")
    return "\n".join(lines)


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
        self.times: dict[str, float] = {}

    # What a row is

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
        """Compose a configuration; an image folder that is not given gets a name."""
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
        if smoke and self._is_selective(row):
            smoke.append(f"method.threshold={SMOKE_THRESHOLD:g}")
        return [*smoke, *short, *self._same_travel(row, full, [*smoke, *short])]

    def _is_selective(self, row: Row) -> bool:
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
        number, held = self.sets[dataset["name"]]["images"], dataset["val_share"]
        if dataset["name"] == "imagefolder" and root.exists():
            splits = index_of(Archive(root)).splits
            number = sum(len(images) for images in splits["train"].values())
            held = 0 if "val" in splits else held
        return round(number * dataset["share"] * (1 - held))

    def shape(self, row: Row, config: Mapping[str, Any]) -> tuple[tuple[int, int, int], int]:
        """Return the shape (C, H, W) of an image, and the number of classes."""
        dataset = config["dataset"]
        known = self.sets[dataset["name"]]
        if dataset["name"] == "imagefolder" and not Path(dataset["root"]).exists():
            image = tuple(map(int, row.image.split(","))) if row.image else known["shape"]
            return image, int(row.classes or known["classes"])
        info = data.describe(**dataset)
        return info.input_shape, len(info.class_names)

    # Dry run

    def dry_run(self) -> Iterator[str]:
        """Yield the lines that show what would be run."""
        yield self.title()
        total = 0.0
        for row in self.rows():
            yield f"\n{row.id}: {row.name}"
            reason = self.why_not(row)
            if reason:
                yield f"  not run: {reason}"
                if not row.counted_as:
                    continue
            elif row.control:
                yield f"  {TRAIN} control={row.control} control_of=<run of {row.of}>"
                continue
            else:
                for seed in range(self.options.seeds):
                    yield f"  {TRAIN} {' '.join(self.command(row, seed))}"
                names = ",".join(self.controls_of(row))
                if names:
                    yield f"  {TRAIN} -m control={names} control_of=<directory of the run above>"
            counts, lines = self.counted(row)
            yield f"  whole network: {counts.params:,} params, {counts.macs:,} MACs"
            yield from (f"  {line}" for line in lines)
            if not self.options.no_timing and not reason:
                seconds = self.estimate(row)
                total += self.options.seeds * seconds
                yield f"  about {in_words(seconds)} a seed on {device_name()}, without controls"
            if row.remark:
                yield f"  remark: {row.remark}"
        if total:
            yield f"\nall rows and seeds: about {in_words(total)}, without controls"
        yield ""
        yield from (f"- {remark}" for remark in self.table.remarks)

    def counted(self, row: Row) -> tuple[Counts, list[str]]:
        """Count a row's network, and compare what does not depend on training with the paper's.

        Returns:
            The counts of the whole network, and a line for each printed count.
        """
        config = self.compose(row.counted_as) if self.why_not(row) else self.config(row)
        whole = whole_counts(*self.network(row, config))
        own = self.compose(row.counted_as or row.command())
        ours = static_counts(self.table, row, own, *self.network(row, own))
        lines = []
        for column in ("params", "flops"):
            if column not in row.printed:
                continue
            printed, value = row.printed[column], ours.get(column)
            label = f"{column} ({self.convention(column)})"
            if value is None:
                lines.append(f"{label}: {TRAINED}; paper {printed}")
                continue
            said = "equal"
            if like(value, printed) != printed:
                off = 100 * (value / bounds(printed)[0] - 1)
                reason = row.differs.get(column, "UNEXPLAINED")
                said = f"{off:+.1f} %: {reason}"
            lines.append(f"{label}: {value:,.0f} = {like(value, printed)}, paper {printed}, {said}")
        return whole, lines

    def convention(self, column: str) -> str:
        """Name the paper's way of counting."""
        if column == "flops":
            return self.table.flops
        return "without batch norms" if self.table.params == "without_norms" else "all"

    def network(
        self, row: Row, config: Mapping[str, Any]
    ) -> tuple[nn.Module, tuple[int, int, int]]:
        """Build a configuration's network without values."""
        shape, classes = self.shape(row, config)
        return skeleton(json.dumps(architecture(config["model"], shape, classes))), shape

    def estimate(self, row: Row) -> float:
        """Return the seconds of a row's run, from a few steps; the pruned network counts whole."""
        config = self.config(row)
        batch_size = config["train"]["batch_size"]
        key = json.dumps([config["model"], self.shape(row, config), batch_size])
        if key not in self.times:
            shape, classes = self.shape(row, config)
            network = build(**architecture(config["model"], shape, classes))
            self.times[key] = seconds_per_step(network, shape, config["train"])
        rounds = config["method"].get("passes", 1)
        tuned = config["finetune"]["epochs"] if config["method"]["name"] != "none" else 0
        tuned *= sum(config["method"].get("levels", [1.0]))
        epochs = rounds * (config["train"]["epochs"] + tuned)
        return epochs * self.num_images(config) / batch_size * self.times[key]

    # Running

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

    def run(self) -> int:
        """Run what is missing; return how many runs failed."""
        failed = 0
        for row in sorted(self.rows(), key=lambda row: bool(row.control)):
            if self.why_not(row):
                continue
            for seed in range(self.options.seeds):
                failed += self._do(row, seed)
        return failed

    def _do(self, row: Row, seed: int) -> int:
        if row.control and not is_finished(self.run_dir(self.table.rows[row.of], seed)):
            return 1
        run_dir = self.run_dir(row, seed)
        if call(self.command(row, seed), run_dir):
            return 1
        commands = [control_command(name, run_dir) for name in self.controls_of(row)]
        return sum(call(command, place(composed(command))) for command in commands)

    # Results

    def title(self) -> str:
        """Head the table: what it is, and how it was shortened."""
        lines = [self.table.title, self.table.source]
        share, scale = SHARE[self.options.scale], self.options.scale
        if share < 1:
            rows = self.table.rows.values()
            is_selective = scale == "smoke" and any(map(self._is_selective, rows))
            threshold = f"; selective convolution: at a threshold of {SMOKE_THRESHOLD:g}"
            lines.append(
                f"scale {scale}: {share:.0%} of the epochs, at the recipe's travel or a sparsity "
                f"weight of {LARGEST_WEIGHT:g}, whichever is less (with Adam: at its weight"
                f"{threshold if is_selective else ''})"
            )
        beside = [*(self.table.smoke if scale == "smoke" else ()), *self.options.overrides]
        latest = {option.partition("=")[0]: option for option in beside}
        return "\n".join([*lines, *([" ".join(latest.values())] if latest else [])])

    def results(self, form: str = "simple") -> str:
        """Return ours beside the paper's, the accuracies of all stages, and what is known."""
        cells, stages = [], []
        for row in self.rows():
            found = self.measured(row)
            for number, (column, printed) in enumerate(row.printed.items()):
                values = [each[column] for each in found if column in each]
                name = "" if number else row.name
                cells.append([name, *self._cell(row, column, printed, values)])
            if not self.why_not(row) and not row.control:
                stages += self._stages(row)
        heads = ["row", "n", "figure", "ours", "paper", "verdict"]
        table = tabulate(cells, heads, tablefmt=form, disable_numparse=True)
        title = self.title().replace("\n", "\n\n") if form == "github" else self.title()
        parts = [title, "", table]
        if stages:
            keys = list(max(stages, key=len))
            lines = [[line.get(key, "") for key in keys] for line in stages]
            parts += ["", "Test accuracy % after each stage, mean over seeds:", ""]
            parts += [tabulate(lines, keys, tablefmt=form, disable_numparse=True)]
        remarks = [*self.table.remarks, *(f"{r.name}: {r.remark}" for r in self.rows() if r.remark)]
        flops = f"FLOPs are counted as the paper does: {self.convention('flops')}."
        return "\n".join([*parts, "", flops, *(f"- {remark}" for remark in remarks), ""])

    def _cell(self, row: Row, column: str, printed: str, values: Sequence[float]) -> list[str]:
        is_share = column.endswith(("_pruned", "_left", "difference"))
        is_other = bool(values) and self.is_other(row)
        told = [
            f"{value:,.0f}" if is_other and column in ("params", "flops") else like(value, printed)
            for value in [*([sum(values) / len(values)] if values else []), *values]
        ]
        ours = "".join(told[:1]) + (f" ({', '.join(told[1:])})" if len(set(told)) > 1 else "")
        reason = row.differs.get(column, "")
        said = self.why_not(row) and f"not run: {self.why_not(row)}"
        if not said and is_other and not is_share:
            said = "differs by construction: another network or other images"
        said = said or verdict(values, printed, column, self.table, reason)
        return [str(len(values)), COLUMNS[column], ours, printed, said]

    def is_other(self, row: Row) -> bool:
        """Tell whether the network or the images are not the experiment's."""
        row = self.table.rows[row.of] if row.of else row
        full, own = self.compose(row.command()), self.config(row)
        keys = ("name", "share", "image_size")
        images = [[each["dataset"][key] for key in keys] for each in (full, own)]
        return full["model"] != own["model"] or images[0] != images[1]

    def measured(self, row: Row) -> list[dict[str, float]]:
        """Return the figures of a row's finished runs, a dictionary for each seed."""
        if self.why_not(row):
            return []
        seeds = [seed for seed in range(self.options.seeds) if self._is_done(row, seed)]
        return [self._figures(row, seed) for seed in seeds]

    def _is_done(self, row: Row, seed: int) -> bool:
        if row.control and not self._is_done(self.table.rows[row.of], seed):
            return False
        return is_finished(self.run_dir(row, seed))

    def _figures(self, row: Row, seed: int) -> dict[str, float]:
        run_dir = self.run_dir(row, seed)
        stage = stage_of(run_dir, row)
        accuracy = 100 * stage["test_accuracy"]
        params, flops = counts_of(run_dir, row, stage, self.table)
        figures = {"error": 100 - accuracy, "accuracy": accuracy, "params": params, "flops": flops}
        base = self.table.rows.get(row.baseline)
        if base is not None and self._is_done(base, seed):
            theirs = self._figures(base, seed)
            figures["difference"] = accuracy - theirs["accuracy"]
            for column in ("params", "flops"):
                figures[f"{column}_left"] = 100 * figures[column] / theirs[column]
                figures[f"{column}_pruned"] = 100 - figures[f"{column}_left"]
        return figures

    def _stages(self, row: Row) -> list[dict[str, str]]:
        """Return lines of the stages' accuracies: a row's runs, and their controls."""
        seeds = [seed for seed in range(self.options.seeds) if self._is_done(row, seed)]
        if not seeds or row.level != "1.0" or (row.stage and not self.controls_of(row)):
            return []
        runs = {row.name: [self.run_dir(row, seed) for seed in seeds]}
        for name in self.controls_of(row):
            places = [place(composed(control_command(name, run))) for run in runs[row.name]]
            runs[f"- {CONTROL_NAMES[name]}"] = list(filter(is_finished, places))
        return [stage_line(name, places) for name, places in runs.items() if places]


@cache
def composed(arguments: tuple[str, ...]) -> dict[str, Any]:
    """Compose a configuration."""
    return cli.composed("config", cli.checked(arguments))


@cache
def skeleton(built_from: str) -> nn.Module:
    """Build a network without values, from the arguments of `build` as JSON."""
    with torch.device("meta"):
        return build(**json.loads(built_from))


@cache
def whole_counts(model: nn.Module, shape: tuple[int, int, int]) -> Counts:
    """Count a network."""
    return count(model, shape)


def control_command(name: str, run_dir: Path) -> tuple[str, ...]:
    """Return what the command line of a control says."""
    return f"control={name}", f"control_of={run_dir}"


def call(arguments: Sequence[str], run_dir: Path) -> bool:
    """Run a training unless it is finished; tell whether it failed."""
    if is_finished(run_dir):
        return False
    print(f"\n{TRAIN} {' '.join(arguments)}", flush=True)
    train = [sys.executable, "-m", "chanprune.train", *arguments]
    return subprocess.run(train, check=False).returncode != 0


def is_finished(run_dir: Path) -> bool:
    """Tell whether a run is done."""
    return (run_dir / "summary.json").exists()


def stage_of(run_dir: Path, row: Row) -> dict[str, Any]:
    """Return the line of a run's summary that a row prints."""
    stages = json_of(run_dir / "summary.json")["stages"]
    fitting = [s for s in stages if f"{s['stage']} ".startswith(f"{row.stage} ".lstrip())]
    return [s for s in fitting if s["fidelity"] == float(row.level)][-1]


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


def counts_of(
    run_dir: Path, row: Row, stage: Mapping[str, Any], table: Table
) -> tuple[float, float]:
    """Return parameters and operations of a finished run in the paper's conventions."""
    simple = {"macs": 1, "flops": 2, "slimming_imagenet": 6}
    if table.flops in simple and table.params == "all":
        return stage["params"], simple[table.flops] * stage["macs"]
    model: Any = chanprune.load(run_dir)
    shape = model.input_shape
    if row.level != "1.0":
        model = chanprune.extract(model, float(row.level))
    counts = count(model, shape)
    return params_of(counts, table), counts.conventions()[table.flops]


def params_of(counts: Counts, table: Table) -> int:
    """Return the parameters that a paper counts."""
    norms = sum(layer.params for layer in counts.layers if layer.kind == "batch_norm")
    return counts.params - (norms if table.params == "without_norms" else 0)


def static_counts(
    table: Table, row: Row, config: Mapping[str, Any], model: nn.Module, shape: tuple[int, int, int]
) -> dict[str, float]:
    """Return the counts of a row that do not depend on training, in the paper's conventions."""
    method = config["method"]
    if method["name"] == "none":
        counts = whole_counts(model, shape)
        return {"params": params_of(counts, table), "flops": counts.conventions()[table.flops]}
    if method["name"] == "idp":
        graph = trace(model, shape)
        kept = dict(prefix_plan(graph, float(row.level)).kept)
        plan = Plan({name: c for name, c in kept.items() if name not in row.counted_whole})
    elif method["name"] == "l1norm" and method["shares"]:
        graph = trace(model, shape)
        chooser = METHODS["random"](shares=method["shares"])
        chooser.before_training(model, graph, Setting(lr_travel=0))
        plan = Plan(chooser.select_channels(model, graph, PruneOptions(ratio=0))[0].kept)
    else:
        return {}
    counts = count_plan(model, graph, plan)
    convolutions = 2 * counts.macs_of("conv")
    flops = {"macs": counts.macs, "flops": 2 * counts.macs, "conv_flops": convolutions}
    return {"params": params_of(counts, table), "flops": flops.get(table.flops, 0)}


def seconds_per_step(model: nn.Module, shape: Sequence[int], train: Mapping[str, Any]) -> float:
    """Time training steps on fewer images than a batch, as many as take about half a second."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device, memory_format=torch.channels_last).train()
    optimiser = make_optimiser(model, TrainOptions(**train))

    def seconds(size: int) -> float:
        images = torch.randn(size, *shape, device=device)
        images = images.to(memory_format=torch.channels_last)
        began = time.perf_counter()
        optimiser.zero_grad()
        model(images).square().mean().backward()
        optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    size, batch = 2, train["batch_size"]
    seconds(size)
    few, many = seconds(size), seconds(2 * size)
    while many < MEASURED_FOR / 2 and 4 * size <= batch:
        size *= 2
        few, many = many, seconds(2 * size)
    return many + (batch - 2 * size) * max(0.0, many - few) / size


def device_name() -> str:
    """Name what the time was measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"this CPU ({torch.get_num_threads()} threads)"


def in_words(seconds: float) -> str:
    """Write a time."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    main()
