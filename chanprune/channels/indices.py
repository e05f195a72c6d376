"""Layers that pick channels of their input by stored numbers: are these channels of it?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.channels.gathered import Gathered


def index_widths(model: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Return the name of each layer that stores numbers of channels -> channels of its input.

    Args:
        model: A network on the meta device.
        input_shape: (C, H, W).
    """
    widths: dict[str, int] = {}

    def see(name: str) -> Any:
        return lambda module, inputs: widths.__setitem__(name, inputs[0].shape[1])

    hooks = [
        module.register_forward_pre_hook(see(name))
        for name, module in model.named_modules()
        if any(True for _ in _indices(module))
    ]
    if hooks:
        with torch.no_grad(), torch.device("meta"):
            model.eval()(torch.empty(1, *input_shape))
    for hook in hooks:
        hook.remove()
    return widths


def refuse_odd_indices(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Refuse a network whose layers would pick what is not there.

    Args:
        model: The network, with its values.
        widths: See `index_widths`.

    Raises:
        ValueError: A number is not one of a channel, or a layer lacks something (`Gathered`).
    """
    for layer, width in widths.items():
        for name, index in _indices(model.get_submodule(layer)):
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < width:
                raise ValueError(f"{layer}.{name} names channels that its input has not")
    for name, module in model.named_modules():
        fault = module.fault() if isinstance(module, Gathered) else None
        if fault:
            raise ValueError(f"{name} {fault}")


def _indices(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the lists of numbers that a module itself stores."""
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.dtype == torch.long and buffer.dim() == 1:
            yield name, buffer
