"""A run: train -> prune -> finetune, straight down, and what it leaves behind."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from chanprune import data
from chanprune.channels import (
    ChannelGraph,
    CompactionError,
    Fidelity,
    Plan,
    compact,
    count,
    expand,
    order_by,
    prefix_plan,
    recalibrate,
    scale_scores,
    selective_units,
    trace,
    wiring,
)
from chanprune.files.digest import digest
from chanprune.files.writing import write_json, write_text
from chanprune.methods import Method
from chanprune.pipeline.conversion import convert
from chanprune.pipeline.cost import Cost, in_words
from chanprune.pipeline.loop import Stage, evaluate, train
from chanprune.pipeline.model_file import Preprocessing, save_model
from chanprune.pipeline.optimiser import TrainOptions
from chanprune.pipeline.prepare import Network, Prepared, channels_last, make_method
from chanprune.pipeline.pruning import PruneReport
from chanprune.pipeline.record import Record, quiet_writers
from chanprune.pipeline.reuse import StageCache, training_depends_on
from chanprune.pipeline.rewiring_pictures import draw_fields, draw_rewirings
from chanprune.processes import ranks
from chanprune.processes.errors import RunError, UserError
from chanprune.processes.interruption import Interruption
from chanprune.processes.parallel import agree
from chanprune.show.pictures import (
    draw_active_channels,
    draw_kept_channels,
    draw_levels,
    draw_scales_by_channel,
    draw_sorted_scales,
)
from chanprune.show.table import Row, as_csv, as_markdown, levels_by_stage

EVAL_BATCH = 500
ALONE = nullcontext()
Watch = Callable[[int, float, int], None]  # epoch of fine-tuning, validation accuracy, MACs
NOTES = (
    "MACs: multiply-accumulates of convolutions and linear layers for one image "
    "(FLOPs = 2 x MACs). Percentages: what is gone since the first row.",
    "val: held out of the training set, chooses the epoch where one is chosen. "
    "test: looked at once per row, chooses nothing.",
)


def run(
    config: Mapping[str, Any],
    prepared: Prepared,
    run_dir: Path,
    cache_dir: Path | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Do one experiment.

    Args:
        config: The configuration that was prepared.
        prepared: Its data and network; the network is used up.
        run_dir: An existing directory; everything is written there.
        cache_dir: Where runs that train alike find each other's train stage; None: nowhere.
        watch: Called after each epoch of fine-tuning; what it raises ends the run, which the same
            call goes on with.

    Returns:
        What summary.json holds; nothing in the processes that do not write it.

    Raises:
        UserError: So many channels cannot go.
        RunError: Training failed, or a file could not be written.
        Interrupted: A signal came; the same call goes on.
    """
    cache = None
    if cache_dir and ranks.is_first():
        cache = StageCache(cache_dir, training_depends_on(config, prepared), run_dir)
    try:
        with Interruption() as interruption, quiet_writers():
            experiment = _Experiment(config, prepared, run_dir, interruption, watch)
            return _run(experiment, prepared.network, cache)
    except OSError as error:
        raise RunError(
            f"{error.filename or run_dir}: {error.strerror or error}; what was saved stays, and "
            "the same command goes on"
        ) from error


def _run(experiment: _Experiment, network: Network, cache: StageCache | None) -> dict[str, Any]:
    config = experiment.config
    passes = make_method(config).passes
    for number in range(1, passes + 1):
        suffix = f"-{number}" if passes > 1 else ""
        method = make_method(config)
        stage = f"train{suffix}"
        shared = cache if number == 1 else None
        with shared.claim(stage, experiment.record, experiment.interruption) if shared else ALONE:
            experiment.train(network, method, stage, config["train"])
        if method.converts:
            experiment.convert(network, method)
        elif method.prunes:
            experiment.prune(network, method, suffix)
        experiment.order(network)
        hooks = method.finetune_hooks(network.graph)
        if hooks is not None and config["finetune"]["epochs"] > 0:
            product = replace(network, model=method.product(network.model))
            experiment.measure_levels(product, method)
            experiment.train(network, hooks, f"finetune{suffix}", config["finetune"])
            experiment.order(network)
        network.model = method.product(network.model)
        experiment.measure_levels(network, method)
    return experiment.finish(network) if ranks.is_first() else {}


