"""Copies: channels of a layer's input that are shifted copies of others (Jeong and Shin, 2019).

A convolution has as many slots as it has columns. A slot reads its own channel, or a copy of
another one that a learned shift moves. So a column whose channel was of no use serves an important
channel, seen elsewhere. Copies are made in front of the batch norm, whose scale, shift and
statistics then belong to the slot; or behind the activation, where a copy shares its source's, so
that a 1x1 convolution with copies is a larger kernel (`expanded`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from chanprune.channels.gathered import Gathered, pick, read, replace, select, spread
from chanprune.rewiring.copied_norm import normalise_with_copies
from chanprune.rewiring.shift import TAPS_PER_SHIFT, add_corners, gradients, move


@dataclass(frozen=True)
class Copies:
    """What slots of one layer read from now on.

    Attributes:
        slots: (R,) which slots.
        like: (R,) the slots whose scale, shift and statistics they take, if they have their own.
        sources: (R,) the channels of the layer's input that they read.
        shifts: (R, 2) by how many pixels they move them, x and y.
    """

    slots: Sequence[int]
    like: Sequence[int]
    sources: Sequence[int]
    shifts: Tensor


class Copying(Gathered):
    """Stands before a layer among the base classes: some of its slots read shifted copies.

    Attributes:
        index: (C,) the channel that each slot reads.
        is_copy: (C,) whether it reads it shifted.
        copies: (R,) the slots that do.
        shift: (C, 2) pixels, x and y; or, once it is `compacted`, (R, 2).
    """

    uncut: ClassVar[tuple[str, ...]] = ("index", "is_copy", "shift")
    stays_whole: ClassVar[str | None] = "has copies of channels"

    is_copy: Tensor
    copies: Tensor
    shift: nn.Parameter

    def gather_channels(self, index: Tensor) -> None:
        """Read the channels `index` (C,) of the stream."""
        self.register_buffer("index", index)

    def read_all(self) -> None:
        """Leave it to the slots what they read."""

    def gathered(self, images: Tensor) -> Tensor:
        """Return what the slots read of (N, C_stream, H, W): (N, C, H, W)."""
        index, copies = self.index.to(images.device), self.copies.to(images.device)
        own = None if len(index) == images.shape[1] else index
        if len(copies):
            route = self.moved_by(), own, index[copies], copies
            slots: Tensor = _ReadSlots.apply(images, *route)
            return slots
        return images if own is None else pick(images, own)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Map what the slots read of (N, C_stream, H, W) as the layer itself does."""
        if self.normalises(input):
            return normalise_with_copies(self, input)
        output: Tensor = super(Gathered, self).forward(self.gathered(input))
        return output

    def normalises(self, images: Tensor) -> bool:
        """Tell whether it is a batch norm that has copies among the channels that it reads."""
        is_norm = isinstance(self, nn.BatchNorm2d) and not images.is_meta
        return is_norm and len(self.copies) > 0 and len(self.index) == images.shape[1]

    @torch.no_grad()
    def copy(self, copies: Copies) -> None:
        """Let slots read copies."""
        device = self.index.device
        slots, like, sources = (
            torch.tensor(x, dtype=torch.long, device=device)
            for x in (copies.slots, copies.like, copies.sources)
        )
        if isinstance(self, nn.BatchNorm2d):
            for name in ("weight", "bias", "running_mean", "running_var"):
                tensor = getattr(self, name)
                tensor[slots] = tensor[like]
        self.shift[slots] = copies.shifts.to(self.shift)
        self.read_copies(slots, sources)

    def read_copies(self, slots: Tensor, sources: Tensor) -> None:
        """Let `slots` (R,) read the channels `sources` (R,), shifted."""
        self.index[slots] = sources
        self.is_copy[slots] = True
        self.find_copies()

    def compacted(self, width: int) -> None:
        """Keep the shifts of copies alone; without any, become what it was before.

        Args:
            width: Number of channels of the stream.
        """
        if len(self.copies) == 0:
            index = self.index
            self.forget_copies()
            if not torch.equal(index.cpu(), torch.arange(width)):
                read(self, index)
        elif len(self.shift) == len(self.index):
            self.shift = nn.Parameter(self.moved_by().detach(), self.shift.requires_grad)

    def forget_copies(self) -> None:
        """Become what it was before it could have copies, and read what it is given."""
        for name in ("copies", *self.uncut):
            delattr(self, name)
        self.__class__ = next(k for k, own in _TYPES.items() if own is type(self))  # type: ignore[assignment]

    def further_params(self) -> int:
        """Return the number of shifts of copies, x and y."""
        return self.shift.shape[1] * len(self.copies)

    def further_macs(self, positions: int) -> int:
        """Return the multiply-accumulates that move the copies in one image of so many pixels."""
        return TAPS_PER_SHIFT * positions * len(self.copies)

    def fault(self) -> str | None:
        """Say whether copies and their shifts differ in number."""
        if len(self.shift) in {len(self.copies), len(self.index)}:
            return None
        return "has not one shift for each of its copies"

    def moved_by(self) -> Tensor:
        """Return the shifts (R, 2) of the copies."""
        return self.shift if len(self.shift) == len(self.copies) else self.shift[self.copies]

    @torch.inference_mode(False)
    def find_copies(self) -> None:
        """Look up which slots are copies."""
        if not self.is_copy.is_meta:
            self.copies = self.is_copy.nonzero().flatten()

    def _apply(self, fn: Any, recurse: bool = True) -> Copying:
        super()._apply(fn, recurse)
        self.copies = fn(self.copies)
        return self

    def _load_from_state_dict(self, *args: Any, **keywords: Any) -> None:
        super()._load_from_state_dict(*args, **keywords)
        self.find_copies()


