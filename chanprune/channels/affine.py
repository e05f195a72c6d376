"""What a batch norm does in eval mode, y = scale x + shift, and the layers that can do it as well.

A layer in front takes it for its outputs: its filters are scaled, its bias is scaled and shifted.
A layer behind takes it for its inputs, if what it reads beyond an image's edge is scaled and
shifted as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.channels import operations as ops
from chanprune.channels.gathered import Gathered


@dataclass(frozen=True)
class Affine:
    """A scale and a shift, (C,) each in float64."""

    scale: Tensor
    shift: Tensor

    def taken(self, index: Tensor | None) -> Affine:
        """Return those of the channels `index` (K,), which may repeat; None: all."""
        return self if index is None else Affine(self.scale[index], self.shift[index])

    def spread(self, index: Tensor | None, width: int) -> Affine | None:
        """Return what does the same in front of a gather; None: channels would need two.

        Args:
            index: (C,) the channels of the source that are gathered; None: all.
            width: Number of the source's channels; those that are not gathered stay as they are.
        """
        if index is None:
            return self
        scale, shift = torch.ones(width).to(self.scale), torch.zeros(width).to(self.shift)
        scale[index], shift[index] = self.scale, self.shift
        made = Affine(scale, shift)
        return made if made.taken(index) == self else None

    @property
    def without_shift(self) -> Affine:
        """The scale alone."""
        return Affine(self.scale, torch.zeros_like(self.shift))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Affine)
            and torch.equal(self.scale, other.scale)
            and torch.equal(self.shift, other.shift)
        )

    __hash__ = None  # type: ignore[assignment]


def affine_of(norm: nn.Module) -> Affine | None:
    """Return what a batch norm does to what it gathers; None: it takes the batch's statistics."""
    assert isinstance(norm, ops.BATCH_NORMS)
    if norm.running_mean is None or norm.running_var is None or norm.training:
        return None
    mean, scale = norm.running_mean.double(), (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return Affine(scale, shift)


@torch.no_grad()
def scale_outputs(layer: Any, affine: Affine) -> None:
    """Let a layer put out scale y + shift in place of y; it is changed in place."""
    weight, scale = layer.weight.double(), affine.scale
    if isinstance(layer, ops.TRANSPOSED):
        rows = weight.unflatten(0, (layer.groups, -1))  # (groups, in, out, ...) of each group
        scale = scale.view(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        weight = (rows * scale).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    bias = affine.shift if layer.bias is None else layer.bias.double() * affine.scale + affine.shift
    _put(layer, weight, bias)


@torch.no_grad()
def scale_inputs(layer: Any, affine: Affine) -> None:
    """Let a layer read scale x + shift in place of x; it is changed in place."""
    weight, groups = layer.weight.double(), getattr(layer, "groups", 1)
    rows = weight.unflatten(0, (groups, -1))  # (groups, outputs, inputs, ...) of each group
    ones = [1] * (weight.dim() - 2)
    scale, shift = (x.view(groups, 1, -1, *ones) for x in (affine.scale, affine.shift))
    bias = (rows * shift).flatten(2).sum(2).flatten()
    if layer.bias is not None:
        bias = bias + layer.bias.double()
    _put(layer, (rows * scale).flatten(0, 1), bias)


@torch.no_grad()
def select_outputs(layer: Any, index: Tensor) -> None:
    """Let a layer that is not grouped put out the channels `index` (K,) alone; in place."""
    bias = layer.bias
    _put(layer, layer.weight[index], None if bias is None else bias[index])
    if isinstance(layer, nn.Linear):
        layer.out_features = len(index)
    else:
        layer.out_channels = len(index)


def selects_outputs(layer: nn.Module) -> bool:
    """Tell whether `select_outputs` takes a layer."""
    is_convolution = isinstance(layer, ops.CONVOLUTIONS) and layer.groups == 1
    return is_convolution or isinstance(layer, nn.Linear)


def reads_beyond_edges(layer: nn.Module, affine: Affine) -> bool:
    """Tell whether a layer pads what it reads with zeros, which a shift would not leave zeros."""
    if isinstance(layer, nn.Linear) or not affine.shift.any():
        return False
    padding: Any = layer.padding
    pads = padding != "valid" if isinstance(padding, str) else any(padding)
    return pads and layer.padding_mode == "zeros"


def has_copies(layer: nn.Module) -> bool:
    """Tell whether a layer makes something of its own of what it reads."""
    return isinstance(layer, Gathered) and layer.stays_whole is not None


def _put(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    old = layer.weight
    layer.weight = nn.Parameter(weight.to(old.dtype), old.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(old), old.requires_grad)
