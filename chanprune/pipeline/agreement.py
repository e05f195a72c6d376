"""How far what a file computes is from what its checkpoint does."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from chanprune.processes.errors import RunError

Precision = Literal["fp32", "fp16", "int8"]
# Largest differences, as shares of the largest output.
LIMITS: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "int8": math.inf}
FEWEST: dict[Precision, float] = {"fp32": 0.0, "fp16": 0.0, "int8": 0.95}  # equal answers
MOST_ROUNDING = 1e-3  # what is more is no rounding
BATCH = 32
# It knows PyTorch, the file and the images, and nothing of this package.
PROGRAM = """
import logging, sys, warnings
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import torch
form, path, taken, given = sys.argv[1:]
with open(path, "rb") as file:
    load = torch.jit.load if form == "torchscript" else torch.export.load
    model = load(file)
model = model if form == "torchscript" else model.module()
with torch.inference_mode():
    batches = torch.load(taken, weights_only=True).split({batch})
    torch.save(torch.cat([model(images) for images in batches]), given)
"""


@dataclass(frozen=True)
class Agreement:
    """What two networks make of the same images.

    Attributes:
        difference: The largest of their outputs, relative to the largest output.
        equal: Share of the images to which they give the same answer.
        is_fine: The difference is within what the precision allows, and where the answers differ,
            they are a tie: further apart than the outputs no two classes are. Of eight bits only
            the share of equal answers counts.
    """

    difference: float
    equal: float
    is_fine: bool

    @property
    def told(self) -> str:
        """Both in words."""
        return (
            f"largest difference {self.difference:.1e} of the largest output, "
            f"{100 * self.equal:.2f} % of the answers equal"
        )


def agreement(
    got: Tensor, expected: Tensor, rounding: float = 0.0, precision: Precision = "fp32"
) -> Agreement:
    """Compare outputs (N, classes, ...).

    Args:
        got: Of the file.
        expected: Of the checkpoint.
        rounding: How far the checkpoint's own rounding takes it, relative to the largest output;
            where that is more, it is what the file may differ by.
        precision: Of the file.
    """
    if got.shape != expected.shape:
        return Agreement(float("inf"), 0.0, False)
    got, expected = got.double(), expected.double()
    scale = max(expected.abs().max().item(), torch.finfo(torch.float32).tiny)
    difference = (got - expected).abs().max().item() / scale
    answers = got.argmax(1, keepdim=True)
    behind = expected.amax(1, keepdim=True) - expected.gather(1, answers)
    allowed = max(LIMITS[precision], 2 * min(rounding, MOST_ROUNDING))
    is_tie = bool((behind <= 2 * allowed * scale).all())
    equal = (answers == expected.argmax(1, keepdim=True)).double().mean().item()
    is_near = math.isfinite(difference) and difference <= allowed and is_tie
    return Agreement(difference, equal, is_near and equal >= FEWEST[precision])


@torch.inference_mode()
def answers_of(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the outputs of a network, some images at a time."""
    return torch.cat([model(batch) for batch in images.split(BATCH)]).clone()


def in_fresh_process(form: str, path: Path, images: Tensor) -> Tensor:
    """Run a file of torch.export or TorchScript in a new interpreter; return its outputs.

    Raises:
        RunError: It fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        taken, given = Path(folder, "taken.pt"), Path(folder, "given.pt")
        torch.save(images, taken)
        program = PROGRAM.format(batch=BATCH)
        command = [sys.executable, "-c", program, form, *map(str, (path.absolute(), taken, given))]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            raise RunError(f"the file of {form} fails in a process of its own: {reason}")
        outputs: Tensor = torch.load(given, weights_only=True)
    return outputs