class _ReadSlots(torch.autograd.Function):
    """What every slot reads, (N, C_stream, H, W) -> (N, C, H, W).

    Takes images, shifts (R, 2), the channel that each slot reads if it is no copy (None: its own),
    the channels that the copies read (R,), and the copies (R,).
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, *route: Any) -> Tensor:
        shift, own, sources, copies = route
        slots = images.clone() if own is None else select(images, own)
        moved, made_of = move(images, sources, shift)
        replace(slots, copies, moved)
        ctx.save_for_backward(own, copies, *made_of)
        ctx.width = images.shape[1]
        return slots

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        own, copies, corners, *made_of = ctx.saved_tensors
        of_copies = select(grad, copies)
        of_corners, of_shift = gradients(of_copies, *made_of)
        if own is None:
            of_images = grad.clone()
            replace(of_images, copies, torch.zeros_like(of_copies))
        else:
            is_copy = torch.zeros(len(own), dtype=torch.bool, device=own.device)
            is_copy[copies] = True
            of_images = spread(grad, own, ctx.width, is_copy.logical_not().nonzero().flatten())
        add_corners(of_images, corners, of_corners)
        return of_images, of_shift, None, None, None


_TYPES: dict[type[nn.Module], type[Copying]] = {}


def allow_copies(layer: nn.BatchNorm2d | nn.Conv2d) -> Copying:
    """Let a layer have copies from now on; at first it has none. It is changed in place."""
    kind = type(layer)
    channels = layer.num_features if isinstance(layer, nn.BatchNorm2d) else layer.in_channels
    if kind not in _TYPES:
        _TYPES[kind] = type(f"Copying{kind.__name__}", (Copying, kind), {})
    layer.__class__ = _TYPES[kind]  # type: ignore[assignment]
    assert isinstance(layer, Copying)
    device = layer.weight.device
    layer.register_buffer("index", torch.arange(channels))
    layer.register_buffer("is_copy", torch.zeros(channels, dtype=torch.bool))
    layer.shift = nn.Parameter(torch.zeros(channels, 2, dtype=layer.weight.dtype, device=device))
    layer.find_copies()
    return layer if device.type == "meta" else layer.to(device)


def copying_layers(model: nn.Module) -> dict[str, Copying]:
    """Find the layers that may have copies, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Copying)}


def wiring(model: nn.Module) -> dict[str, dict[str, list[int]]]:
    """Describe all copies: name of the layer -> slots, and the channels that they read.

    `rewire` does the same to a network that has none.
    """
    return {
        name: {"slots": layer.copies.tolist(), "sources": layer.index[layer.copies].tolist()}
        for name, layer in copying_layers(model).items()
        if layer.is_copy.any()
    }


def rewire(model: nn.Module, wiring: Mapping[str, Mapping[str, Any]]) -> None:
    """Give a network, in place, the copies that `wiring` describes; their shifts are zero.

    Raises:
        ValueError: There is no such layer, or it has no such channels.
    """
    for name, own in wiring.items():
        layer = dict(model.named_modules()).get(name)
        if not isinstance(layer, nn.BatchNorm2d | nn.Conv2d):
            raise ValueError(f"{name} is no layer that can have copies")
        copying = allow_copies(layer)
        slots, sources, width = own["slots"], own["sources"], len(copying.index)
        if not len(slots) == len(set(slots)) == len(sources) or max([*slots, *sources]) >= width:
            raise ValueError(f"{name} has {width} channels, and its copies are of others")
        copying.read_copies(torch.tensor(slots), torch.tensor(sources))
