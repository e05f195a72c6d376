"""How a stage trains: its options, what they mean over the whole schedule, and its optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from chanprune.channels.operations import BATCH_NORMS
from chanprune.methods import PruneOptions, Setting
from chanprune.pipeline.schedule import Schedule


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

    Momentum is there from the start, at zero, also of what has no gradient yet: PyTorch's fused SGD
    takes either none of a parameter group or all.

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
    device = next(model.parameters()).device
    fused = device.type == "cuda"
    lr = torch.tensor(options.lr, device=device) if fused else options.lr
    if options.optimiser == "adam":
        return torch.optim.Adam(groups, lr=lr, fused=fused, capturable=fused)
    nesterov = options.nesterov and options.momentum > 0
    momentum = options.momentum
    sgd = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
    for parameter in model.parameters() if momentum else ():
        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups; on a GPU in its memory, for `Replay`."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
