"""Time training with selective convolutions against the plain network's.

    scripts/bench_selectconv.py [--json]

In each network a fifth of the inputs of every 1x1 convolution (of every convolution, where there is
none) read copies (accuracy mode), or some inputs of every selective convolution are released
(compression mode). Images have 32 x 32 pixels; ImageNet's ResNet-50 gets 224 x 224, in an eighth of
the batch. Forward and backward pass of all forms take turns, so that a busy machine slows them
alike; the medians' ratios are what counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn

from chanprune.channels import (
    Bank,
    Plan,
    compact,
    count,
    rowwise_batch_norms,
    trace,
)
from chanprune.models import build
from chanprune.rewiring import Rewiring, allow_copies, selective_units
from chanprune.rewiring.allocation import copies_for, executed

IMAGE_SIZE = 32
REALLOCATED = 0.2
CALLS = 4
RELEASED = (0.2, 0.5, 0.8)
WARMUP = 2
NETWORKS: dict[str, dict[str, Any]] = {
    "densenet40": {"stem": 24, "bottleneck": True, "transition": "pool"},
    "preresnet164": {"shortcut": "zero_pad", "downsample": "pool"},
    "vgg16": {},
    "preresnet50": {"image_size": 224},
}


@dataclass(frozen=True)
class Form:
    """A network in one form, and what it costs by count.

    Attributes:
        model: It.
        macs: Multiply-accumulates for one image.
        holder: What must stay alive with it.
    """

    model: nn.Module
    macs: int
    holder: object = None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, dict[str, Any]] = {
        "step_time_ratio": {},
        "released_step_time_ratio": {},
        "executed_mac_ratio": {},
        "released_mac_ratio": {},
        "physical_time_ratio": {},
    }
    for name in options.networks:
        measure(name, options, result)
    if options.json:
        print(json.dumps(result))
        return
    rows = []
    for name in options.networks:
        rows.append([name, f"{REALLOCATED:.0%} copies", "", result["step_time_ratio"][name]])
        for share in RELEASED:
            step_time, executed_macs, macs, physical_time = (
                result[key][name][f"{share}"] for key in list(result)[1:]
            )
            rows.append(
                [name, f"{share:.0%} released", executed_macs, step_time, macs, physical_time]
            )
    head = ["network", "inputs", "MACs", "forward and backward", "physical MACs", "forward"]
    print(tabulate(rows, head, floatfmt=".3f"))


def measure(name: str, options: argparse.Namespace, result: dict[str, dict[str, Any]]) -> None:
    """Time all forms of one network."""
    torch.manual_seed(0)
    shape = shape_of(name)
    batch = options.batch if shape[1] == IMAGE_SIZE else max(1, options.batch // 8)
    images = torch.randn(batch, *shape, device=options.device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,), device=options.device)
    forms = {"plain": network(name, options.device), "copies": with_copies(name, options.device)}
    physical = {"plain": forms["plain"]}
    for share in RELEASED:
        forms[f"{share}"], physical[f"{share}"] = without(name, share, options.device)
    trained = in_turns(
        {key: partial(step, form.model, images, labels) for key, form in forms.items()}, options
    )
    run = in_turns(
        {key: partial(infer, form.model, images) for key, form in physical.items()}, options
    )
    plain = forms["plain"].macs
    result["step_time_ratio"][name] = trained["copies"] / trained["plain"]
    released = [f"{share}" for share in RELEASED]
    result["released_step_time_ratio"][name] = {
        key: trained[key] / trained["plain"] for key in released
    }
    result["executed_mac_ratio"][name] = {key: forms[key].macs / plain for key in released}
    result["released_mac_ratio"][name] = {key: physical[key].macs / plain for key in released}
    result["physical_time_ratio"][name] = {key: run[key] / run["plain"] for key in released}


def shape_of(name: str) -> tuple[int, int, int]:
    """Return the shape of a network's images."""
    size = NETWORKS[name].get("image_size", IMAGE_SIZE)
    return 3, size, size


def network(name: str, device: str) -> Form:
    """Build the plain network."""
    torch.manual_seed(0)
    model = build(
        name, num_classes=10, in_channels=3, **{"image_size": IMAGE_SIZE, **NETWORKS[name]}
    )
    model.to(device, memory_format=torch.channels_last)
    return Form(model, count(model, shape_of(name)).macs)


def with_copies(name: str, device: str) -> Form:
    """Let a fifth of the inputs of 1x1 convolutions read copies, given away in four calls."""
    model = network(name, device).model
    graph = trace(model, shape_of(name))
    bank = Bank(model, graph, torch.optim.SGD(model.parameters(), lr=0.1))
    draws = torch.Generator().manual_seed(0)
    units = selective_units(model, graph)[0]
    for unit in [unit for unit in units if unit.is_pointwise] or units:
        norm = model.get_submodule(unit.norm)
        assert isinstance(norm, nn.BatchNorm2d)
        width = norm.num_features
        copying = allow_copies(norm)
        free = torch.randperm(width, generator=draws)[: round(REALLOCATED * width)]
        for part in free.tensor_split(CALLS):
            damage = torch.rand(width, 8, generator=draws, dtype=torch.float64)
            index, is_copy = copying.index.cpu(), copying.is_copy.cpu()
            slots = part.tolist()
            copies = copies_for(
                damage, slots, index, is_copy, top=3, max_copies=None, generator=draws
            )
            Rewiring(unit.conv, unit.norm, slots, copies).apply(bank)
    return Form(model, count(model, shape_of(name)).macs)


def without(name: str, share: float, device: str) -> tuple[Form, Form]:
    """Release a share of the inputs of each selective convolution, in training and physically."""
    model = network(name, device).model
    graph = trace(model, shape_of(name))
    draws = torch.Generator().manual_seed(0)
    bank = Bank(model, graph, torch.optim.SGD(model.parameters(), lr=0.1))
    kept = {}
    for unit in selective_units(model, graph)[0]:
        size = graph.groups[unit.group].size
        order = torch.randperm(size, generator=draws).tolist()
        number = max(1, round((1 - share) * size))
        kept[unit.group] = sorted(order[:number])
        Rewiring(unit.conv, unit.norm, order[number:]).apply(bank)
    small = compact(model, graph, Plan(kept), check=False).model
    small.to(memory_format=torch.channels_last)
    bank.activate(graph.cut(executed(kept, graph)))
    return Form(model, bank.macs, bank), Form(small, count(small, shape_of(name)).macs)


def step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Do a forward and a backward pass, as training does."""
    model.train()
    model.zero_grad(set_to_none=True)
    with rowwise_batch_norms(model):
        F.cross_entropy(model(images), labels).backward()


@torch.inference_mode()
def infer(model: nn.Module, images: torch.Tensor) -> None:
    """Do a forward pass in eval mode."""
    model.eval()
    model(images)


def in_turns(work: dict[str, Callable[[], None]], options: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds of each piece of work."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(WARMUP + options.rounds):
        for name, do in work.items():
            do()
            took = timed(do, torch.device(options.device))
            if number >= WARMUP:
                seconds[name].append(took)
    return {name: statistics.median(times) for name, times in seconds.items()}


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Return the seconds that `work` takes, on its device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
