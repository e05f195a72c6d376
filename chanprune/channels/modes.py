"""What is done with a network for a while, or with a copy, and leaves it as it is."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chanprune.channels.refusals import UnsupportedNetwork

EMPTY = (OrderedDict, dict, set)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, and every module back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def copied(
    model: nn.Module,
    shares: bool = False,
    dtype: torch.dtype | None = None,
    device: str | None = None,
) -> nn.Module:
    """Copy a network that may hold tensors of its last forward pass, which cannot be copied.

    Args:
        model: The network.
        shares: The copy has the network's own parameters and buffers.
        dtype: Of all real numbers of the copy; None: their own.
        device: Of all tensors of the copy; None: their own.

    Raises:
        UnsupportedNetwork: It holds something that is no tensor and cannot be copied either.
    """
    held: dict[int, Any] = {}

    def copy_of(tensor: Tensor) -> Tensor:
        wanted = dtype if tensor.is_floating_point() else None
        return tensor.detach().to(device=device, dtype=wanted, copy=True)

    registered = [*model.parameters(), *model.buffers()]
    for tensor in registered:
        if shares:
            held[id(tensor)] = tensor
        elif dtype is not None or device is not None:
            is_parameter = isinstance(tensor, nn.Parameter)
            other = copy_of(tensor)
            held[id(tensor)] = nn.Parameter(other, tensor.requires_grad) if is_parameter else other
    known = {id(tensor) for tensor in registered}
    for module in model.modules():
        for value in vars(module).values():
            if type(value) in EMPTY and not value:  # deepcopy takes long over the hooks
                held[id(value)] = type(value)()
    try:
        with _Copying(known, copy_of):
            return copy.deepcopy(model, held)
    except TypeError as error:
        raise UnsupportedNetwork(
            f"{_uncopied(model)} cannot be copied ({error}); take it out"
        ) from error


def _uncopied(model: nn.Module) -> str:
    """Name what cannot be copied."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value)
            except TypeError:
                return f"{name}.{key}".lstrip(".")
            except Exception:  # tensors of the last forward pass
                continue
    return type(model).__name__


class _Copying(TorchFunctionMode):
    """While it is open, tensors that are no parameters and no buffers are copied by a function."""

    def __init__(self, known: set[int], copy_of: Callable[[Tensor], Tensor]):
        super().__init__()
        self.known = known
        self.copy_of = copy_of

    def __torch_function__(  # noqa: D105
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not Tensor.__deepcopy__ or id(args[0]) in self.known:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        memo[id(tensor)] = self.copy_of(tensor)
        return memo[id(tensor)]


def random_states() -> tuple[Any, ...]:
    """Return where the random numbers of Python, NumPy and PyTorch on the CPU stand."""
    numpy: Any = np.random.get_state()  # noqa: NPY002 - the user's, not ours
    numbers = (numpy[0], bytes(numpy[1]), *numpy[2:])
    return random.getstate(), numbers, bytes(torch.get_rng_state().numpy())


@contextmanager
def keeping_random_numbers() -> Iterator[None]:
    """Let whatever is drawn in between be drawn again afterwards."""
    numbers, (name, keys, *rest), _ = random_states()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(numbers)
            np.random.set_state((name, np.frombuffer(keys, np.uint32), *rest))  # noqa: NPY002
