"""A cut: what a plan means for a graph, worked out once."""

import numpy as np
import pytest
import torch

from chanprune.channels import Bank, Plan, compact, gather, trace
from chanprune.channels import graph as graph_module
from chanprune.channels.layers import Layer
from tests.networks import SMALL, SMALL_SHAPE, random_plan, randomise

NAMES = ("chain", "residual", "dense", "grouped")


@pytest.fixture
def masks(monkeypatch):
    """List the plans whose mask is computed."""
    plans = []
    compute = graph_module.kept_mask

    def watched(groups, layers, plan):
        plans.append(plan)
        return compute(groups, layers, plan)

    monkeypatch.setattr(graph_module, "kept_mask", watched)
    return plans


@pytest.mark.parametrize("absorb", ["none", "bias"])
def test_a_compaction_computes_one_mask(masks, absorb):
    model = randomise(SMALL["residual"](), 0)
    graph = trace(model, SMALL_SHAPE)
    masks.clear()
    plan = random_plan(graph, 0)
    compact(model, graph, plan, absorb=absorb)
    assert masks == [plan]


def test_switching_between_cuts_computes_no_mask_and_no_axes(masks, monkeypatch):
    model = SMALL["residual"]()
    graph = trace(model, SMALL_SHAPE)
    bank = Bank(model, graph, torch.optim.SGD(model.parameters(), lr=0.1))
    cuts = [graph.cut(random_plan(graph, number)) for number in range(2)]
    bank.activate(cuts[0])
    masks.clear()
    monkeypatch.setattr(Layer, "axes", lambda layer: pytest.fail("the axes are known"))
    bank.activate(cuts[1])
    with bank.whole():
        pass
    bank.activate(cuts[0])
    assert not masks


@pytest.mark.parametrize("name", NAMES)
def test_what_a_cut_says_is_what_compaction_leaves(name):
    model = SMALL[name]()
    graph = trace(model, SMALL_SHAPE)
    cut = graph.cut(random_plan(graph, 1))
    state = compact(model, graph, cut.plan, check=False).model.state_dict()
    assert cut.keep.sum() == cut.after.num_channels
    for tensor, kept in cut.kept.items():
        for axis, positions in kept:
            parts = axis.blocks if axis.dim else 1
            assert len(positions) == state[tensor].shape[axis.dim] * parts
            assert cut.keep[axis.channels[positions]].all()
    assert state.keys() == gather(model.state_dict(), cut).keys()
    assert np.array_equal(graph.cut(cut.complete).keep, cut.keep)


def test_a_plan_that_does_not_fit_is_refused_when_it_is_cut():
    graph = trace(SMALL["chain"](), SMALL_SHAPE)
    with pytest.raises(ValueError, match="must stay whole"):
        graph.cut(Plan({"input": [0]}))
    with pytest.raises(ValueError, match="names the channel group 'other'"):
        graph.cut(Plan({"other": [0]}))
