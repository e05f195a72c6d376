"""The one training loop."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from chanprune.channels import Bank, ChannelGraph, evaluating, rowwise_batch_norms
from chanprune.methods import Method, PruneOptions, Step
from chanprune.pipeline.checkpoint import BEFORE, NEWEST, Checkpoints, Progress
from chanprune.pipeline.cost import Cost
from chanprune.pipeline.max_pool import fast_max_pools
from chanprune.pipeline.optimiser import TrainOptions, make_optimiser, schedule_of, setting_of
from chanprune.pipeline.record import Record
from chanprune.pipeline.updates import Updates
from chanprune.processes import ranks
from chanprune.processes.errors import RunError
from chanprune.processes.interruption import Interruption
from chanprune.processes.parallel import share_files, summed, whole_batch_norms

CHECK_EVERY = 50


class Batches(Protocol):
    """Batches of normalised images and labels, on the device."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images (N, C, H, W), labels (N,)); order and augmentation depend on `index`."""


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Attributes:
        name: "train", "finetune", or one of these with the number of a pass.
        folder: Where its checkpoints go.
        keep: Which epoch it hands on.
        seed: Seed of the run.
        prune: How channels will be selected.
        begun_from: See `Checkpoints`.
        interruption: Tells when to stop.
        watch: Called after each epoch with its number (from 1) and metrics; may end the run.
    """

    name: str
    folder: Path
    keep: Literal["last", "best"]
    seed: int
    prune: PruneOptions
    begun_from: str
    interruption: Interruption
    watch: Callable[[int, Mapping[str, float]], None]

    @property
    def option(self) -> str:
        """Section of the configuration: "train" for the stage "train-2"."""
        return self.name.partition("-")[0]


def train(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Batches,
    validation: Batches,
    options: TrainOptions,
    method: Method,
    stage: Stage,
    record: Record,
) -> tuple[int, Cost]:
    """Train `model` in place.

    The state is saved after epochs, and within an epoch now and then and when a signal comes; a
    stage that was begun goes on where it was saved, to the same end. With `stage.keep` "best" the
    model ends as it was after the epoch with the best validation accuracy (the later one if equal;
    the mean where `Method.validated` names several networks).

    Returns:
        The epoch (from 1) that the stage hands on, and what the stage cost.

    Raises:
        RunError: The loss is not finite; the last good checkpoint stays.
        Interrupted: A signal came; everything is saved.
    """
    setting = setting_of(options, len(batches), stage.seed, stage.prune)
    facts = method.before_training(model, graph, setting)
    optimiser = make_optimiser(model, options, method.weight_decays())
    bank = Bank(model, graph, optimiser)
    checkpoints = Checkpoints(stage.folder, stage.begun_from, model, optimiser, bank, method)
    share_files(stage.folder, (NEWEST, BEFORE))
    progress, warnings = checkpoints.load()
    record.start_stage(
        stage.name,
        options.epochs,
        setting.num_steps,
        facts,
        progress.metrics,
        method.percentages,
    )
    for line in filter(None, (*warnings, method.advice, _where(progress, options))):
        record.say(f"  {line}")
    updates = Updates(bank, optimiser, method, options, stage.interruption, record.say)
    training = _Training(updates, stage, checkpoints, progress)
    for epoch in range(progress.epoch, options.epochs):
        with training.layers():
            training.epoch(epoch, batches)
        metrics = training.measure(epoch, validation)
        record.epoch(stage.name, progress.metrics[-1], model)
        training.end_epoch()
        stage.watch(epoch + 1, metrics)
    bank.activate(None)
    if progress.best is None:
        return options.epochs, progress.cost
    model.load_state_dict(progress.best)
    return progress.best_epoch, progress.cost


class _Training:
    """A stage in progress."""

    def __init__(
        self,
        updates: Updates,
        stage: Stage,
        checkpoints: Checkpoints,
        progress: Progress,
    ):
        self.updates = updates
        self.model = updates.bank.model
        self.method = updates.method
        self.options = updates.options
        self.stage = stage
        self.checkpoints = checkpoints
        self.progress = progress
        self.saved, self.seconds_to_save = time.perf_counter(), 0.0

    def epoch(self, epoch: int, batches: Batches) -> None:
        """Go through the batches that are left of an epoch."""
        progress, per_epoch = self.progress, len(batches)
        schedule = schedule_of(self.options, self.options.epochs * per_epoch)
        first = epoch * per_epoch
        self.began = time.perf_counter()
        self.model.train()
        bar = tqdm(
            total=self.options.epochs * per_epoch,
            initial=first + progress.batch,
            desc=self.stage.name,
            unit="step",
            disable=None if ranks.is_first() else True,
            leave=False,
        )
        for images, labels in islice(batches.epoch(epoch), progress.batch, None):
            index = first + progress.batch
            lr, share = schedule.at(index), index / (self.options.epochs * per_epoch)
            self.last = Step(index, epoch, lr, share)
            is_first = not progress.losses
            loss, hits = self.updates.do(self.last, images, labels, progress.cost, watch=is_first)
            progress.losses.append(loss)
            progress.hits.append(hits)
            progress.batch += 1
            bar.update()
            if progress.batch % CHECK_EVERY == 0:
                _check_finite(progress.losses[-CHECK_EVERY:], self.stage, self.last)
            is_late = time.perf_counter() - self.saved > 60 * self.options.save_every_minutes
            is_asked = self.updates.is_asked_to_stop()
            if (is_late or is_asked) and progress.batch < per_epoch:
                self._check()
                self._take_time()
                self._save()
                if is_asked:
                    self.stage.interruption.stop_if_any_requested()
        bar.close()
        self._check()

    def end_epoch(self) -> None:
        """Save, unless saving would take more than a tenth of the time; stop if that is asked."""
        is_asked = self.updates.is_asked_to_stop()
        is_last = self.progress.epoch == self.options.epochs
        since = time.perf_counter() - self.saved
        if is_last or is_asked or since > 9 * self.seconds_to_save:
            self._save()
        if is_asked:
            self.stage.interruption.stop_if_any_requested()

    def _save(self) -> None:
        begun = time.perf_counter()
        self.checkpoints.save(self.progress)
        self.saved = time.perf_counter()
        self.seconds_to_save = self.saved - begun

    def layers(self) -> AbstractContextManager[None]:
        """Let layers see the batches of all processes, or be fast, while this is open."""
        if ranks.count() > 1:
            return whole_batch_norms(self.model)
        if self.options.compile:
            return fast_max_pools(self.model)
        return rowwise_batch_norms(self.model)

    def measure(self, epoch: int, validation: Batches) -> dict[str, float]:
        """End an epoch: validate, and note whether it is the best so far."""
        progress = self.progress
        val = {
            f"val_accuracy{name}": evaluate(network, validation)
            for name, network in self.method.validated(self.model).items()
        }
        of_method = self.method.after_epoch(self.last)
        self._take_time()
        metrics = {
            "loss": torch.stack(progress.losses).mean().item(),
            "train_accuracy": torch.stack(progress.hits).mean().item(),
            **val,
            "lr": self.last.lr,
            **of_method,
            "seconds": progress.seconds,
            "executed_macs": progress.cost.macs,
            "activation_bytes": progress.cost.activation_bytes,
        }
        score = fmean(val.values())
        if self.stage.keep == "best" and score >= progress.best_score:
            progress.best_score, progress.best_epoch = score, epoch + 1
            progress.best = copy.deepcopy(self.model.state_dict())
        progress.metrics.append({"epoch": epoch + 1, **metrics})
        progress.epoch, progress.batch, progress.seconds = epoch + 1, 0, 0.0
        progress.losses, progress.hits = [], []
        return metrics

    def _take_time(self) -> None:
        """Add the time since the last call to what the epoch and the stage have taken."""
        now = time.perf_counter()
        self.progress.seconds += now - self.began
        self.progress.cost.seconds += now - self.began
        self.began = now

    def _check(self) -> None:
        _check_finite(self.progress.losses, self.stage, self.last)
        _check_finite([_norm(self.model)], self.stage, self.last)


def _where(progress: Progress, options: TrainOptions) -> str:
    """Say where a stage goes on, or nothing if it begins."""
    if progress.epoch == progress.batch == 0 or progress.epoch == options.epochs:
        return ""
    within = f" and {progress.batch} steps" if progress.batch else ""
    return f"goes on after {progress.epoch} epochs{within}"


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Batches) -> float:
    """Return the share of images that are classified correctly, in [0, 1]."""
    counts = torch.zeros(2, dtype=torch.long, device=_device(model))
    with evaluating(model):
        for images, labels in batches.epoch(0):
            logits = model(images.to(memory_format=torch.channels_last))
            counts[0] += (logits.argmax(1) == labels).sum()
            counts[1] += len(labels)
    hits, seen = (int(number) for number in summed(counts))
    return hits / max(1, seen)


def _norm(model: nn.Module) -> Tensor:
    """Return a number that is not finite if a parameter is not."""
    return torch.stack([p.detach().float().square().mean() for p in model.parameters()]).sum()


def _check_finite(values: list[Tensor], stage: Stage, last: Step) -> None:
    """Look at the values of the latest steps, the last of which is `last`."""
    finite = torch.stack(values).isfinite()
    if not finite.all():
        step = last.index + 1 - len(values) + int(finite.logical_not().nonzero()[0]) + 1
        raise RunError(
            f"the loss of stage {stage.name} became NaN or infinite at step {step} "
            f"(epoch {last.epoch + 1}); a lower {stage.option}.lr may help; {_last_good(stage)}"
        )


def _last_good(stage: Stage) -> str:
    saved = stage.folder / NEWEST
    return f"the last good checkpoint is {saved}" if saved.exists() else "no epoch was finished"


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
