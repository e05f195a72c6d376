"""Prune networks to a time, measure them again in a fresh process: scripts/list_latencies.py.

Networks of torchvision and of our own, random weights, L1 norms, coupled groups together, one
image. Each is pruned by `python -m chanprune.prune`, and its product is loaded and timed in turns
with the whole network in another process. There, too, a budget of MACs is found whose network
takes as long, and the scores that both keep are compared. The table is Markdown; --out keeps what
is done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

import chanprune
from chanprune.channels import Budget
from chanprune.channels.shrunk import shrunk
from chanprune.criteria import CRITERIA, Subject
from chanprune.methods import PruneOptions, select
from chanprune.models import build
from chanprune.runtimes import interleaved, prepared, threads_of

LIBRARY = ["resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x1_0"]
OURS = ["vgg16", "resnet56", "densenet40"]
SECONDS = 4.0
HEADS = ("network", "runtime", "asked", "predicted", "measured", "again", "MACs", "kept", "by MACs")


def main() -> None:
    """Prune all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", nargs="+", default=[*OURS, *LIBRARY])
    parser.add_argument("--runtime", nargs="+", default=["eager", "ort"])
    parser.add_argument("--share", nargs="+", type=int, default=[70, 50], help="per cent")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("outputs/latencies.jsonl"))
    parser.add_argument("--again", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.again:
        print(json.dumps(again(options.again)))
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(row["network"], row["runtime"], row["asked"]) for row in rows}
    for name in options.name:
        for runtime in options.runtime:
            for share in options.share:
                if (name, runtime, share) not in done:
                    rows.append(pruned(name, runtime, share, options.threads))
                    print(rows[-1], flush=True)
                    with options.out.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print(tabulate([told(row) for row in rows], HEADS, tablefmt="github", disable_numparse=True))


def told(row: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    head = [row["network"], row["runtime"], f"{row['asked']} %"]
    if "refused" in row:
        return [*head, row["refused"]]
    whole = row["whole"]
    shares = [100 * row["predicted"] / whole, 100 * row["measured"] / whole, 100 * row["again"]]
    kept = [row["macs"], row["kept"], row["kept_by_macs"]]
    return [*head, *(f"{share:.1f} %" for share in shares), *(f"{100 * k:.1f} %" for k in kept)]


def pruned(name: str, runtime: str, share: int, threads: int) -> dict[str, Any]:
    """Prune a network to a share of its time, and measure it again."""
    row: dict[str, Any] = {"network": name, "runtime": runtime, "asked": share}
    library = ["model=torchvision", f"model.name={name}"] if name in LIBRARY else [f"model={name}"]
    size = 224 if name in LIBRARY else 32
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            *("-m", "chanprune.prune", *library, f"dataset.image_size={size}"),
            *(f"prune.target_latency_ms={share}%", f"prune.latency.runtime={runtime}"),
            *(f"prune.latency.threads={threads}", f"run.dir={folder}/run"),
        ]
        asked = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False
        )
        if asked.returncode:
            return {**row, "refused": asked.stderr.strip().splitlines()[-1]}
        certificate = json.loads(Path(folder, "run/latency.json").read_text())
        kept = ("whole", "predicted", "measured", "quartiles", "tries")
        measured = subprocess.run(
            [sys.executable, __file__, "--again", f"{folder}/run"],
            capture_output=True,
            text=True,
            check=True,
        )
        return {
            **row,
            **{key: certificate[key] for key in kept},
            **json.loads(measured.stdout.splitlines()[-1]),
        }


def again(run: Path) -> dict[str, float]:
    """Time a run's network in this process, and find a budget of MACs that takes as long."""
    terms = json.loads((run / "latency.json").read_text())["terms"]
    described = json.loads((run / "model.json").read_text())
    torch.manual_seed(0)
    whole = build(**described["architecture"]).eval()
    shape = tuple(described["input_shape"])
    images = torch.randn(terms["batch"], *shape)
    with threads_of(terms["threads"]):
        dense = prepared(terms["runtime"], whole, images, terms["threads"])

        def share(network: torch.nn.Module) -> float:
            call = prepared(terms["runtime"], network.eval(), images, terms["threads"])
            timings = interleaved({"whole": dense, "small": call}, SECONDS)
            return timings["small"].per(timings["whole"]).median

        small = chanprune.load(run)
        got = share(small)
        graph = chanprune.trace(whole, shape)
        scores = CRITERIA["l1"]().scores(Subject(whole, graph), graph.prunable("together"))
        kept = json.loads((run / "plan.json").read_text())["kept"]
        by_macs, low, high = 0.0, 0.0, 1.0
        for _ in range(6):
            amount = (low + high) / 2
            budget = Budget.of(whole, graph, "macs", amount)
            options = PruneOptions(ratio=0.0, coupled="together", budget=budget)
            chosen = select(scores, graph, options).kept
            network = shrunk(whole, graph.cut(chanprune.Plan(chosen)))
            if share(network) <= got * 1.01:
                low, by_macs = amount, worth(scores, chosen)
            else:
                high = amount
    counts = chanprune.count(small, shape).macs / chanprune.count(whole, shape).macs
    return {"again": got, "macs": counts, "kept": worth(scores, kept), "kept_by_macs": by_macs}


def worth(scores: dict[str, torch.Tensor], kept: dict[str, list[int]]) -> float:
    """Return the share of all scores that some channels have."""
    left = sum(float(s[kept[n]].sum() if n in kept else s.sum()) for n, s in scores.items())
    return left / sum(float(score.sum()) for score in scores.values())


if __name__ == "__main__":
    main()
