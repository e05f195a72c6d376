"""One layer: what it reads and should put out at some positions, and new weights for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.channels import operations as ops
from chanprune.channels.patches import inputs_at, matrix, outputs_at, put_matrix
from chanprune.channels.ridge import correction

KINDS = (*ops.CONVOLUTIONS, *ops.TRANSPOSED, nn.Linear)
POSITIONS = 1 << 14  # of a layer's outputs, which are sampled from all images together
NUMBERS = 1 << 26  # that the layer reads for these: half a gigabyte
UNCHANGED = 1e-5


@dataclass(frozen=True)
class Refit:
    """How far a layer's kept outputs are from what they should be.

    Attributes:
        before: Norm of the error at the sampled positions, relative to that of the outputs about
            their means.
        after: The same with the new weights.
        left: Why the layer keeps its weights; None if they are new.
    """

    before: float
    after: float
    left: str | None = None


@dataclass(frozen=True)
class Sample:
    """A layer at M positions, in float64.

    Attributes:
        rows: (G, M, P) what each of its G groups reads.
        output: (M, C) what it puts out.
        wanted: (M, C) what it should put out.
        held_out: (M,) True for the positions that choose how freely the weights change.
    """

    rows: Tensor
    output: Tensor
    wanted: Tensor
    held_out: Tensor


class CannotBeFittedError(Exception):
    """A layer keeps its weights, for the reason that is given."""


def sampled(
    module: Any, axis: int, images: Tensor, output: Tensor, wanted: Tensor, calls: int = 1
) -> Sample:
    """Look at a layer at random positions, the same for every layer of the same size.

    A fifth of the images, or where there are less than five of the positions, is held out.

    Args:
        module: The layer.
        axis: The dimension of its output that runs over channels, 1 or -1.
        images: Its input.
        output: What it makes of that.
        wanted: What it should make of it, in the same shape.
        calls: How often the layer is called, and looked at.

    Raises:
        CannotBeFittedError: Its output is not its weights times its input.
    """
    weights = matrix(module).double()
    count = output.numel() // output.shape[axis]
    most = min(POSITIONS, NUMBERS // (len(weights) * weights.shape[2])) // calls
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(count, generator=generator)[:most].sort().values.to(output.device)
    size = tuple(output.shape[2:]) if axis == 1 else ()
    rows = inputs_at(module, images, size, chosen).double()
    now, target = (outputs_at(axis, tensor, chosen).double() for tensor in (output, wanted))
    if not all(bool(tensor.isfinite().all()) for tensor in (rows, now, target)):
        raise CannotBeFittedError("it reads, or should put out, values that are not finite")
    tolerance = torch.finfo(output.dtype).eps ** 0.5 * float(now.abs().max())
    if not (_put_out(module, rows, weights) - now).abs().max() <= tolerance:
        raise CannotBeFittedError("its output is not its weights times its input")
    images_seen = len(images) if len(images) >= 5 else count
    held_out = chosen * images_seen // count % 5 == 4
    return Sample(rows, now, target, held_out)


@torch.no_grad()
def fit(module: Any, norm: Any, samples: Sequence[Sample]) -> Refit:
    """Give a layer new weights, in place.

    Args:
        module: The layer.
        norm: The batch norm that alone reads its output and whose running mean may take the bias;
            None: there is none.
        samples: Of each of its calls.
    """
    rows = torch.cat([sample.rows for sample in samples], 1)
    wanted, output, held_out = (
        torch.cat([getattr(sample, name) for sample in samples])
        for name in ("wanted", "output", "held_out")
    )
    spread = float((wanted - wanted.mean(0)).norm()) or float(wanted.norm()) or 1.0
    missing = wanted - output
    before = float(missing.norm()) / spread
    if before < UNCHANGED:
        return Refit(before, before)
    bias, old = _bias_of(module, norm), matrix(module)
    missing = missing.unflatten(1, (len(rows), -1)).transpose(0, 1)
    delta, shift = correction(rows, missing, held_out, bias is not None)
    put_matrix(module, (old.double() + delta).to(old.dtype))
    change = matrix(module).double() - old.double()
    left = missing - rows @ change.mT - shift[:, None]
    after = float(left.norm()) / spread
    if not after < before:
        put_matrix(module, old)
        return Refit(before, before, "no other weights are better")
    if bias is not None:
        bias += (shift if module.bias is not None else -shift).flatten().to(bias.dtype)
    return Refit(before, after)


def _put_out(module: Any, rows: Tensor, weights: Tensor) -> Tensor:
    products = (rows @ weights.mT).transpose(0, 1).flatten(1)
    return products if module.bias is None else products + module.bias.double()


def _bias_of(module: Any, norm: Any) -> Tensor | None:
    """Return what takes a constant: the bias or, with the opposite sign, the running mean."""
    bias: Tensor | None = module.bias
    if bias is None and norm is not None:
        bias = norm.running_mean
    return bias
