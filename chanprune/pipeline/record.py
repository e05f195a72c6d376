"""What a run leaves behind while it goes: metrics, TensorBoard, lines on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from chanprune.channels.operations import BATCH_NORMS
from chanprune.errors import RunError

QUIET = ("executed_macs", "activation_bytes", "active_share")
SHARES = ("_accuracy", "nearly_zero_scales", "scales_below_0.05")


class Record:
    """Writes metrics.jsonl (one line per epoch and stage), TensorBoard events and the terminal."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self._stage = ""
        self._epochs = 0
        self._offsets: dict[str, int] = {}
        self._writer: SummaryWriter = SummaryWriter(str(run_dir / "tensorboard"))

    def start_stage(
        self, stage: str, epochs: int, num_steps: int, facts: Mapping[str, float]
    ) -> None:
        """Say what is about to happen; `facts` are the method's."""
        self._epochs = epochs
        told = "".join(f", {name.replace('_', ' ')} {value:.4g}" for name, value in facts.items())
        self.say(f"{stage}: {epochs} epochs of {num_steps // epochs} steps{told}")
        for name, value in facts.items():
            self._writer.add_scalar(f"{stage}/{name}", value, 0)

    def epoch(self, stage: str, epoch: int, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Write one epoch's metrics and the histograms of the batch-norm scales."""
        line = json.dumps({"stage": stage, "epoch": epoch, **metrics})
        try:
            with (self.run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise RunError(f"{error.filename} cannot be written: {error.strerror}") from error
        for name, value in metrics.items():
            self._writer.add_scalar(f"{stage}/{name}", value, epoch)
        for name, module in model.named_modules():
            if isinstance(module, BATCH_NORMS) and module.affine:
                scale = module.weight.detach().float().cpu()
                self._writer.add_histogram(f"{stage}/scale/{name}", scale, epoch)
        told = "  ".join(
            _told(name, value) for name, value in metrics.items() if not name.startswith(QUIET)
        )
        width = len(str(self._epochs))
        self.say(f"  {stage} {epoch:{width}}/{self._epochs}  {told}")

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines that were written for all epochs so far."""
        path = self.run_dir / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        tqdm.write(text)

    def close(self) -> None:
        """Flush TensorBoard."""
        self._writer.close()


def _told(name: str, value: float) -> str:
    label = name.replace("_accuracy", "").replace("_", " ")
    if any(share in name for share in SHARES):
        return f"{label} {100 * value:5.1f} %"
    if name == "seconds":
        return f"{value:.1f} s"
    return f"{label} {value:.4g}" if name != "loss" else f"{label} {value:.3f}"
