"""Repair without training, in accuracy: scripts/bench_repair.py RUN --root DATA.

RUN trained a whole network (method=none) on an image folder; if it is not finished, its checkpoint
so far is taken. The filters with the smallest L1 norms go until half of the multiply-accumulates
are left; what each repair is worth is the accuracy on the test set, nothing being trained. The
images that repairs need are training images, or those of another data set. Where Torch-Pruning is
installed, it prunes the same weights.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chanprune import data, load
from chanprune.channels import (
    ChannelGraph,
    Plan,
    compact,
    count,
    count_plan,
    filter_scores,
    recalibrate,
    refit,
    select_global,
    trace,
)
from chanprune.data.dataset import Dataset
from chanprune.files.reading import yaml_of
from chanprune.models import build
from chanprune.pipeline.checkpoint import read

try:
    import torch_pruning
except ImportError:
    torch_pruning = None

Batches = list[tuple[Tensor, Tensor]]
REPAIRS = {
    "nothing": (),
    "constants": ("constants",),
    "statistics": ("statistics",),
    "least squares": ("least squares",),
    "constants, least squares": ("constants", "least squares"),
    "least squares, then statistics": ("least squares", "statistics"),
    "all: constants, least squares, then statistics": ("constants", "least squares", "statistics"),
}
STEPS = 14
SCORES = ["as they are", "relative to their layer's mean"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--root", required=True, help="the run's images")
    parser.add_argument("--images", type=int, nargs="+", default=[500])
    parser.add_argument("--scores", nargs="+", default=SCORES, choices=SCORES, help="of L1 norms")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--other", nargs="*", default=[], help="other images: imagefolder=cifar100.zip"
    )
    options = parser.parse_args()
    config = yaml_of(options.run / "config.yaml")["config"]
    dataset = data.load(seed=config["seed"], **{**config["dataset"], "root": options.root})
    test = list(data.eval_batches(dataset, "test", batch_size=500, device="cpu").epoch(0))
    model, epoch = network(options.run, config, dataset)
    shape = dataset.info.input_shape
    whole = accuracy(model, test)
    print(f"{config['model']['name']} after {epoch}: {100 * whole:.2f} %", flush=True)
    bench = Bench(model, shape, test, whole)
    graph = trace(model, shape)
    for scores, coupled in product(options.scores, ("keep", "together")):
        plan = halved(model, graph, coupled, scores)
        share = count_plan(model, graph, plan).macs / count(model, shape).macs
        print(f"\nL1 norms, {scores}; coupled={coupled}; {100 * share:.2f} % of the MACs")
        if coupled == "together" and graph.prunable("keep") == graph.prunable("together"):
            print("(no group is behind a sum alone: the same cut)")
            continue
        for number in options.images:
            sets = [sample(dataset, number, seed) for seed in range(options.seeds)]
            for name, steps in REPAIRS.items():
                own = sets if {"statistics", "least squares"} & set(steps) else sets[:1]
                bench.measure(f"{name} ({number} images)", graph, plan, steps, own)
        for other in options.other:
            own = [sample(foreign(other, shape, dataset), options.images[0], s) for s in range(3)]
            for name in ("statistics", "constants, least squares"):
                bench.measure(
                    f"{name}, images of {other.partition('=')[0]}", graph, plan, REPAIRS[name], own
                )
    if torch_pruning is not None:
        against_torch_pruning(bench, sample(dataset, options.images[0], 0))


class Bench:
    """The network, and its test."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...], test: Batches, whole: float):
        self.model = model
        self.shape = shape
        self.test = test
        self.whole = whole

    def measure(
        self,
        name: str,
        graph: ChannelGraph,
        plan: Plan,
        steps: tuple[str, ...],
        sets: list[Batches],
    ) -> None:
        """Repair with each set of images, and print the accuracies."""
        found, seconds = [], []
        for images in sets:
            absorb = "bias" if "constants" in steps else "none"
            small = compact(self.model, graph, plan, absorb=absorb, check=False).model
            began = time.perf_counter()
            if "least squares" in steps:
                refit(self.model, small, graph.cut(plan), images)
            if "statistics" in steps:
                recalibrate(small, images, "cpu")
            seconds.append(time.perf_counter() - began)
            found.append(accuracy(small, self.test))
        self.tell(name, found, statistics.mean(seconds))

    def tell(self, name: str, found: list[float], seconds: float) -> None:
        """Print a row: accuracy, each seed's, share of the whole network's, seconds."""
        mean = statistics.mean(found)
        each = " ".join(f"{100 * value:.2f}" for value in found)
        share = 100 * mean / self.whole
        print(f"| {name} | {100 * mean:.2f} | {each} | {share:.1f} | {seconds:.1f} |", flush=True)


