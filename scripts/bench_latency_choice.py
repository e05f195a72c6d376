"""A time as the budget against MACs as the budget: scripts/bench_latency_choice.py.

A trained network (a run of method=none) is pruned to a share of its time, and to the budget of MACs
whose network takes as long when it is measured. Both are fine-tuned alike, with several seeds.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from list_latencies import worth
from torch import Tensor, nn

import chanprune
from chanprune import data
from chanprune.channels import Budget, ChannelGraph, Plan
from chanprune.channels.shrunk import shrunk
from chanprune.criteria import CRITERIA, Subject
from chanprune.files.reading import yaml_of
from chanprune.methods import PruneOptions, select
from chanprune.pipeline.loop import evaluate
from chanprune.runtimes import interleaved, prepared, threads_of

BATCH, MOST = 128, 512
STUDENT = {2: 4.303, 3: 3.182, 4: 2.776}  # of 95 %, by degrees of freedom


def main() -> None:
    """Prune in both ways, fine-tune, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--root", required=True, help="the run's images")
    parser.add_argument("--asked", default="50%")
    parser.add_argument("--runtime", default="eager")
    parser.add_argument("--criterion", default="taylor")
    parser.add_argument("--share", type=float, default=0.2, help="of the training images")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--min-share", type=float, default=0.02)
    options = parser.parse_args()
    config = yaml_of(options.run / "config.yaml")["config"]
    asked = {**config["dataset"], "root": options.root, "share": options.share}
    dataset = data.load(seed=config["seed"], **asked)
    test = data.eval_batches(dataset, "test", batch_size=500, device="cpu")
    model, shape = chanprune.load(options.run), dataset.info.input_shape
    graph = chanprune.trace(model, shape)
    images = list(data.sample_batches(dataset, batch_size=MOST, seed=0, device="cpu").epoch(0))[:1]
    subject = Subject(model, graph, lambda number: images, 0)
    scores = CRITERIA[options.criterion]().scores(subject, graph.prunable("together"))
    print(f"{config['model']['name']}: {100 * evaluate(model, test):.2f} % test", flush=True)
    for name, kept in plans(model, graph, scores, options).items():
        found = []
        for seed in range(options.seeds):
            small = chanprune.compact(model, graph, Plan(kept), absorb="bias")
            found.append(100 * finetuned(small, dataset, test, options, seed))
        middle = statistics.mean(found)
        half = STUDENT[len(found) - 1] * statistics.stdev(found) / math.sqrt(len(found))
        each = " ".join(f"{value:.2f}" for value in found)
        print(f"{name}: {each}: {middle:.2f} +- {half:.2f} %", flush=True)


def plans(
    model: nn.Module, graph: ChannelGraph, scores: dict[str, Tensor], options: argparse.Namespace
) -> dict[str, dict[str, list[int]]]:
    """Return what stays by time, and by MACs in the same time."""
    shape = graph.example.shape
    timed = chanprune.select(
        model,
        graph,
        target_latency_ms=options.asked,
        latency={"runtime": options.runtime, "threads": 1, "said": print},
        criterion=Given(scores),
        min_share=options.min_share,
    )
    images = torch.randn(1, *shape)
    with threads_of(1):
        whole = prepared(options.runtime, chanprune.compact(model, graph, Plan({})), images, 1)

        def share(kept: dict[str, list[int]]) -> float:
            small = shrunk(model, graph.cut(Plan(kept))).eval()
            call = prepared(options.runtime, small, images, 1)
            timings = interleaved({"whole": whole, "small": call}, 4.0)
            return timings["small"].per(timings["whole"]).median

        by_time = {name: list(kept) for name, kept in timed.kept.items()}
        took = share(by_time)
        low, high, by_macs = 0.0, 1.0, {}
        for _ in range(8):
            amount = (low + high) / 2
            budget = Budget.of(model, graph, "macs", amount)
            terms = PruneOptions(
                ratio=0.0, coupled="together", budget=budget, min_share=options.min_share
            )
            kept = select(scores, graph, terms).kept
            if share(kept) <= 1.01 * took:
                low, by_macs = amount, kept
            else:
                high = amount
        for name, kept in (("by time", by_time), ("by MACs", by_macs)):
            macs = chanprune.count(shrunk(model, graph.cut(Plan(kept))), shape).macs
            macs /= chanprune.count(model, shape).macs
            print(
                f"{name}: {100 * share(kept):.1f} % of the time, {100 * macs:.1f} % of the MACs, "
                f"{100 * worth(scores, kept):.1f} % of the scores",
                flush=True,
            )
    return {"by time": by_time, "by MACs": by_macs}


class Given(CRITERIA["l1"]):  # type: ignore[misc]
    """Scores that were computed before."""

    def __init__(self, scores: dict[str, Tensor]):
        super().__init__()
        self.given = scores

    def scores(self, subject: Subject, groups: object) -> dict[str, Tensor]:
        """Return them."""
        return self.given


def finetuned(
    small: nn.Module,
    dataset: data.Dataset,
    test: Any,
    options: argparse.Namespace,
    seed: int,
) -> float:
    """Train a network for some epochs; return its accuracy on the test set."""
    torch.manual_seed(seed)
    batches = data.train_batches(dataset, batch_size=BATCH, seed=seed, device="cpu", part=(0, 1))
    optimiser = torch.optim.SGD(
        small.parameters(), options.lr, 0.9, weight_decay=1e-4, nesterov=True
    )
    steps = options.epochs * len(batches)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for epoch in range(options.epochs):
        small.train()
        for images, labels in batches.epoch(epoch):
            loss = F.cross_entropy(small(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return evaluate(small.eval(), test)


if __name__ == "__main__":
    main()
