"""Counts of a row's network in the paper's conventions, and the time of its run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chanprune.channels import Plan, count, count_plan, prefix_plan, trace
from chanprune.channels.counting import Counts
from chanprune.methods import PruneOptions, Setting
from chanprune.methods.layerwise import RandomOnce
from chanprune.models import architecture, build
from chanprune.papers.job import Job
from chanprune.papers.published import Row, Table
from chanprune.pipeline.model_file import extract, load
from chanprune.pipeline.optimiser import TrainOptions, make_optimiser

MEASURED_FOR = 1.0  # seconds of a time measurement


def network(
    job: Job, row: Row, config: Mapping[str, Any]
) -> tuple[nn.Module, tuple[int, int, int]]:
    """Build a configuration's network without values."""
    shape, classes = job.shape(row, config)
    return skeleton(json.dumps(architecture(config["model"], shape, classes))), shape


@cache
def skeleton(built_from: str) -> nn.Module:
    """Build a network without values, from the arguments of `build` as JSON."""
    with torch.device("meta"):
        return build(**json.loads(built_from))


@cache
def whole_counts(model: nn.Module, shape: tuple[int, int, int]) -> Counts:
    """Count a network."""
    return count(model, shape)


def counts_of(
    run_dir: Path, row: Row, stage: Mapping[str, Any], table: Table
) -> tuple[float, float]:
    """Return parameters and operations of a finished run in the paper's conventions."""
    simple = {"macs": 1, "flops": 2, "slimming_imagenet": 6}
    if table.flops in simple and table.params == "all":
        return stage["params"], simple[table.flops] * stage["macs"]
    model: Any = load(run_dir)
    shape = model.input_shape
    if row.level != "1.0":
        model = extract(model, float(row.level))
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
        chooser = RandomOnce(shares=method["shares"])
        chooser.before_training(model, graph, Setting(lr_travel=0))
        plan = Plan(chooser.select_channels(model, graph, PruneOptions(ratio=0))[0].kept)
    else:
        return {}
    counts = count_plan(model, graph, plan)
    convolutions = 2 * counts.macs_of("conv")
    flops = {"macs": counts.macs, "flops": 2 * counts.macs, "conv_flops": convolutions}
    return {"params": params_of(counts, table), "flops": flops.get(table.flops, 0)}


def estimate(job: Job, row: Row) -> float:
    """Return the seconds of a row's run, from a few steps; the pruned network counts whole."""
    config = job.config(row)
    shape, classes = job.shape(row, config)
    built_from = json.dumps(architecture(config["model"], shape, classes))
    seconds = _seconds_of_a_step(built_from, shape, json.dumps(config["train"]))
    rounds = config["method"].get("passes", 1)
    tuned = config["finetune"]["epochs"] if config["method"]["name"] != "none" else 0
    tuned *= sum(config["method"].get("levels", [1.0]))
    epochs = rounds * (config["train"]["epochs"] + tuned)
    steps: float = epochs * job.num_images(config) / config["train"]["batch_size"]
    return steps * seconds


@cache
def _seconds_of_a_step(built_from: str, shape: tuple[int, int, int], train: str) -> float:
    return seconds_per_step(build(**json.loads(built_from)), shape, json.loads(train))


def seconds_per_step(model: nn.Module, shape: Sequence[int], train: Mapping[str, Any]) -> float:
    """Time training steps on fewer images than a batch, as many as take about half a second."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train().to(memory_format=torch.channels_last)
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

    size, batch = 2, int(train["batch_size"])
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
