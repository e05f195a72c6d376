"""The one training loop."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from chanprune.channels import Bank, ChannelGraph
from chanprune.channels.operations import BATCH_NORMS
from chanprune.errors import RunError
from chanprune.methods import Method, PruneOptions, Setting, Step
from chanprune.pipeline.cost import Cost
from chanprune.pipeline.files import write_json, write_tensors
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


@dataclass(frozen=True)
class Stage:
    """A stage: its name, where its checkpoints go, which epoch it hands on, what comes after."""

    name: str
    folder: Path
    keep: Literal["last", "best"]
    seed: int
    prune: PruneOptions

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

    After every epoch the state is saved to the stage's folder. With `stage.keep` "best" the model
    ends as it was after the epoch with the best validation accuracy (the later one if equal; the
    mean where `Method.validated` names several networks).

    Returns:
        The epoch (from 1) that the stage hands on, and what the stage cost.

    Raises:
        RunError: The loss is not finite; the last good checkpoint stays.
    """
    num_steps = options.epochs * len(batches)
    schedule = schedule_of(options, num_steps)
    setting = setting_of(options, len(batches), stage.seed, stage.prune)
    facts = method.before_training(model, graph, setting)
    record.start_stage(stage.name, options.epochs, num_steps, facts)
    if method.advice:
        record.say(f"  {method.advice}")
    optimiser = make_optimiser(model, options)
    bank = Bank(model, graph, optimiser)
    forward = cast(nn.Module, torch.compile(model)) if options.compile else model
    best: tuple[float, int, dict[str, Tensor] | None] = (-1.0, options.epochs, None)
    index = 0
    cost, start = Cost(), time.perf_counter()
    bar = tqdm(total=num_steps, desc=stage.name, unit="step", disable=None, leave=False)
    for epoch in range(options.epochs):
        began = time.perf_counter()
        model.train()
        losses: list[Tensor] = []
        hits: list[Tensor] = []
        for images, labels in batches.epoch(epoch):
            step = Step(index, epoch, schedule.at(index), index / num_steps)
            active = method.active_channels(step)
            if active is not None:
                bank.activate(active, forget=method.forgets)
            is_watched = not losses and not options.compile
            with cost.watch(model) if is_watched else nullcontext():
                loss, logits = _update(forward, optimiser, method, step, images, labels, options)
            cost.add_step(len(images), method.macs_per_image(bank.macs))
            losses.append(loss.detach())
            hits.append((logits.detach().argmax(1) == labels).float().mean())
            index += 1
            bar.update()
            if len(losses) % CHECK_EVERY == 0:
                _check_finite(losses[-CHECK_EVERY:], stage, epoch, index)
        _check_finite(losses, stage, epoch, index)
        _check_finite([_norm(model)], stage, epoch, index)
        val = {
            f"val_accuracy{name}": evaluate(network, validation)
            for name, network in method.validated(model).items()
        }
        metrics = {
            "loss": torch.stack(losses).mean().item(),
            "train_accuracy": torch.stack(hits).mean().item(),
            **val,
            "lr": step.lr,
            **method.after_epoch(step),
            "seconds": time.perf_counter() - began,
            "executed_macs": cost.macs,
            "activation_bytes": cost.activation_bytes,
        }
        record.epoch(stage.name, epoch + 1, metrics, model)
        score = fmean(val.values())
        if stage.keep == "best" and score >= best[0]:
            best = (score, epoch + 1, copy.deepcopy(model.state_dict()))
        with bank.whole():
            _save(stage, model, optimiser, method, epoch + 1, index, options)
    bar.close()
    bank.activate(None)
    if best[2] is not None:
        model.load_state_dict(best[2])
    cost.seconds = time.perf_counter() - start
    return best[1], cost


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
    return Setting(schedule_of(options, num_steps).travel(momentum), num_steps, seed, prune)


def _update(
    forward: nn.Module,
    optimiser: torch.optim.Optimizer,
    method: Method,
    step: Step,
    images: Tensor,
    labels: Tensor,
    options: TrainOptions,
) -> tuple[Tensor, Tensor]:
    """Do one step: forward, backward, update, with the method's hooks in between."""
    for group in optimiser.param_groups:
        group["lr"] = step.lr
    method.before_step(step)
    optimiser.zero_grad(set_to_none=True)
    images = images.to(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        loss, logits = method.loss(forward, images, labels, options.label_smoothing)
    loss.backward()
    method.after_backward(step)
    optimiser.step()
    method.after_step(step)
    return loss, logits


def make_optimiser(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """Make the optimiser, with one parameter group each for weights, batch norms, and biases."""
    norms = {id(p) for m in model.modules() if isinstance(m, BATCH_NORMS) for p in m.parameters()}
    weights, norm, biases = [], [], []
    for parameter in model.parameters():
        if id(parameter) in norms:
            norm.append(parameter)
        elif parameter.dim() > 1:
            weights.append(parameter)
        else:
            biases.append(parameter)
    groups = [
        {"params": weights, "weight_decay": options.weight_decay},
        {"params": norm, "weight_decay": options.weight_decay_norm},
        {"params": biases, "weight_decay": options.weight_decay_bias},
    ]
    groups = [group for group in groups if group["params"]]
    if options.optimiser == "adam":
        return torch.optim.Adam(groups, lr=options.lr)
    nesterov = options.nesterov and options.momentum > 0
    return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=nesterov)


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Batches) -> float:
    """Return the share of images that are classified correctly, in [0, 1]."""
    was_training = model.training
    model.eval()
    hits, seen = torch.zeros((), dtype=torch.long, device=_device(model)), 0
    for images, labels in batches.epoch(0):
        logits = model(images.to(memory_format=torch.channels_last))
        hits += (logits.argmax(1) == labels).sum()
        seen += len(labels)
    model.train(was_training)
    return hits.item() / max(1, seen)


def _norm(model: nn.Module) -> Tensor:
    """Return a number that is not finite if a parameter is not."""
    return torch.stack([p.detach().float().square().mean() for p in model.parameters()]).sum()


def _check_finite(losses: list[Tensor], stage: Stage, epoch: int, index: int) -> None:
    """Look at the latest losses; `index` steps are done, the last of them in `epoch`."""
    finite = torch.stack(losses).isfinite()
    if not finite.all():
        step = index - len(losses) + int(finite.logical_not().nonzero()[0]) + 1
        raise RunError(
            f"the loss of stage {stage.name} became NaN or infinite at step {step} "
            f"(epoch {epoch + 1}); a lower {stage.option}.lr may help; {_last_good(stage)}"
        )


def _last_good(stage: Stage) -> str:
    saved = stage.folder / "state.safetensors"
    return f"the last good checkpoint is {saved}" if saved.exists() else "no epoch was finished"


def _save(
    stage: Stage,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    method: Method,
    epoch: int,
    index: int,
    options: TrainOptions,
) -> None:
    """Write everything that the stage needs to go on, tensors only."""
    names = {id(p): name for name, p in model.named_parameters()}
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for parameter, state in optimiser.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{key}.{names[id(parameter)]}"] = value
    tensors |= {f"method.{name}": tensor for name, tensor in method.state_dict().items()}
    write_tensors(stage.folder / "state.safetensors", tensors)
    facts = {"stage": stage.name, "epoch": epoch, "step": index, "options": asdict(options)}
    write_json(stage.folder / "state.json", facts)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
