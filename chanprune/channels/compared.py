"""How far what one network puts out is from what another one does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.channels.dropout import WithoutDropout
from chanprune.channels.outputs import leaves
from chanprune.channels.refusals import UnsupportedNetwork, first_line

TOLERANCE = 1e-9
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class CompactionError(UnsupportedNetwork):
    """Compact and masked network disagree: the channel graph does not describe the network."""


def compared(reference: nn.Module, other: nn.Module, images: Inputs) -> tuple[str, float]:
    """Return the output that differs most, and its difference."""
    expected = outputs_of(
        *(reference, images),
        "the network cannot be run in float64, so that nothing can be proven; "
        "compact(..., check=False) does without the self-check",
    )
    return largest_difference(outputs_of(other, images, "the compact network fails"), expected)


def largest_difference(got: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[str, float]:
    """Return the output, by place, that differs most, and its difference."""
    if expected.keys() != got.keys():
        raise CompactionError("the compact network's output has another structure")
    errors = {place: _error(got[place], leaf) for place, leaf in expected.items()}
    return max(errors.items(), key=lambda item: item[1])


def outputs_of(model: nn.Module, images: Inputs, failure: str) -> dict[str, Any]:
    """Return what a network puts out, by place.

    Raises:
        CompactionError: It raises something; what a network raises is its own affair.
    """
    try:
        with torch.inference_mode(), WithoutDropout():
            return dict(leaves(model(*images[0], **images[1])))
    except Exception as error:
        raise CompactionError(f"{failure}: {first_line(error)}") from error


def _error(got: Any, expected: Any) -> float:
    """Return how far an output is from another, relative to the other's largest value."""
    if not isinstance(expected, Tensor) or not isinstance(got, Tensor):
        return 0.0 if got == expected else math.inf
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return math.inf
    if not expected.numel() or torch.equal(got, expected):
        return 0.0
    if not expected.is_floating_point() and not expected.is_complex():
        return math.inf
    is_finite = expected.isfinite()
    is_alike = (got == expected) | (got.isnan() & expected.isnan())
    if not (is_finite | is_alike).all():
        return math.inf
    difference = (got - expected).abs().where(is_finite, 0)
    scale = expected.abs().where(is_finite, 0).max().item() or 1.0
    error = difference.max().item() / scale
    return math.inf if math.isnan(error) else error
