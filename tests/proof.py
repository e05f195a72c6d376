"""What holds for a network of any kind: it is refused by name, or pruned and proven."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from chanprune.channels import (
    ChannelGraph,
    Counts,
    UnsupportedNetwork,
    compact,
    count,
    count_plan,
    masked,
    trace,
)
from chanprune.channels.refusals import Unforeseen
from tests.networks import random_plan, randomise

TOLERANCE = 1e-9
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


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
def prove(model: nn.Module, example: Any, seed: int) -> ChannelGraph | None:
    """Prune a network at random and compare; return its graph, or None where it is refused.

    Args:
        model: The network, changed in place.
        example: What it takes, as for `trace`.
        seed: Decides its parameters, the plans and what it is compared on.
    """
    model = lively(model, seed).double()
    try:
        graph = trace(model, example)
    except UnsupportedNetwork as refusal:
        assert "\n" not in str(refusal)
        assert not isinstance(refusal, Unforeseen), refusal
        return None
    plan = random_plan(graph, seed)
    result = compact(model, graph, plan)
    assert result.max_error <= TOLERANCE
    small, reference = result.model, masked(model, graph.cut(plan))
    skeleton = copy.deepcopy(model).to("meta")
    loaded = compact(skeleton, trace(skeleton, example), plan, check=False).model
    loaded.load_state_dict(small.state_dict(), assign=True)
    given = arguments(example, seed)
    for training in (False, True):
        expected, got, again = (
            values(network.train(training), given) for network in (reference, small, loaded)
        )
        assert difference(got, expected) <= TOLERANCE or draws(reference, given)
        assert difference(again, got) == 0
    assert figures(count(small, example)) == figures(count_plan(model, graph, plan))
    once_more = trace(small, example)
    assert compact(small, once_more, random_plan(once_more, seed + 1)).max_error <= TOLERANCE
    return graph


def figures(counts: Counts) -> dict[str, tuple[int, ...]]:
    """Return the numbers of each layer; a cut container of layers may be of another kind."""
    return {layer.name: (layer.params, layer.macs, layer.activations) for layer in counts.layers}


def arguments(example: Any, seed: int) -> Arguments:
    """Return random arguments, in float64, for a network that takes such an example."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(example, tuple) and isinstance(example[0], int):
        return (torch.randn(4, *example, generator=generator, dtype=torch.float64),), {}

    def drawn(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    example = tree_map_only(
        lambda x: isinstance(x, Tensor) and x.is_floating_point(), drawn, example
    )
    return ((), example) if isinstance(example, dict) else (example, {})


def values(network: nn.Module, given: Arguments) -> list[Tensor]:
    """Return all tensors that a network puts out, with the same random numbers each time."""
    torch.manual_seed(0)
    return list(tensors_in(network(*given[0], **given[1])))


def draws(network: nn.Module, given: Arguments) -> bool:
    """Tell whether outputs depend on random numbers, of which fewer channels draw others."""
    again = list(tensors_in(network(*given[0], **given[1])))
    return difference(values(network, given), again) > 0


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
