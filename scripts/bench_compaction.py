"""Time tracing and compaction of torchvision's networks: scripts/bench_compaction.py [--json].

Half of the channels go by the L1 norm of their filters, coupled ones together. The self-check is
timed apart; one forward pass of one image in the same run says how fast the machine is. Where
Torch-Pruning is installed, its own way of the same work is timed in turn with ours.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from chanprune.channels import Plan, compact, filter_scores, select_global, trace
from chanprune.channels.graph import ChannelGraph
from chanprune.models import build

try:
    import torch_pruning
except ImportError:
    torch_pruning = None

RATIO = 0.5
NAMES = ["resnet50", "mobilenet_v2", "densenet121"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", nargs="+", default=NAMES, help="torchvision's names of networks")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one line for each network")
    options = parser.parse_args()
    for name in options.name:
        seconds = medians(tasks(name, options.image_size), options.rounds)
        if options.json:
            both = seconds["trace"] + seconds["compact"]
            result = {"network": name, "seconds": seconds, "trace_and_compact_seconds": both}
            print(json.dumps(result), flush=True)
            continue
        print(name)
        for task, median in seconds.items():
            print(f"  {task:26} {median:7.3f} s")
        if "torch_pruning" in seconds:
            ratio = seconds["trace_select_compact"] / seconds["torch_pruning"]
            print(f"  ours / Torch-Pruning's     {ratio:7.2f}", flush=True)


def tasks(name: str, size: int) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Return what is timed: task -> what prepares it, which is not timed."""
    sizes = {"num_classes": 1000, "in_channels": 3, "image_size": size}
    model = build(name, library="torchvision", **sizes).eval()
    shape = (3, size, size)
    graph = trace(model, shape)
    plan = chosen(model, graph)
    image = torch.randn(1, *shape)

    def whole() -> None:
        graph = trace(model, shape)
        compact(model, graph, chosen(model, graph), check=False)

    def theirs() -> Callable[[], Any]:
        return partial(by_torch_pruning, copy.deepcopy(model), image)

    def forward() -> None:
        with torch.inference_mode():
            model(image)

    timed = {
        "trace": lambda: lambda: trace(model, shape),
        "compact": lambda: lambda: compact(model, graph, plan, check=False),
        "compact_and_check": lambda: lambda: compact(model, graph, plan),
        "forward": lambda: forward,
        "trace_select_compact": lambda: whole,
    }
    return timed if torch_pruning is None else {**timed, "torch_pruning": theirs}


def medians(tasks: dict[str, Callable[[], Callable[[], Any]]], rounds: int) -> dict[str, float]:
    """Do all tasks in turn, once to warm up and then `rounds` times; return median seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(1 + rounds):
        for name, prepare in tasks.items():
            task = prepare()
            gc.collect()
            began = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def chosen(model: nn.Module, graph: ChannelGraph) -> Plan:
    """Choose the half of the channels that stays."""
    scores = filter_scores(model, graph, graph.prunable("together"))
    return Plan(select_global(scores, RATIO).kept)


def by_torch_pruning(model: nn.Module, image: torch.Tensor) -> None:
    """Let Torch-Pruning take half of the channels, the classifier's outputs apart, in place."""
    outputs = [module for module in model.modules() if getattr(module, "out_features", 0) == 1000]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        image,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        global_pruning=True,
        pruning_ratio=RATIO,
        ignored_layers=outputs,
    )
    pruner.step()


if __name__ == "__main__":
    main()
