"""What a run leaves behind while it goes: metrics, TensorBoard, lines on the terminal."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from chanprune.channels.operations import BATCH_NORMS
from chanprune.pipeline.files import json_lines, write_text

METRICS = "metrics.jsonl"
QUIET = ("executed_macs", "activation_bytes")
SHARES = ("_accuracy", "nearly_zero_scales", "scales_below_0.05", "dropped_weights")


class Record:
    """Writes metrics.jsonl (one line per epoch and stage), TensorBoard events and the terminal."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self._path = run_dir / METRICS
        self._epochs = 0
        self._writers: list[SummaryWriter] = []

    def start_stage(
        self, stage: str, epochs: int, num_steps: int, facts: Mapping[str, float], done: int = 0
    ) -> None:
        """Say what is about to happen, and forget what was written of epochs that are not done.

        Args:
            stage: Its name.
            epochs: How many there will be.
            num_steps: Steps of all of them.
            facts: What the method says.
            done: Epochs that are done.
        """
        self._epochs = epochs
        self._rewind(stage, done)
        folder = self.run_dir / "tensorboard" / stage
        self._writers.append(SummaryWriter(str(folder), purge_step=done + 1 if done else None))
        told = "".join(f", {name.replace('_', ' ')} {value:.4g}" for name, value in facts.items())
        self.say(f"{stage}: {epochs} epochs of {num_steps // epochs} steps{told}")
        if done == epochs:
            self.say("  done already")
        for name, value in facts.items():
            self._writers[-1].add_scalar(name, value, 0)

    def adopt(self, stage: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take a stage's metrics from another run that trained the same."""
        others = [line for line in self.metrics() if line["stage"] != stage]
        write_text(self._path, json_lines([*others, *lines]))
        writer = SummaryWriter(str(self.run_dir / "tensorboard" / stage))
        for line in lines:
            for name, value in line.items():
                if name not in {"stage", "epoch"}:
                    writer.add_scalar(name, value, line["epoch"])
        writer.close()

    def epoch(self, stage: str, epoch: int, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Write one epoch's metrics and the histograms of the batch-norm scales.

        Raises:
            OSError: They cannot be written.
        """
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json_lines([{"stage": stage, "epoch": epoch, **metrics}]))
        for name, value in metrics.items():
            self._writers[-1].add_scalar(name, value, epoch)
        for name, module in model.named_modules():
            if isinstance(module, BATCH_NORMS) and module.affine:
                scale = module.weight.detach().float().cpu()
                self._writers[-1].add_histogram(f"scale/{name}", scale, epoch)
        self._writers[-1].flush()
        told = "  ".join(
            _told(name, value)
            for name, value in metrics.items()
            if name not in QUIET and "." not in name
        )
        width = len(str(self._epochs))
        self.say(f"  {stage} {epoch:{width}}/{self._epochs}  {told}")

    def _rewind(self, stage: str, done: int) -> None:
        """Drop the lines of a stage's epochs beyond those that are done, and what is cut off."""
        kept = [x for x in self.metrics() if x["stage"] != stage or x["epoch"] <= done]
        text = json_lines(kept)
        if self._path.exists() and self._path.read_text(encoding="utf-8") != text:
            write_text(self._path, text)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines that were written for all epochs so far."""
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def lines_of(self, stage: str) -> list[dict[str, Any]]:
        """Return the lines of one stage."""
        return [line for line in self.metrics() if line["stage"] == stage]

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        tqdm.write(text)

    def close(self) -> None:
        """Flush TensorBoard."""
        for writer in self._writers:
            writer.close()


@contextmanager
def quiet_writers() -> Iterator[None]:
    """Let TensorBoard's threads not print their errors, which `Record.epoch` raises."""
    before = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.exc_value, OSError):
            before(failure)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _told(name: str, value: float) -> str:
    label = name.replace("_accuracy", "").replace("_", " ")
    if any(share in name for share in SHARES):
        return f"{label} {100 * value:5.1f} %"
    if name == "seconds":
        return f"{value:.1f} s"
    return f"{label} {value:.4g}" if name != "loss" else f"{label} {value:.3f}"
