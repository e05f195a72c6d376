"""Print SHA-256s of what short runs leave: the same list where no bit changed.

Takes a few minutes on two cores. Bits differ between processors and versions of PyTorch, so compare
lists of one machine:

    python scripts/list_digests.py > before.txt
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SHORT = ["dataset.image_size=16", "dataset.share=0.1", "train.epochs=2", "finetune.epochs=1"]
SHORT += ["train.batch_size=32", "device=cpu", "cache.enabled=false", "run.dir=run"]
VGG = ["model=vgg11", "model.width=0.125"]
LEVELS = "method.levels=[0.5,1.0]"
PREACTIVATION = ["model=preresnet29", "model.width=0.125", "model.shortcut=zero_pad"]
SELECTCONV = [*PREACTIVATION, "method=selectconv", "method.threshold=0.3", "method.until=1.0"]
RUNS = {
    "none": [*VGG, "method=none"],
    "slimming": VGG,
    "slimming, two passes, Taylor": [
        *(*VGG, "method.passes=2", "method.criterion=taylor", "prune.ratio=0.2"),
    ],
    "slimming, levels": [*VGG, LEVELS, "prune.order=true", "prune.absorb=bias"],
    "prioritized": [*VGG, "method=prioritized", LEVELS, "prune.threshold=0.5"],
    "idp": [*VGG, "method=idp", LEVELS],
    "cucb": [*VGG, "method=cucb", "method.explore=1"],
    "final_random": [*VGG, "method=final_random", "method.explore=1"],
    "random_every_step": [*VGG, "method=random_every_step"],
    "fixed_random": [*VGG, "method=fixed_random"],
    "selectconv, re-allocated": SELECTCONV,
    "selectconv, kernels": [*SELECTCONV, "method.shift=post"],
    "selectconv, released only": [*SELECTCONV, "method.realloc=false"],
    "lgc": ["model=condensenet50", "model.width=0.25", "model.groups=2", "method=lgc"],
    "l1norm": [*VGG, "method=l1norm"],
    "random": [*VGG, "method=random"],
}
TRAIN = [sys.executable, "-m", "chanprune.train"]
TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def main() -> None:
    """Do the runs that are asked for, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"some of: {', '.join([*RUNS, *OTHERS])}; or all")
    names = parser.parse_args().names or [*RUNS, *OTHERS]
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            if name in OTHERS:
                OTHERS[name](folder)
            else:
                call([*TRAIN, *RUNS[name], *SHORT], folder)
            model = Path(folder, "run", "model.safetensors").read_bytes()
        print(f"{hashlib.sha256(model).hexdigest()}  {name}", flush=True)


def resumed(folder: str) -> None:
    """Train, lose the fine-tuning and all products, and go on."""
    call([*TRAIN, *VGG, *SHORT], folder)
    run = Path(folder, "run")
    for path in (run / "manifest.json", run / "model.safetensors", *run.glob("finetune/*")):
        path.unlink()
    call([*TRAIN, "resume=run"], folder)


def in_two_processes(folder: str) -> None:
    """Train with torchrun."""
    call([*TOGETHER, "-m", "chanprune.train", *VGG, *SHORT], folder)


OTHERS = {"slimming, resumed": resumed, "slimming, two processes": in_two_processes}


def call(command: list[str], folder: str) -> None:
    """Run a command quietly, on one thread; leave with what it said if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
