"""Small networks, one for each shape that the channel core must follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

from chanprune.channels import ChannelGraph, Plan


def conv_norm(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Chain(nn.Module):
    """Convolutions, pooling, a flatten over several positions, linear layers with BatchNorm1d."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_norm(3, 8)
        self.pool = nn.MaxPool2d(2)
        self.second = conv_norm(8, 10)
        self.hidden = nn.Linear(10 * 4 * 4, 12)
        self.norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.pool(self.first(x)))
        x = torch.nn.functional.avg_pool2d(x, 2).flatten(1)
        return self.head(torch.relu(self.norm(self.hidden(x))))


class Biased(nn.Module):
    """Convolutions with biases and no batch norm, and a view instead of a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.second = nn.Conv2d(6, 7, 3, stride=2, padding=1)
        self.head = nn.Linear(7 * 7 * 7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.view(x.size(0), -1))


class Residual(nn.Module):
    """Post-activation residual blocks: identity and projection shortcuts couple the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.inner = conv_norm(8, 6)
        self.outer = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.wide = conv_norm(8, 12)
        self.last = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12))
        self.shortcut = nn.Sequential(nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.outer(self.inner(x)))
        x = torch.relu(self.last(self.wide(x)) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


class PreActivation(nn.Module):
    """Pre-activation blocks: the batch norms gather from a residual stream that stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.inner = nn.ModuleList([conv_norm(8, 6), conv_norm(8, 6)])
        self.outer = nn.ModuleList([nn.Conv2d(6, 8, 1, bias=False) for _ in range(2)])
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, inner, outer in zip(self.norms, self.inner, self.outer, strict=True):
            x = x + outer(inner(torch.relu(norm(x))))
        return self.head(torch.relu(self.norm(x)).mean((2, 3)))


class Dense(nn.Module):
    """Concatenations read by plain convolutions and by batch norms; one source is read by both."""

    def __init__(self) -> None:
        super().__init__()
        self.left = conv_norm(3, 6)
        self.right = conv_norm(3, 4, 1)
        self.joined = conv_norm(10, 8)
        self.norm = nn.BatchNorm2d(12)
        self.grow = nn.Conv2d(8, 4, 3, padding=1, bias=False)
        self.mix = nn.Conv2d(12, 9, 1)
        self.head = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.joined(torch.cat([self.left(x), self.right(x)], 1))
        x = torch.cat([x, self.grow(x)], dim=1)
        return self.head(self.mix(torch.relu(self.norm(x))).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution, a depthwise one, and a depthwise one with two filters per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_norm(3, 12)
        self.grouped = conv_norm(12, 18, groups=3)
        self.depthwise = conv_norm(18, 18, groups=18)
        self.doubled = conv_norm(18, 36, groups=18)
        self.mix = conv_norm(36, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.doubled(self.depthwise(self.grouped(self.first(x)))))
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    """One output read by several consumers, and one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_norm(3, 8)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.left = conv_norm(8, 6, 1)
        self.right = conv_norm(8, 6)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        x = torch.cat((self.left(x).mean((2, 3)), self.right(x).mean((2, 3))), 1)
        return self.head(x)


class Gated(nn.Module):
    """Squeeze and excitation: a sigmoid scales the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_norm(3, 8)
        self.gate = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Sigmoid())
        self.inner = conv_norm(8, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x * self.gate(x.mean((2, 3), keepdim=True))
        return self.head(self.inner(x).mean((2, 3)))


class Padded(nn.Module):
    """A shortcut that takes every second pixel and appends channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 6)
        self.inner = conv_norm(6, 8)
        self.outer = nn.Sequential(nn.Conv2d(8, 10, 3, 2, padding=1), nn.BatchNorm2d(10))
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shortcut = torch.nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 3))
        return self.head(torch.relu(shortcut + self.outer(self.inner(x))).mean((2, 3)))


SMALL: dict[str, Callable[[], nn.Module]] = {
    "chain": Chain,
    "biased": Biased,
    "residual": Residual,
    "preactivation": PreActivation,
    "dense": Dense,
    "grouped": Grouped,
    "shared": Shared,
    "gated": Gated,
    "padded": Padded,
}
SMALL_SHAPE = (3, 16, 16)
TORCHVISION: dict[str, Callable[[], nn.Module]] = {
    "vgg16_bn": lambda: tv.vgg16_bn(num_classes=10, dropout=0.0),
    "resnet18": lambda: tv.resnet18(num_classes=10),
    "densenet121": lambda: tv.densenet121(num_classes=10),
}
TORCHVISION_SHAPE = (3, 64, 64)


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Give every parameter and statistic a random value, so that nothing cancels by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            is_norm = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
            if is_norm and module.track_running_stats:
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.normal_(0, 0.5, generator=generator)
    return model


def random_plan(graph: ChannelGraph, seed: int) -> Plan:
    """Keep a random, legal part of every channel group that may be pruned."""
    random = np.random.default_rng(seed)
    kept = {}
    for group in graph.prunable(coupled="together"):
        if random.random() < 0.2:
            continue
        width = group.size // group.blocks
        count = random.integers(1, width + 1)
        chosen = [
            block * width + random.choice(width, count, replace=False)
            for block in range(group.blocks)
        ]
        kept[group.name] = np.sort(np.concatenate(chosen)).tolist()
    return Plan(kept)


def but_slow(cases: Iterable[Any], *slow: Any) -> list[Any]:
    """Return the cases of a test, each a value or a tuple, some of them marked as slow."""
    parameters = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        parameters.append(pytest.param(*values, marks=pytest.mark.slow if case in slow else ()))
    return parameters
