"""Each well-known idea is pruned and proven, or refused by name; no other exception leaves."""

import pytest
import torch

from tests.idiom_networks import EXAMPLES, NETWORKS, SHAPE
from tests.proof import prove

MORE = pytest.param(range(1, 10), marks=pytest.mark.slow)


@pytest.mark.parametrize("seeds", [range(1), MORE], ids=["once", "more"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_proven_or_refused(name, seeds):
    for seed in seeds:
        torch.manual_seed(seed)
        prove(NETWORKS[name](), EXAMPLES.get(name, SHAPE), seed)