@torch.inference_mode()
def accuracy(model: nn.Module, batches: Batches) -> float:
    """Return the share of images that a network classifies correctly."""
    model.eval()
    hits = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches)
    return hits / sum(len(labels) for _, labels in batches)


def network(run: Path, config: dict[str, Any], dataset: Dataset) -> tuple[nn.Module, str]:
    """Return the network of a run, and how far it was trained."""
    epochs = config["train"]["epochs"]
    if (run / "model.json").exists():
        return load(run).eval(), f"{epochs} epochs"
    info = dataset.info
    sizes = {"in_channels": info.input_shape[0], "image_size": info.input_shape[1]}
    model = build(**config["model"], num_classes=len(info.class_names), **sizes)
    tensors, facts = read(run / "train/state.safetensors")
    own = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    model.load_state_dict(own)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval(), f"{facts['epoch']} of {epochs} epochs"


def bisected(pruned: Callable[[float], Any], macs: Callable[[Any], float], half: float) -> Any:
    """Return what the smallest ratio makes that leaves at most half of the work."""
    low, high, best = 0.0, 1.0, None
    for _ in range(STEPS):
        ratio = (low + high) / 2
        try:
            found = pruned(ratio)
        except ValueError:
            high = ratio
            continue
        if macs(found) > half:
            low = ratio
        else:
            high, best = ratio, found
    return best


def halved(model: nn.Module, graph: ChannelGraph, coupled: Any, kind: str) -> Plan:
    """Choose channels by the L1 norms of their filters, over all layers."""
    scores = filter_scores(model, graph, graph.prunable(coupled))
    if kind != SCORES[0]:
        scores = {name: score / score.mean() for name, score in scores.items()}
    plan: Plan = bisected(
        lambda ratio: Plan(select_global(scores, ratio).kept),
        lambda plan: count_plan(model, graph, plan).macs,
        count(model, graph.input_shape).macs / 2,
    )
    return plan


def sample(dataset: Dataset, number: int, seed: int) -> Batches:
    """Return training images, chosen by the seed, in one batch."""
    batches = data.sample_batches(dataset, batch_size=number, seed=seed, device="cpu")
    return list(islice(batches.epoch(0), 1))


def foreign(other: str, shape: tuple[int, ...], own: Dataset) -> Dataset:
    """Load another data set, whose images are normalised and coloured as the run's own are."""
    name, _, root = other.partition("=")
    dataset = data.load(seed=0, name=name, root=root, image_size=shape[1])
    source = dataset.splits["train"].in_memory()
    coloured = source.images.expand(-1, shape[0], -1, -1)
    splits = {**dataset.splits, "train": replace(source, images=coloured)}
    return replace(dataset, splits=splits, mean=own.mean, std=own.std)


def against_torch_pruning(bench: Bench, images: Batches) -> None:
    """Let Torch-Pruning take channels of the same network, inside of its blocks."""
    print(f"\nTorch-Pruning {torch_pruning.__version__}, GroupMagnitudeImportance(p=1)")
    half = count(bench.model, bench.shape).macs / 2
    graph = trace(bench.model, bench.shape)
    inner = {name for group in graph.prunable("keep") for name in group.producers}
    for is_global in (True, False):

        def pruned(ratio: float, is_global: bool = is_global) -> nn.Module:
            model = copy.deepcopy(bench.model)
            layers = [m for n, m in model.named_modules() if n in graph.layers and n not in inner]
            pruner = torch_pruning.pruner.MetaPruner(
                model,
                torch.zeros(1, *bench.shape),
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=1),
                pruning_ratio=ratio,
                ignored_layers=[m for m in layers if not isinstance(m, nn.BatchNorm2d)],
                global_pruning=is_global,
            )
            pruner.step()
            return model

        small = bisected(pruned, lambda model: count(model, bench.shape).macs, half)
        scope = "global" if is_global else "layer by layer"
        share = 100 * count(small, bench.shape).macs / half / 2
        bench.tell(f"{scope}, {share:.2f} % of the MACs", [accuracy(small, bench.test)], 0)
        recalibrate(small, images, "cpu")
        bench.tell(f"{scope}, then our statistics", [accuracy(small, bench.test)], 0)


if __name__ == "__main__":
    main()
