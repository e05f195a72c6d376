"""Kill runs at random moments and go on, until they end as runs that nobody killed.

    python scripts/kill_and_resume.py [--kills 30] [--seed 0]

For each method a small run is done once without a stop. Then the same command is started, killed
(SIGKILL, which no process can answer) after a random time, and started again, over all stages.
At the end both runs must hold the same bits, and each line of metrics.jsonl once.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SMALL = ["model=vgg11", "model.width=0.125", "dataset.image_size=16", "train.epochs=8"]
SMALL += ["finetune.epochs=8", "train.batch_size=32", "train.save_every_minutes=0.005"]
METHODS = {
    "slimming": ["method=slimming"],
    "prioritized": ["method=prioritized", "method.levels=[0.5,1.0]", "finetune.epochs=4"],
    "cucb": ["method=cucb", "method.explore=20", "prune.ratio=0.5"],
    "random_every_step": ["method=random_every_step", "prune.ratio=0.5"],
}


def start(arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start the command."""
    command = [sys.executable, "-m", "chanprune.train", *SMALL, *arguments, f"run.dir={folder}"]
    nowhere = subprocess.DEVNULL
    return subprocess.Popen([*command, "cache.enabled=false"], stdout=nowhere, stderr=nowhere)


def metrics(folder: Path) -> list[dict[str, float]]:
    """Read the metrics, without what time makes different."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def where(folder: Path) -> str:
    """Name the stage that a run is in."""
    stages = [name for name in ("train", "finetune") if (folder / name).exists()]
    return stages[-1] if stages else "start"


def kill_until_done(
    arguments: list[str], folder: Path, kills: int, longest: float, moments: random.Random
) -> list[str]:
    """Kill a run so often, then let it end; return where it was killed."""
    killed: list[str] = []
    while not (folder / "summary.json").exists():
        process = start(arguments, folder)
        try:
            process.wait(moments.uniform(0, longest) if len(killed) < kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed.append(where(folder))
    return killed


def main() -> None:
    """Kill, compare, tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="of all methods together")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    moments = random.Random(options.seed)
    total = 0
    for number, (name, arguments) in enumerate(METHODS.items()):
        share = -(-(options.kills - total) // (len(METHODS) - number))
        killed: list[str] = []
        with tempfile.TemporaryDirectory() as temporary:
            whole = Path(temporary, "whole")
            began = time.perf_counter()
            assert start(arguments, whole).wait() == 0, f"{name}: the run failed"
            longest = time.perf_counter() - began
            while len(killed) < share:
                broken = Path(temporary, f"broken-{len(killed)}")
                killed += kill_until_done(arguments, broken, share - len(killed), longest, moments)
                for file in ("model.safetensors", "plan.json"):
                    same = (whole / file).read_bytes() == (broken / file).read_bytes()
                    assert same, f"{name}: other bits in {file}"
                assert metrics(whole) == metrics(broken), f"{name}: other metrics"
                shutil.rmtree(broken)
        total += len(killed)
        told = ", ".join(f"{killed.count(stage)} in {stage}" for stage in dict.fromkeys(killed))
        print(f"{name}: killed {len(killed)} times ({told}); same bits, each line once", flush=True)
    print(f"{total} kills")


if __name__ == "__main__":
    main()
