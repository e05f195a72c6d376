"""Whatever network is built of these operations: compact equals masked, or a refusal by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chanprune.channels import UnsupportedNetwork, compact, count, count_plan, masked, trace
from tests.networks import random_plan, randomise
from tests.random_networks import SHAPE, Description, Network, descriptions

TOLERANCE = 1e-9
PRUNABLE = 0.0  # of the networks, the share in which there are channels that may go


@torch.no_grad()
def prove(description: Description, seed: int) -> bool:
    """Prune a random network at random, and compare; return whether channels of it may go."""
    torch.manual_seed(seed)
    model = randomise(Network(description), seed).double()
    images = torch.randn(4, *SHAPE, dtype=torch.float64)
    assume(treats_images_alike(model, images))
    try:
        graph = trace(model, SHAPE)
    except UnsupportedNetwork as refusal:
        assert "\n" not in str(refusal)
        return False
    plan = random_plan(graph, seed)
    result = compact(model, graph, plan)
    assert result.max_error <= TOLERANCE
    reference = masked(model, graph.cut(plan))
    skeleton = copy.deepcopy(model).to("meta")
    again = compact(skeleton, trace(skeleton, SHAPE), plan, check=False).model
    again.load_state_dict(result.model.state_dict(), assign=True)
    for training in (False, True):
        expected = reference.train(training)(images)
        got = result.model.train(training)(images)
        assert difference(got, expected) <= TOLERANCE
        assert difference(again.train(training)(images), got) == 0
    assert count(result.model, SHAPE) == count_plan(model, graph, plan)
    prove_once_more(result.model, seed)
    return bool(graph.prunable("together"))


def treats_images_alike(model: nn.Module, images: Tensor) -> bool:
    """Tell whether an image's output is its own; where ranks differ, sums may mix a batch."""
    try:
        together, alone = (tensors_in(model.eval()(batch)) for batch in (images, images[:1]))
        pairs = list(zip(together, alone, strict=True))
    except RuntimeError:
        return False
    return all(a[:1].shape == b.shape and torch.allclose(a[:1], b) for a, b in pairs)


def prove_once_more(small: nn.Module, seed: int) -> None:
    """A compact network is a network: it can be traced and pruned."""
    graph = trace(small, SHAPE)
    assert compact(small, graph, random_plan(graph, seed + 1)).max_error <= TOLERANCE


def difference(left: Any, right: Any) -> float:
    """Return the largest difference of two outputs, relative to the larger values of each."""
    pairs = zip(tensors_in(left), tensors_in(right), strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs)


def tensors_in(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    else:
        for part in output.values() if isinstance(output, dict) else output:
            yield from tensors_in(part)


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
        prunable.append(prove(description, seed))

    proven()
    assert sum(prunable) >= PRUNABLE * len(prunable)
