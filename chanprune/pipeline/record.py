"""What a run leaves behind while it goes: metrics, TensorBoard, lines on the terminal."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from chanprune.channels.operations import BATCH_NORMS
from chanprune.files.reading import text_of
from chanprune.files.writing import flush, json_lines, write_text

METRICS = "metrics.jsonl"
QUIET = ("executed_macs", "activation_bytes")


class Record:
    """Writes metrics.jsonl (one line per epoch and stage), TensorBoard events and the terminal.

    A stage's checkpoint holds its metrics. What metrics.jsonl holds is not read: where it is not
    what the checkpoints say, it is written anew.
    """

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self._path = run_dir / METRICS
        self._lines: list[dict[str, Any]] = []
        self._epochs = 0
        self._percentages: Sequence[str] = ()
        self._writers: list[SummaryWriter] = []

    def start_stage(
        self,
        stage: str,
        epochs: int,
        num_steps: int,
        facts: Mapping[str, float],
        done: Sequence[Mapping[str, Any]] = (),
        percentages: Sequence[str] = (),
    ) -> None:
        """Say what is about to happen, and let the files hold what is done and no more.

        Args:
            stage: Its name.
            epochs: How many there will be.
            num_steps: Steps of all of them.
            facts: What the method says.
            done: The metrics of the epochs that are done, each with its "epoch".
            percentages: Metrics besides accuracies that are shares, in [0, 1].
        """
        self._epochs, self._percentages = epochs, percentages
        self._lines += ({"stage": stage, **line} for line in done)
        self._rewrite()
        self._writers.append(self._writer(stage, done))
        told = "".join(f", {name.replace('_', ' ')} {value:.4g}" for name, value in facts.items())
        self.say(f"{stage}: {epochs} epochs of {num_steps // epochs} steps{told}")
        if len(done) == epochs:
            self.say("  done already")
        for name, value in facts.items():
            self._writers[-1].add_scalar(name, value, 0)

    def _writer(self, stage: str, done: Sequence[Mapping[str, Any]]) -> SummaryWriter:
        """Return what writes a stage's events, which holds those of the epochs that are done."""
        folder = self.run_dir / "tensorboard" / stage
        is_new = not folder.exists()
        writer = SummaryWriter(str(folder), purge_step=len(done) + 1 if done else None)
        for line in done if is_new else ():
            for name in line.keys() - {"epoch"}:
                writer.add_scalar(name, line[name], line["epoch"])
        return writer

    def epoch(self, stage: str, line: Mapping[str, Any], model: nn.Module) -> None:
        """Write one epoch's metrics and the histograms of the batch-norm scales.

        Args:
            stage: Its name.
            line: The metrics, with their "epoch", from 1.
            model: The network.

        Raises:
            OSError: They cannot be written.
        """
        self._lines.append({"stage": stage, **line})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json_lines(self._lines[-1:]))
        epoch = line["epoch"]
        metrics = {key: value for key, value in line.items() if key != "epoch"}
        for name, value in metrics.items():
            self._writers[-1].add_scalar(name, value, epoch)
        for name, module in model.named_modules():
            if isinstance(module, BATCH_NORMS) and module.affine:
                scale = module.weight.detach().float().cpu()
                self._writers[-1].add_histogram(f"scale/{name}", scale, epoch)
        self._writers[-1].flush()
        told = "  ".join(
            self._told(name, value)
            for name, value in metrics.items()
            if name not in QUIET and "." not in name
        )
        width = len(str(self._epochs))
        self.say(f"  {stage} {epoch:{width}}/{self._epochs}  {told}")

    def _rewrite(self) -> None:
        """Let metrics.jsonl hold the lines so far, and nothing else."""
        text = json_lines(self._lines)
        try:
            there = text_of(self._path)
        except FileNotFoundError:
            there = ""
        except (OSError, ValueError):
            there = None
        if there != text:
            write_text(self._path, text)

    def metrics_of(self, stage: str) -> list[dict[str, Any]]:
        """Return the lines of a stage's epochs so far."""
        return [line for line in self._lines if line["stage"] == stage]

    def _told(self, name: str, value: float) -> str:
        label = name.replace("_accuracy", "").replace("_", " ")
        if "_accuracy" in name or name in self._percentages:
            return f"{label} {100 * value:5.1f} %"
        if name == "seconds":
            return f"{value:.1f} s"
        return f"{label} {value:.4g}" if name != "loss" else f"{label} {value:.3f}"

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        tqdm.write(text)

    def close(self) -> None:
        """Bring everything to the disk."""
        for writer in self._writers:
            writer.close()
        if self._path.exists():
            flush(self._path)


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
