"""Whatever network is built of these operations: compact equals masked, or a refusal by name."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.proof import lively, prove, tensors_in
from tests.random_networks import SHAPE, Description, Network, descriptions

PRUNABLE = 0.5  # of the networks, the least share in which there are channels that may go


@torch.no_grad()
def is_sensible(model: nn.Module) -> bool:
    """Tell whether a network treats images one by one, and puts out more than rounding errors.

    Where ranks differ, a sum may mix a batch; the mean of what an instance norm returns is zero.
    """
    images = torch.randn(4, *SHAPE)
    try:
        together, alone = (tensors_in(model.eval()(batch)) for batch in (images, images[:1]))
        pairs = list(zip(together, alone, strict=True))
    except RuntimeError:
        return False
    return all(
        a[:1].shape == b.shape and torch.allclose(a[:1], b, 1e-3, 1e-3) and b.abs().max() > 1e-3
        for a, b in pairs
    )


@pytest.mark.parametrize("examples", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_random_networks_are_proven_or_refused(examples):
    prunable = []

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(descriptions(), st.integers(0, 9))
    def proven(description: Description, seed: int) -> None:
        torch.manual_seed(seed)
        model = Network(description)
        assume(is_sensible(lively(model, seed)))
        graph = prove(model, SHAPE, seed)
        prunable.append(graph is not None and bool(graph.prunable("together")))

    proven()
    assert sum(prunable) >= PRUNABLE * len(prunable)
