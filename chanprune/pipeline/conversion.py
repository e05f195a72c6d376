"""Conversion: the trained network rebuilt in another form of its architecture, and checked."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from chanprune.methods import Conversion
from chanprune.models import build_skeleton
from chanprune.pipeline.prepare import channels_last
from chanprune.processes.errors import RunError

TOLERANCE = 1e-9


def convert(
    model: nn.Module, architecture: Mapping[str, Any], conversion: Conversion
) -> tuple[nn.Module, float]:
    """Build what a conversion describes.

    Args:
        model: The network before it; it is not changed.
        architecture: Arguments of `models.build`, with the conversion's options.
        conversion: What to build.

    Returns:
        The converted network, and how far its logits for random images in float64 are from those of
        `model`, relative to the largest.

    Raises:
        RunError: It should compute the same, and does not to 1e-9.
    """
    converted = build_skeleton(**architecture)
    converted.load_state_dict(conversion.state, assign=True)
    channels_last(converted)
    error = _difference(model, converted, architecture)
    if conversion.exact and not error <= TOLERANCE:
        raise RunError(
            f"the {conversion.label} network and the one before it differ by {error:.2g} "
            f"(allowed {TOLERANCE:g}); please report this"
        )
    return converted, error


@torch.inference_mode()
def _difference(model: nn.Module, converted: nn.Module, architecture: Mapping[str, Any]) -> float:
    size = architecture["image_size"]
    shape = (2, architecture["in_channels"], size, size)
    images = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = images.to(next(model.parameters()).device)
    expected, got = (copy.deepcopy(m).double().eval()(images) for m in (model, converted))
    return float((got - expected).abs().max() / expected.abs().max())
