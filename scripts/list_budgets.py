"""Prune networks to budgets, and table what was asked and what is left: scripts/list_budgets.py.

Networks of torchvision and of our own, random weights, L1 norms, coupled groups together. Every
result is compacted and compared with the masked network; the table is Markdown.
"""

from __future__ import annotations

import argparse
import time

from tabulate import tabulate
from torch import nn

import chanprune
from chanprune.models import build

LIBRARY = ["resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121", "shufflenet_v2_x1_0"]
OURS = ["vgg16", "resnet56", "preresnet164", "densenet40"]
BUDGETS = [("macs", 0.3), ("macs", 0.5), ("macs", 0.7), ("params", 0.5)]


def main() -> None:
    """Prune all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", nargs="+", default=[*LIBRARY, *OURS])
    parser.add_argument("--round-to", type=int, default=1)
    options = parser.parse_args()
    rows = []
    for name in options.name:
        model, shape = network(name)
        whole = chanprune.count(model, shape)
        for cost, share in BUDGETS:
            began = time.perf_counter()
            row = [name, f"{cost} {share:g}"]
            try:
                graph = chanprune.trace(model, shape)
                asked = {f"target_{cost}": share, "round_to": options.round_to}
                plan = chanprune.select(model, graph, **asked)
                chosen = time.perf_counter() - began
                small = chanprune.compact(model, graph, plan)
                left = chanprune.count(small, shape)
                got = getattr(left, cost) / getattr(whole, cost)
                seconds = time.perf_counter() - began
                row += [f"{got:.4f}", f"{left.macs:,}", f"{left.params:,}"]
                row += [f"{chosen:.2f}", f"{seconds:.2f}"]
            except ValueError as refusal:
                row += [str(refusal)]
            rows.append(row)
            print(" ".join(row), flush=True)
    heads = ["network", "asked", "left", "MACs", "params", "trace + select s", "with proof s"]
    print(tabulate(rows, heads, tablefmt="github", disable_numparse=True))


def network(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """Build a network by its name, and return the shape of its images."""
    size, classes = (224, 1000) if name in LIBRARY else (32, 10)
    library = "torchvision" if name in LIBRARY else None
    sizes = {"num_classes": classes, "in_channels": 3, "image_size": size}
    return build(name, library=library, **sizes).eval(), (3, size, size)


if __name__ == "__main__":
    main()
