"""A layer that makes something of the channels it picks: the core asks it, and knows no class."""

import pytest
import torch
from torch import nn

from chanprune.channels import (
    Plan,
    compact,
    count,
    count_plan,
    index_widths,
    refuse_odd_indices,
    rowwise_batch_norms,
    trace,
)
from chanprune.channels.gathered import Gathered

SHAPE = (3, 8, 8)


class Own(Gathered, nn.BatchNorm2d):
    """A batch norm that says of itself what no other layer says."""

    uncut = ("index", "further")
    stays_whole = "has something of its own"
    width = None
    lack = None
    forwards = 0

    def __init__(self, channels):
        super().__init__(channels)
        self.register_buffer("index", torch.arange(channels))
        self.further = nn.Parameter(torch.zeros(7))

    def read_all(self):
        pass

    def forward(self, input):
        self.forwards += 1
        return super().forward(input)

    def normalises(self, images):
        return True

    def compacted(self, width):
        self.width = width
        self.further = nn.Parameter(self.further[:5].detach())

    def further_params(self):
        return 5

    def further_macs(self, positions):
        return 3 * positions

    def fault(self):
        return self.lack


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 4, 3, padding=1), Own(4), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    )


def test_no_plan_cuts_what_it_keeps():
    model = network()
    graph = trace(model, SHAPE)
    assert graph.groups["4"].fixed == "4 has something of its own"
    assert [group.name for group in graph.prunable()] == ["0"]
    assert not {"4.index", "4.further"} & graph.axes.keys() and "4.weight" in graph.axes


def test_it_is_counted_and_told_when_it_is_compact():
    model = network()
    graph, plan = trace(model, SHAPE), Plan({"0": [0, 2, 5]})
    small = compact(model, graph, plan).model
    assert small.get_submodule("4").width == 4
    planned = count_plan(model, graph, plan)
    assert count(small, SHAPE) == planned
    own = next(layer for layer in planned.layers if layer.name == "4")
    assert (own.params, own.macs) == (4 + 4 + 5, 3 * 64)


def test_it_normalises_itself_in_training():
    model = network().train()
    with rowwise_batch_norms(model):
        model(torch.randn(2, *SHAPE))
    assert model.get_submodule("4").forwards == 1


def test_what_it_lacks_is_refused():
    with torch.device("meta"):
        widths = index_widths(network(), SHAPE)
    model = network()
    refuse_odd_indices(model, widths)
    model.get_submodule("4").lack = "has not enough"
    with pytest.raises(ValueError, match="4 has not enough"):
        refuse_odd_indices(model, widths)
