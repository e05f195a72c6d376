"""A 1x1 convolution with copies as what it is: larger kernels on the channels that are copied.

Where copies are made behind the activation and share their source's normalisation, the columns that
read one channel add up to one kernel, whatever the shifts (Jeong and Shin, ICML 2019, figure 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.rewiring.copies import Copying, copying_layers
from chanprune.rewiring.shift import hat_kernels, radius_of


class Expanded(nn.Module):
    """The sum of a 1x1 convolution of some channels, and of one with larger kernels of others.

    Args:
        own: The channels that are read where they are.
        copied: The channels whose neighbourhood is read.
        outputs: Number of outputs.
        radius: Of the larger kernels, which reach beyond an image as its edge does.
        stride: Of both.
    """

    own: Tensor
    copied: Tensor

    def __init__(
        self,
        own: Sequence[int],
        copied: Sequence[int],
        outputs: int,
        radius: int,
        stride: tuple[int, ...],
    ):
        super().__init__()
        self.register_buffer("own", torch.tensor(own, dtype=torch.long))
        self.register_buffer("copied", torch.tensor(copied, dtype=torch.long))
        step = (stride[0], stride[1])
        self.near = nn.Conv2d(len(own), outputs, 1, step, bias=False) if own else None
        self.wide = nn.Conv2d(
            len(copied),
            outputs,
            2 * radius + 1,
            step,
            padding=radius,
            padding_mode="replicate",
            bias=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, outputs, H / stride, W / stride)."""
        total: Tensor = self.wide(torch.index_select(x, 1, self.copied))
        if self.near is not None:
            total = self.near(torch.index_select(x, 1, self.own)) + total
        return total


def expand(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Replace, in place, all 1x1 convolutions that have copies; `rebuild` does so without values.

    Returns:
        Name -> own channels, copied ones, radius.
    """
    described = {}
    for name, layer in copying_layers(model).items():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and len(layer.copies):
            module, described[name] = expanded(layer)
            model.set_submodule(name, module)
    return described


@torch.no_grad()
def expanded(conv: Copying) -> tuple[Expanded, dict[str, Any]]:
    """Return what a 1x1 convolution with copies is, exactly, and its description."""
    assert isinstance(conv, nn.Conv2d)
    if conv.bias is not None or conv.kernel_size != (1, 1):
        raise ValueError("only 1x1 convolutions without a bias can be expanded")
    copies, sources = conv.copies, conv.index[conv.copies]
    copied = sources.unique().tolist()
    radius = radius_of(conv.moved_by())
    slots = conv.is_copy.logical_not().nonzero().flatten().tolist()
    own = [slot for slot in slots if slot not in set(copied)]
    description = {"own": own, "copied": copied, "radius": radius}
    module = _built(conv, description).to(conv.weight)
    if module.near is not None:
        module.near.weight.copy_(conv.weight[:, own])
    module.wide.weight.zero_()
    place = {channel: number for number, channel in enumerate(copied)}
    for channel in copied:
        if not conv.is_copy[channel]:
            module.wide.weight[:, place[channel], radius, radius] = conv.weight[:, channel, 0, 0]
    kernels = hat_kernels(conv.moved_by(), radius)
    for slot, source, kernel in zip(copies.tolist(), sources.tolist(), kernels, strict=True):
        module.wide.weight[:, place[source]] += conv.weight[:, slot, :, :] * kernel
    return module.train(conv.training), description


def rebuild(model: nn.Module, described: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace convolutions, in place, by what `expand` described; their weights have no meaning.

    Raises:
        ValueError: There is no such convolution, or it has no such channels.
    """
    for name, own in described.items():
        conv = dict(model.named_modules()).get(name)
        if not isinstance(conv, nn.Conv2d) or conv.kernel_size != (1, 1):
            raise ValueError(f"{name} is no 1x1 convolution")
        refuse_others(name, [*own["own"], *own["copied"]], conv.in_channels)
        model.set_submodule(name, _built(conv, own))


def refuse_others(name: str, channels: Sequence[int], width: int) -> None:
    """Refuse numbers that are repeated or not those of a layer's channels; raises ValueError."""
    if len(set(channels)) < len(channels) or not all(0 <= c < width for c in channels):
        raise ValueError(f"{name} has {width} channels, and is told to read others, or one twice")


def _built(conv: nn.Conv2d, own: Mapping[str, Any]) -> Expanded:
    with conv.weight.device:
        return Expanded(own["own"], own["copied"], conv.out_channels, own["radius"], conv.stride)
