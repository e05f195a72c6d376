"""What holds for a network of any kind: it is refused by name, or pruned and proven."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.channels import (
    ChannelGraph,
    UnsupportedNetwork,
    compact,
    count,
    count_plan,
    masked,
    trace,
)
from tests.networks import random_plan, randomise

TOLERANCE = 1e-9
Shape = tuple[int, ...]


def lively(model: nn.Module, seed: int) -> nn.Module:
    """Let no parameter be a constant, so that each channel differs from the others."""
    generator = torch.Generator().manual_seed(seed)
    randomise(model, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                parameter.uniform_(0.5, 1.5, generator=generator)
    return model


@torch.no_grad()
def prove(model: nn.Module, shape: Shape, seed: int) -> ChannelGraph | None:
    """Prune a network at random and compare; return its graph, or None where it is refused."""
    model = lively(model, seed).double()
    try:
        graph = trace(model, shape)
    except UnsupportedNetwork as refusal:
        assert "\n" not in str(refusal)
        return None
    plan = random_plan(graph, seed)
    result = compact(model, graph, plan)
    assert result.max_error <= TOLERANCE
    small, reference = result.model, masked(model, graph.cut(plan))
    skeleton = copy.deepcopy(model).to("meta")
    loaded = compact(skeleton, trace(skeleton, shape), plan, check=False).model
    loaded.load_state_dict(small.state_dict(), assign=True)
    images = torch.randn(4, *shape, dtype=torch.float64)
    for training in (False, True):
        expected, got, again = (
            values(network.train(training), images) for network in (reference, small, loaded)
        )
        assert difference(got, expected) <= TOLERANCE or draws(reference, images)
        assert difference(again, got) == 0
    assert count(small, shape) == count_plan(model, graph, plan)
    once_more = trace(small, shape)
    assert compact(small, once_more, random_plan(once_more, seed + 1)).max_error <= TOLERANCE
    return graph


def values(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Return all tensors that a network puts out, with the same random numbers each time."""
    torch.manual_seed(0)
    return list(tensors_in(network(images)))


def draws(network: nn.Module, images: Tensor) -> bool:
    """Tell whether outputs depend on random numbers, of which fewer channels draw others."""
    return difference(values(network, images), list(tensors_in(network(images)))) > 0


def difference(left: list[Tensor], right: list[Tensor]) -> float:
    """Return the largest difference of two outputs, relative to the larger values of each."""
    pairs = zip(left, right, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs)


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output, in order."""
    if isinstance(output, Tensor):
        yield output
    else:
        for part in output.values() if isinstance(output, dict) else output:
            yield from tensors_in(part)
