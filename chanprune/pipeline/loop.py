"""The one training loop."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from chanprune import ranks
from chanprune.channels import Bank, ChannelGraph, rowwise_batch_norms
from chanprune.channels.operations import BATCH_NORMS
from chanprune.errors import RunError
from chanprune.methods import Method, PruneOptions, Setting, Step
from chanprune.parallel import (
    average_gradients,
    check_equal,
    hash_of,
    share_files,
    summed,
    whole_batch_norms,
)
from chanprune.pipeline.checkpoint import BEFORE, NEWEST, Checkpoints, Progress
from chanprune.pipeline.cost import Cost
from chanprune.pipeline.interruption import Interruption
from chanprune.pipeline.record import Record
from chanprune.pipeline.schedule import Schedule

CHECK_EVERY = 50


class Batches(Protocol):
    """Batches of normalised images and labels, on the device."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images (N, C, H, W), labels (N,)); order and augmentation depend on `index`."""


@dataclass(frozen=True)
class TrainOptions:
    """How a stage trains: SGD with Nesterov momentum, or Adam, on a schedule."""

    epochs: int
    batch_size: int
    lr: float
    optimiser: Literal["sgd", "adam"]
    momentum: float
    nesterov: bool
    weight_decay: float
    weight_decay_norm: float
    weight_decay_bias: float
    schedule: Literal["step", "cosine"]
    milestones: Sequence[float]
    lr_factor: float
    warmup: float
    label_smoothing: float
    precision: Literal["fp32", "bf16"]
    compile: bool
    save_every_minutes: float


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Attributes:
        name: "train", "finetune", or one of these with the number of a pass.
        folder: Where its checkpoints go.
        keep: Which epoch it hands on.
        seed: Seed of the run.
        prune: How channels will be selected.
        interruption: Tells when to stop.
        watch: Called after each epoch with its number (from 1) and metrics; may end the run.
    """

    name: str
    folder: Path
    keep: Literal["last", "best"]
    seed: int
    prune: PruneOptions
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

    The state is saved after every epoch, and within an epoch now and then and when a signal comes;
    a stage that was begun goes on where it was saved, to the same end. With `stage.keep` "best" the
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
    checkpoints = Checkpoints(stage.folder, model, optimiser, bank, method)
    share_files(stage.folder, (NEWEST, BEFORE))
    progress, warnings = checkpoints.load()
    record.start_stage(stage.name, options.epochs, setting.num_steps, facts, progress.epoch)
    for line in filter(None, (*warnings, method.advice, _where(progress, options))):
        record.say(f"  {line}")
    training = _Training(bank, optimiser, method, options, stage, checkpoints, progress)
    for epoch in range(progress.epoch, options.epochs):
        with training.norms():
            training.epoch(epoch, batches)
        metrics = training.measure(epoch, validation)
        record.epoch(stage.name, epoch + 1, metrics, model)
        checkpoints.save(progress)
        stage.interruption.stop_if_any_requested()
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
        bank: Bank,
        optimiser: torch.optim.Optimizer,
        method: Method,
        options: TrainOptions,
        stage: Stage,
        checkpoints: Checkpoints,
        progress: Progress,
    ):
        self.model = bank.model
        self.bank = bank
        self.optimiser = optimiser
        self.method = method
        self.options = options
        self.stage = stage
        self.checkpoints = checkpoints
        self.progress = progress
        self.others_stop = False
        self.forward = cast(nn.Module, torch.compile(self.model)) if options.compile else self.model

    def epoch(self, epoch: int, batches: Batches) -> None:
        """Go through the batches that are left of an epoch."""
        progress, per_epoch = self.progress, len(batches)
        schedule = schedule_of(self.options, self.options.epochs * per_epoch)
        first = epoch * per_epoch
        self.began = saved = time.perf_counter()
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
            self._step(images, labels)
            progress.batch += 1
            bar.update()
            if progress.batch % CHECK_EVERY == 0:
                _check_finite(progress.losses[-CHECK_EVERY:], self.stage, self.last)
            is_late = time.perf_counter() - saved > 60 * self.options.save_every_minutes
            is_asked = self._is_asked_to_stop()
            if (is_late or is_asked) and progress.batch < per_epoch:
                self._check()
                self._take_time()
                self.checkpoints.save(progress)
                if is_asked:
                    self.stage.interruption.stop_if_any_requested()
                saved = time.perf_counter()
        bar.close()
        self._check()

    def norms(self) -> AbstractContextManager[None]:
        """Let batch norms see the batches of all processes, or be fast, while this is open."""
        if ranks.count() > 1:
            return whole_batch_norms(self.model)
        return nullcontext() if self.options.compile else rowwise_batch_norms(self.model)

    def _step(self, images: Tensor, labels: Tensor) -> None:
        """Do one step on the channels that are active."""
        progress, method = self.progress, self.method
        for rewiring in method.rewirings(self.last):
            self.bank.rewire(rewiring)
        active = method.active_channels(self.last)
        if active is not None:
            self.bank.activate(active, forget=method.forgets)
        is_watched = not progress.losses and not self.options.compile
        with progress.cost.watch(self.model) if is_watched else nullcontext():
            loss, hits = self._update(images, labels)
        num_images = len(images) * ranks.count()
        progress.cost.add_step(num_images, method.macs_per_image(self.bank.macs))
        progress.losses.append(loss)
        progress.hits.append(hits)

    def _update(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Forward, backward, update, with the method's hooks in between."""
        method, step, options = self.method, self.last, self.options
        for group in self.optimiser.param_groups:
            group["lr"] = step.lr
        method.before_step(step)
        self.optimiser.zero_grad(set_to_none=True)
        images = images.to(memory_format=torch.channels_last)
        is_bf16 = options.precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=is_bf16):
            loss, logits = method.loss(self.forward, images, labels, options.label_smoothing)
        loss.backward()
        hits = (logits.detach().argmax(1) == labels).float().mean()
        loss, hits = self._tell_each_other(loss.detach(), hits)
        method.after_backward(step)
        self.optimiser.step()
        method.after_step(step)
        return loss, hits

    def _tell_each_other(self, loss: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
        """Average gradients, loss and hits over all processes, and compare what they decided."""
        if ranks.count() == 1:
            return loss, hits
        requested = self.stage.interruption.requested or 0
        decision = hash_of(self.bank.plan)
        values = torch.stack([loss.float(), hits, torch.tensor(requested), torch.tensor(decision)])
        loss, hits, asked, decisions = average_gradients(self.model, values)
        check_equal(decision, decisions.item())
        self.others_stop = asked.item() != 0
        return loss, hits

    def _is_asked_to_stop(self) -> bool:
        """Tell whether a signal came; several processes go by what they told each other."""
        if ranks.count() > 1:
            return self.others_stop
        return self.stage.interruption.requested is not None

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


def schedule_of(options: TrainOptions, num_steps: int) -> Schedule:
    """Return the learning rates of a stage."""
    return Schedule(
        options.schedule,
        options.lr,
        num_steps,
        options.milestones,
        options.lr_factor,
        options.warmup,
    )


def setting_of(
    options: TrainOptions, steps_per_epoch: int, seed: int, prune: PruneOptions
) -> Setting:
    """Return what a method may know of a stage before its first step."""
    num_steps = options.epochs * steps_per_epoch
    momentum = options.momentum if options.optimiser == "sgd" else 0.0
    travel = schedule_of(options, num_steps).travel(momentum)
    return Setting(travel, num_steps, seed, prune, options.weight_decay_norm)


def make_optimiser(
    model: nn.Module,
    options: TrainOptions,
    own: Mapping[float, Sequence[nn.Parameter]] | None = None,
) -> torch.optim.Optimizer:
    """Make the optimiser, with one parameter group each for weights, batch norms, and biases.

    Args:
        model: The network.
        options: How it trains.
        own: Weight decay -> parameters that have it whatever they are.
    """
    own = own or {}
    listed = {id(parameter) for parameters in own.values() for parameter in parameters}
    norms = {id(p) for m in model.modules() if isinstance(m, BATCH_NORMS) for p in m.parameters()}
    by_decay: dict[str, list[nn.Parameter]] = {"": [], "_norm": [], "_bias": []}
    for parameter in model.parameters():
        if id(parameter) in listed:
            continue
        kind = "_norm" if id(parameter) in norms else "" if parameter.dim() > 1 else "_bias"
        by_decay[kind].append(parameter)
    decays = [(getattr(options, f"weight_decay{kind}"), by_decay[kind]) for kind in by_decay]
    decays += [(decay, list(parameters)) for decay, parameters in own.items()]
    groups = [{"params": params, "weight_decay": decay} for decay, params in decays if params]
    if options.optimiser == "adam":
        return torch.optim.Adam(groups, lr=options.lr)
    nesterov = options.nesterov and options.momentum > 0
    return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=nesterov)


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Batches) -> float:
    """Return the share of images that are classified correctly, in [0, 1]."""
    was_training = model.training
    model.eval()
    counts = torch.zeros(2, dtype=torch.long, device=_device(model))
    for images, labels in batches.epoch(0):
        logits = model(images.to(memory_format=torch.channels_last))
        counts[0] += (logits.argmax(1) == labels).sum()
        counts[1] += len(labels)
    model.train(was_training)
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
