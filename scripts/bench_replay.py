"""Time training steps on a GPU as they are and replayed: scripts/bench_replay.py [--json].

Both take turns, some steps each, on the same images; the ratio of the medians is what counts (see
chanprune/pipeline/replay.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from chanprune.channels import Bank, ChannelGraph, trace
from chanprune.methods import Method, Plain, Setting, Step
from chanprune.methods.multi_fidelity import MultiFidelity
from chanprune.methods.prioritized import Prioritized
from chanprune.methods.selectconv import SelectiveConvolution
from chanprune.methods.slimming import Slimming
from chanprune.models import build
from chanprune.pipeline.cost import Cost
from chanprune.pipeline.optimiser import TrainOptions, make_optimiser
from chanprune.pipeline.updates import Updates
from chanprune.processes.interruption import Interruption

SHAPE = (3, 32, 32)
STEPS = 50
LEVELS = (0.25, 0.5, 0.75, 1.0)
BOTTLENECK = {"stem": 24, "bottleneck": True, "transition": "pool"}
RUNS: dict[str, tuple[str, dict[str, Any], Callable[[ChannelGraph], Method]]] = {
    "VGG-19, slimming": ("vgg19", {}, lambda graph: Slimming(1e-4)),
    "VGG-16, width 0.25, slimming": ("vgg16", {"width": 0.25}, lambda graph: Slimming(1e-4)),
    "VGG-16, prioritized": ("vgg16", {"head": "fc512"}, lambda graph: Prioritized(1e-3)),
    "VGG-16, four levels": ("vgg16", {"head": "fc512"}, lambda graph: MultiFidelity(graph, LEVELS)),
    "DenseNet-40, none": ("densenet40", BOTTLENECK, lambda graph: Plain()),
    "DenseNet-40, selectconv": ("densenet40", BOTTLENECK, lambda graph: SelectiveConvolution()),
    "ResNet-164, slimming": ("preresnet164", {}, lambda graph: Slimming(1e-5)),
}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_replay: there is no GPU, and elsewhere nothing is replayed", file=sys.stderr)
        return 2
    images = torch.randn(options.batch, *SHAPE, device="cuda")
    labels = torch.randint(10, (options.batch,), device="cuda")
    lines = []
    for label in RUNS:
        both = [prepared(label, options, replayed=replayed) for replayed in (False, True)]
        for updates in both:
            seconds(updates, images, labels)
        rounds = [[seconds(u, images, labels) for u in both] for _ in range(options.rounds)]
        plain, replayed = (1000 * statistics.median(times) for times in zip(*rounds, strict=True))
        lines.append((label, plain, replayed, replayed / plain))
    if options.json:
        keys = ("ms", "replayed_ms", "ratio")
        steps = {label: dict(zip(keys, values, strict=True)) for label, *values in lines}
        print(json.dumps({"device": torch.cuda.get_device_name(), "step": steps}))
        return 0
    print(f"{torch.cuda.get_device_name()}, batch {options.batch}, {options.precision}")
    print(tabulate(lines, ["step", "as it is ms", "replayed ms", "ratio"], floatfmt=".2f"))
    return 0


def prepared(label: str, options: argparse.Namespace, *, replayed: bool) -> Updates:
    """Build a network in training."""
    torch.manual_seed(0)
    name, rest, make = RUNS[label]
    model = build(name, num_classes=10, in_channels=3, image_size=32, **rest)
    model.to("cuda", memory_format=torch.channels_last).train()
    graph = trace(model, SHAPE)
    method = make(graph)
    method.before_training(model, graph, Setting(lr_travel=1.0))
    train = TrainOptions(
        epochs=1,
        batch_size=options.batch,
        lr=1e-4,
        optimiser="sgd",
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
        weight_decay_norm=1e-4,
        weight_decay_bias=1e-4,
        schedule="cosine",
        milestones=(),
        lr_factor=0.1,
        warmup=0.0,
        label_smoothing=0.0,
        precision=options.precision,
        compile=False,
        save_every_minutes=10.0,
    )
    optimiser = make_optimiser(model, train, method.weight_decays())
    updates = Updates(
        Bank(model, graph, optimiser), optimiser, method, train, Interruption(), print
    )
    if not replayed:
        updates.replay = None
    return updates


def seconds(updates: Updates, images: Tensor, labels: Tensor) -> float:
    """Return the seconds of a step, the mean of some."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for index in range(STEPS):
        updates.do(Step(index, 0, 1e-4, 0.0), images, labels, Cost())
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / STEPS


if __name__ == "__main__":
    sys.exit(main())
