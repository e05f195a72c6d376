"""Time tracing and compaction of a torchvision network: scripts/bench_compaction.py [--json].

Half of the channels go by the L1 norm of their filters. The self-check is timed apart; one forward
pass of one image in the same run says how fast the machine is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from chanprune.channels import Plan, compact, filter_scores, select_global, trace
from chanprune.models import build


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="resnet50", help="torchvision's name of the network")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    size = options.image_size
    sizes = {"num_classes": 1000, "in_channels": 3, "image_size": size}
    model = build(options.name, library="torchvision", **sizes).eval()
    shape = (3, size, size)
    graph = trace(model, shape)
    groups = graph.prunable()
    selection = select_global(filter_scores(model, graph, groups), 0.5)
    plan = Plan(selection.kept)
    image = torch.randn(1, *shape)

    def forward() -> None:
        with torch.inference_mode():
            model(image)

    tasks: dict[str, Callable[[], Any]] = {
        "trace": lambda: trace(model, shape),
        "compact": lambda: compact(model, graph, plan, check=False),
        "compact_and_check": lambda: compact(model, graph, plan),
        "forward": forward,
    }
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(options.rounds):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "network": options.name,
        "seconds": medians,
        "trace_and_compact_seconds": medians["trace"] + medians["compact"],
    }
    if options.json:
        print(json.dumps(result))
        return
    for name, median in medians.items():
        print(f"{name:18} {median:7.3f} s")
    print(f"trace and compact  {result['trace_and_compact_seconds']:7.3f} s")


if __name__ == "__main__":
    main()