class _Experiment:
    """The stages, on one data set, writing to one directory."""

    def __init__(
        self,
        config: Mapping[str, Any],
        prepared: Prepared,
        run_dir: Path,
        interruption: Interruption,
        watch: Watch | None,
    ):
        self.config = config
        self.watch = watch
        self.interruption = interruption
        self.dataset = prepared.dataset
        self.device = prepared.device
        self.architecture = prepared.architecture
        self.run_dir = run_dir
        self.record = Record(run_dir)
        self.absorb: Literal["none", "bias"] = config["prune"]["absorb"]
        self.recalibrate: int = config["prune"]["recalibrate"]
        self.in_order: bool = config["prune"]["order"]
        self.select = prepared.prune
        self.reports: list[PruneReport] = []
        self.orders: dict[str, list[int]] = {}
        self.costs: dict[str, Cost] = {}
        self.whole = self._cost_of_a_step(prepared.network)
        graph = prepared.network.graph
        self.prunable = [group.name for group in graph.prunable(self.select.coupled)]
        self.widths = {name: graph.groups[name].size for name in self.prunable}
        self._introduce()
        for note in prepared.notes:
            self.record.say(note)

    def _introduce(self) -> None:
        """Say what will be done with what."""
        sizes = {key: len(split.labels) for key, split in self.dataset.splits.items()}
        told = ", ".join(f"{size} {key}" for key, size in sizes.items())
        self.record.say(
            f"{self.config['model']['name']} on {self.dataset.name} ({told}), "
            f"{sum(self.widths.values())} channels in {len(self.widths)} groups may go, "
            f"on {self.device}"
        )
        decay = {key: self.config["train"][f"weight_decay{key}"] for key in ("", "_norm", "_bias")}
        self.record.say(
            f"weight decay: weights {decay['']:g}, batch-norm scales and shifts "
            f"{decay['_norm']:g}, biases {decay['_bias']:g}"
        )

    def _cost_of_a_step(self, network: Network) -> Cost:
        """Measure what a training step of the whole network costs, on a copy."""
        batches = self.train_batches(self.config["train"]["batch_size"])
        images, _ = next(iter(batches.epoch(0)))
        model = copy.deepcopy(network.model).train()
        cost = Cost()
        is_bf16 = self.config["train"]["precision"] == "bf16"
        with cost.watch(model), torch.autocast(self.device.type, torch.bfloat16, enabled=is_bf16):
            model(images.to(memory_format=torch.channels_last))
        cost.add_step(len(images), count(model, self.dataset.info.input_shape).macs)
        return cost

    def train(
        self, network: Network, method: Method, name: str, options: Mapping[str, Any]
    ) -> None:
        """Train or fine-tune; without a penalty the best epoch on validation is kept."""
        chosen = TrainOptions(**options)
        stage = Stage(
            name,
            self.run_dir / name,
            "last" if method.prunes else "best",
            self.config["seed"],
            self.select,
            digest(network.plan.to_json(), 16),
            self.interruption,
            self._watcher(network, name),
        )
        batches = self.train_batches(chosen.batch_size)
        validation = self.split("val")
        epoch, self.costs[name] = train(
            network.model, network.graph, batches, validation, chosen, method, stage, self.record
        )
        chose = f" (epoch {epoch}, best on val)" if stage.keep == "best" else ""
        label = name.replace("train", "trained").replace("finetune", "fine-tuned")
        product = replace(network, model=method.product(network.model))
        self.measure(product, f"{label}{chose}", self.costs[name].seconds)

    def _watcher(self, network: Network, name: str) -> Callable[[int, Mapping[str, float]], None]:
        """Return what is called after each epoch of a stage."""

        def tell(epoch: int, metrics: Mapping[str, float]) -> None:
            if self.watch and name.startswith("finetune") and "val_accuracy" in metrics:
                self.watch(epoch, metrics["val_accuracy"], network.rows[-1].macs)

        return tell

    def prune(self, network: Network, method: Method, suffix: str) -> None:
        """Select channels, compact, check, and measure with and without absorbed constants."""
        began = time.perf_counter()
        self.settle(network)
        method.before_pruning(network.model, network.graph, self.training_images)
        try:
            selection, scores = method.select_channels(network.model, network.graph, self.select)
        except ValueError as error:
            raise UserError(str(error)) from error
        try:
            plan = network.graph.complete(Plan(selection.kept))
        except ValueError as error:
            raise UserError(f"prune.min_channels=0 empties too much: {error}") from error
        agree(plan)
        try:
            dropped = compact(network.model, network.graph, plan)
        except CompactionError as error:
            raise RunError(str(error)) from error
        absorbed = compact(network.model, network.graph, plan, absorb="bias", check=False)
        implied = self._width(network.graph) - self._width(dropped.graph) - selection.removed
        report = PruneReport(selection, scores, implied, dropped.max_error, absorbed.absorbed)
        self.reports.append(report)
        for line in (*report.lines(), *method.remarks):
            self.record.say(line)
        draw_sorted_scales(
            self.run_dir / f"scales{suffix}.png",
            report.all_scores(),
            selection.removed,
            selection.threshold,
            f"{self._title()}: before pruning{suffix}",
            method.score,
        )
        draw_scales_by_channel(
            self.run_dir / f"order{suffix}.png",
            {"": {name: score.tolist() for name, score in scores.items()}},
            f"{self._title()}: channel by channel{suffix}",
            method.score,
        )
        self.draw_portraits(method, suffix)
        seconds = time.perf_counter() - began
        network.graph, network.plan = dropped.graph, network.plan.then(plan)
        results = [(dropped, "pruned"), (absorbed, "pruned, constants absorbed")]
        for result, label in results if self.absorb == "bias" else reversed(results):
            network.model = result.model
            channels_last(network.model)
            self.measure(network, f"{label}{suffix}", seconds)
        if self.recalibrate:
            self.estimate_statistics(network, suffix)

    def settle(self, network: Network) -> None:
        """Let the channel graph, and what is stored, take in what training rewired."""
        network.form = {"expanded": expand(network.model), "copies": wiring(network.model)}
        if not any(network.form.values()):
            return
        before = network.graph.groups
        network.graph = trace(network.model, self.dataset.info.input_shape)
        group_of = {n: group.name for group in network.graph.groups.values() for n in group.norms}
        names = {
            name: name if name in network.graph.groups else group_of[before[name].norms[0]]
            for name in self.prunable
        }
        self.widths = {new: self.widths[old] for old, new in names.items()}
        self.prunable = list(self.widths)

    def convert(self, network: Network, method: Method) -> None:
        """Turn the network into other forms of its architecture, and measure each."""
        self.draw_portraits(method)
        for conversion in method.conversions(network.model):
            began = time.perf_counter()
            network.options |= conversion.options
            network.model, error = convert(
                network.model, {**self.architecture, **network.options}, conversion
            )
            network.graph = trace(network.model, self.dataset.info.input_shape)
            if conversion.exact:
                self.record.say(f"{conversion.label}: logits as before to {error:.1g}")
            self.measure(network, conversion.label, time.perf_counter() - began)

    def draw_portraits(self, method: Method, suffix: str = "") -> None:
        """Draw what else the method has to show of the channels."""
        for what, values in method.portraits().items():
            draw_scales_by_channel(
                self.run_dir / f"{what.replace(' ', '_')}{suffix}.png",
                {"": {n: sorted(value.tolist(), reverse=True) for n, value in values.items()}},
                f"{self._title()}: {what}{suffix}",
                what,
                "channels of a layer, sorted (%)",
            )

    def order(self, network: Network) -> None:
        """Put the channels with the largest scales first, if that is asked for."""
        if not self.in_order:
            return
        groups = [network.graph.groups[name] for name in self.prunable]
        groups = [group for group in groups if group.norms]
        scores = scale_scores(network.model, network.graph, groups)
        network.model, order = order_by(network.model, network.graph, scores)
        for name, places in order.items():
            before = self.orders.get(name) or network.plan.kept.get(name) or range(len(places))
            self.orders[name] = [before[place] for place in places]

    def measure_levels(self, network: Network, method: Method) -> None:
        """Add a row for each fidelity level below the whole network, if there are any."""
        lower = sorted((level for level in method.levels if level < 1), reverse=True)
        if not lower:
            return
        stage = network.rows[-1].stage
        network.fidelity = Fidelity(network.model, network.graph)
        for level in lower:
            began = time.perf_counter()
            if method.level_statistics:
                images = self.training_images(method.level_statistics)
                network.fidelity.estimate(level, images, self.device)
            graph = network.graph.after(prefix_plan(network.graph, level))
            small = Network(network.fidelity.extract(level), graph, rows=network.rows)
            self.measure(small, stage, time.perf_counter() - began, level)

    def training_images(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of about `number` training images, to estimate statistics on."""
        size = min(number, EVAL_BATCH)
        seed = self.config["seed"]
        batches = data.sample_batches(self.dataset, batch_size=size, seed=seed, device=self.device)
        return islice(batches.epoch(0), math.ceil(number / batches.batch_size))

    def estimate_statistics(self, network: Network, suffix: str) -> None:
        """Estimate the batch-norm statistics anew on training images."""
        began = time.perf_counter()
        recalibrate(network.model, self.training_images(self.recalibrate), self.device)
        label = f"pruned, statistics anew{suffix}"
        self.measure(network, label, time.perf_counter() - began)

    def measure(self, network: Network, stage: str, seconds: float, fidelity: float = 1.0) -> None:
        """Add a row to the table: the one time that this stage meets the test set."""
        self.interruption.stop_if_any_requested()
        counts = count(network.model, self.dataset.info.input_shape)
        row = Row(
            stage,
            evaluate(network.model, self.split("val")),
            evaluate(network.model, self.split("test")),
            self._width(network.graph),
            counts.params,
            counts.macs,
            round(seconds, 2),
            fidelity,
        )
        network.rows.append(row)

    def _width(self, graph: ChannelGraph) -> int:
        """Count the channels of the groups that may be pruned."""
        return sum(graph.groups[name].size for name in self.prunable)

    def train_batches(self, batch_size: int) -> data.MemoryBatches | data.StreamBatches:
        """Return the batches of the training split, shuffled and augmented anew in every epoch."""
        return data.train_batches(
            self.dataset,
            batch_size=batch_size,
            seed=self.config["seed"],
            device=self.device,
            part=(ranks.number(), ranks.count()),
        )

    def split(self, name: data.SplitName) -> data.MemoryBatches | data.StreamBatches:
        """Return the batches of a split, in order."""
        return data.eval_batches(
            self.dataset,
            name,
            batch_size=EVAL_BATCH,
            device=self.device,
            part=(ranks.number(), ranks.count()),
        )

    def finish(self, network: Network) -> dict[str, Any]:
        """Write the compact model, the plan, the table and the pictures."""
        info = self.dataset.info
        counts = count(network.model, info.input_shape)
        preprocessing = Preprocessing(info.input_shape, self.dataset.mean, self.dataset.std)
        save_model(
            self.run_dir,
            network.model,
            {**self.architecture, **network.options},
            network.plan,
            preprocessing,
            info.class_names,
            counts,
            network.form,
            network.fidelity.statistics if network.fidelity else {},
        )
        final = [row for row in network.rows if row.fidelity == 1][-1]
        summary: dict[str, Any] = {
            "accuracy": final.test_accuracy,
            "params": final.params,
            "macs": final.macs,
            "cost": {
                **{name: asdict(cost) for name, cost in self.costs.items()},
                "whole_network_step": asdict(self.whole),
            },
            "stages": [asdict(row) for row in network.rows],
        }
        if network.fidelity:
            curves = levels_by_stage(summary["stages"])
            draw_levels(self.run_dir / "levels.png", curves, f"{self._title()}: levels")
        if self.reports:
            passes = [report.to_json() for report in self.reports]
            plan = {"kept": network.plan.to_json(), "policy": asdict(self.select)}
            if self.orders:
                plan["order"] = self.orders
            fixed = {g.name: g.fixed for g in network.graph.groups.values() if g.fixed}
            write_json(self.run_dir / "plan.json", {**plan, "fixed": fixed, "passes": passes})
            draw_kept_channels(
                self.run_dir / "channels.png",
                {n: (network.graph.groups[n].size, whole) for n, whole in self.widths.items()},
                f"{self._title()}: channels kept",
            )
        notes = [*NOTES, in_words(self.costs.values(), self.whole)]
        draw_active_channels(
            self.run_dir / "active.png", self.record.metrics(), f"{self._title()}: active channels"
        )
        draw_rewirings(
            self.run_dir / "rewired.png", self.record.metrics(), f"{self._title()}: channels"
        )
        convs = {unit.norm: unit.conv for unit in selective_units(network.model, network.graph)[0]}
        draw_fields(self.run_dir / "fields.png", network.model, convs, f"{self._title()}: kernels")
        table = as_markdown(network.rows, notes)
        write_text(self.run_dir / "table.md", table)
        write_text(self.run_dir / "table.csv", as_csv(network.rows))
        self.record.close()
        write_json(self.run_dir / "summary.json", summary)
        return summary

    def _title(self) -> str:
        method = self.config["method"]["name"]
        return f"{self.config['model']['name']} on {self.dataset.name}, {method}"
