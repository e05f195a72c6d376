"""Which layers of a network take most of its time."""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

ROUNDS = 5


def slowest(model: nn.Module, images: Tensor) -> list[str]:
    """List the layers, the slowest first, each with its milliseconds, that take half of the time.

    Args:
        model: The network, in eval mode; it keeps hooks.
        images: (N, C, H, W).
    """
    took: dict[str, float] = defaultdict(float)
    began: dict[str, float] = {}

    def enter(name: str, *_: Any) -> None:
        began[name] = time.perf_counter()

    def leave(name: str, *_: Any) -> None:
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        took[name] += time.perf_counter() - began[name]

    for name, module in model.named_modules():
        if name and not next(module.children(), None):
            module.register_forward_pre_hook(partial(enter, name))
            module.register_forward_hook(partial(leave, name))
    with torch.inference_mode():
        model(images)
        took.clear()
        for _ in range(ROUNDS):
            model(images)
    found, so_far, whole = [], 0.0, sum(took.values())
    for name, seconds in sorted(took.items(), key=lambda item: -item[1]):
        if so_far >= whole / 2:
            break
        so_far += seconds
        found.append(f"{name} ({1000 * seconds / ROUNDS:.2g} ms)")
    return found
