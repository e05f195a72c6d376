"""Each well-known idea is pruned and proven, or refused by name; no other exception leaves."""

import pytest
import torch

from tests.idiom_networks import EXAMPLES, NETWORKS, SHAPE
from tests.networks import but_slow
from tests.proof import prove

REFUSED = ("Swin", "decides by value")
WHOLE = (
    *("learned queries", "two images", "frames", "recurrent cell", "bilinear pooling"),
    *("attention pooling", "tied weights", "decides by shape"),
)
LONG = (
    *("three scales", "spatial transformer", "linear attention", "split attention", "LSTM"),
    *("deformable convolution", "decides by shape", "non-local", "in place", "stereo"),
)


def is_prunable(name: str, seed: int) -> bool:
    torch.manual_seed(seed)
    graph = prove(NETWORKS[name](), EXAMPLES.get(name, SHAPE), seed)
    return graph is not None and bool(graph.prunable("together"))


@pytest.mark.parametrize("name", but_slow(NETWORKS, *LONG))
def test_an_idea_is_proven_or_refused(name):
    assert is_prunable(name, seed=0) or name in REFUSED + WHOLE


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_an_idea_is_proven_or_refused_with_other_channels(name):
    for seed in range(1, 10):
        is_prunable(name, seed)
