"""What one forward pass does beside multiply-accumulates, and how much memory it holds at once."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
ACTIVATIONS = {aten.relu, aten.relu_, aten.hardtanh, aten.hardtanh_, aten.silu, aten.silu_}
NORMS = {aten._native_batch_norm_legit_no_training, aten.native_batch_norm, aten.batch_norm}
NORMS |= {aten._batch_norm_no_update, aten.cudnn_batch_norm}
WINDOWS = {aten.avg_pool2d, aten.max_pool2d_with_indices, aten.max_pool2d}
AVERAGES = {aten.mean, aten._adaptive_avg_pool2d}


class Tally(TorchDispatchMode):
    """Count, in its context, what passes through each kind of operation, also on the meta device.

    Attributes:
        activated: Elements that go into ReLU and its like.
        normalised: Elements that go into batch norms.
        averaged: Elements that the windows of average pools read, with repetition.
        maximised: The same of max pools.
        macs: Name of a module -> multiply-accumulates of the convolutions and matrix products that
            are done while it is the innermost one (see `enter`), by PyTorch's own formulas.
        bias_adds: Elements to which "conv" and "linear" layers add a bias.
        peak_bytes: Largest sum of tensors that were alive at a time, the inputs included, the
            parameters not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.activated = 0
        self.normalised = 0
        self.averaged = 0
        self.maximised = 0
        self.macs: dict[str, int] = defaultdict(int)
        self.inside = [""]
        self.bias_adds = {"conv": 0, "linear": 0}
        self.peak_bytes = 0
        self._alive = 0
        self._seen: set[int] = set()

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's memory for as long as it lives."""
        storage = tensor.untyped_storage()
        if id(storage) in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(id(storage))
        self._alive += size
        self.peak_bytes = max(self.peak_bytes, self._alive)
        weakref.finalize(storage, self._release, id(storage), size)

    def enter(self, name: str, *_: Any) -> None:
        """Note that a module is called from now on."""
        self.inside.append(name)

    def leave(self, *_: Any) -> None:
        """Note that the call of the module that was entered last has ended."""
        self.inside.pop()

    def _release(self, identity: int, size: int) -> None:
        self._seen.discard(identity)
        self._alive -= size

    def __torch_dispatch__(  # noqa: D105
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.hold(tensor)
        operation = func.overloadpacket
        if operation in flop_registry:
            flops = flop_registry[operation](*args, **(kwargs or {}), out_val=result)
            self.macs[self.inside[-1]] += flops // 2
        if operation in ACTIVATIONS:
            self.activated += args[0].numel()
        elif operation in NORMS:
            self.normalised += args[0].numel()
        elif operation in AVERAGES:
            self.averaged += args[0].numel()
        elif operation in WINDOWS:
            first = result[0] if isinstance(result, tuple) else result
            read = first.numel() * math.prod(_pair(args[1]))
            if operation is aten.avg_pool2d:
                self.averaged += read
            else:
                self.maximised += read
        return result


def _pair(kernel: int | list[int]) -> list[int]:
    sizes = [kernel] if isinstance(kernel, int) else list(kernel)
    return sizes * 2 if len(sizes) == 1 else sizes
