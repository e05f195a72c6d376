"""Fidelity levels: prefixes by views, nested, equal to the extracted network bit for bit."""

import copy

import pytest
import torch
from torch import nn

from chanprune.channels import (
    Fidelity,
    compact,
    count,
    count_plan,
    masked,
    order_by,
    prefix_plan,
    recalibrate,
    scale_scores,
    trace,
)
from chanprune.models import build
from tests.networks import SMALL, SMALL_SHAPE, conv_norm, randomise

LEVELS = (0.25, 0.5, 0.75, 1.0)
CHAINS = ("chain", "biased", "residual", "grouped", "gated", "dense", "preactivation")


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(SMALL[name](), 0).eval()


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("level", [0.25, 0.5, 0.6, 1.0])
def test_a_level_equals_the_extracted_network_bit_for_bit(name, level):
    model = network(name)
    graph = trace(model, SMALL_SHAPE)
    fidelity = Fidelity(model, graph)
    images = torch.randn(2, *SMALL_SHAPE)
    whole = model(images)
    extracted = fidelity.extract(level)
    fidelity.set(level)
    assert torch.equal(model(images), extracted(images))
    assert sum(p.numel() for p in model.parameters()) == count(extracted, SMALL_SHAPE).params
    fidelity.set(1.0)
    assert torch.equal(model(images), whole)


@pytest.mark.parametrize("name", CHAINS)
def test_a_level_by_masks_equals_a_level_by_slices(name):
    model = network(name).double()
    graph = trace(model, SMALL_SHAPE)
    images = torch.randn(2, *SMALL_SHAPE, dtype=torch.float64)
    for level in LEVELS:
        plan = prefix_plan(graph, level)
        small = compact(model, graph, plan).model
        torch.testing.assert_close(small(images), masked(model, graph.cut(plan))(images))


def test_a_level_is_a_view_of_the_whole():
    model = network("chain")
    whole = {key: p.data_ptr() for key, p in model.named_parameters()}
    Fidelity(model, trace(model, SMALL_SHAPE)).set(0.5)
    for key, parameter in model.named_parameters():
        assert parameter.data_ptr() == whole[key], key


def test_the_whole_network_comes_back_with_the_same_parameters():
    model = network("residual")
    before = dict(model.named_parameters())
    fidelity = Fidelity(model, trace(model, SMALL_SHAPE))
    fidelity.extract(0.5)
    fidelity.set(0.25)
    fidelity.extract(0.5)
    fidelity.estimate(0.75, [(torch.randn(4, *SMALL_SHAPE), torch.zeros(4))], "cpu")
    assert fidelity.level == 0.25
    fidelity.set(1.0)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert before.keys() == dict(model.named_parameters()).keys()


def test_a_filter_that_changes_is_not_remembered():
    model = network("chain").to(memory_format=torch.channels_last)
    fidelity = Fidelity(model, trace(model, SMALL_SHAPE))
    images = torch.randn(2, *SMALL_SHAPE)
    fidelity.set(0.5)
    with torch.no_grad():
        before = model(images)
        copied = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.mul_(0.5)
        after = model(images)
        assert torch.equal(copied(images), before) and not torch.equal(before, after)
    torch.testing.assert_close(model(images), after)
    fidelity.set(0.25)
    with torch.no_grad():
        assert torch.equal(model(images), fidelity.extract(0.25)(images))
    fidelity.set(1.0)
    assert {type(m) for m in model.modules()} == {type(m) for m in network("chain").modules()}


def test_levels_are_nested_and_their_cost_rises():
    graph = trace(network("chain"), SMALL_SHAPE)
    shares = [level / 20 for level in range(1, 21)]
    plans = [prefix_plan(graph, share) for share in shares]
    for low, high in zip(plans, plans[1:], strict=False):
        assert all(set(low.kept[name]) <= set(high.kept[name]) for name in high.kept)
    macs = [count_plan(network("chain"), graph, plan).macs for plan in plans]
    assert macs == sorted(macs)
    assert all(len(kept) >= 1 for kept in plans[0].kept.values())
    assert prefix_plan(graph, 0.29 * 100 / 100).kept == prefix_plan(graph, 0.29).kept


def wide() -> nn.Module:
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(200, 5)
    return nn.Sequential(conv_norm(3, 100), conv_norm(100, 200, 1), *head)


@pytest.mark.parametrize("make", [SMALL["chain"], SMALL["grouped"], SMALL["dense"], wide])
def test_a_level_never_has_more_than_its_share(make):
    """Rounded down, whatever the float of a percentage is; but one channel stays."""
    graph = trace(make(), SMALL_SHAPE)
    for percent in range(1, 101):
        for group, kept in prefix_plan(graph, percent / 100).kept.items():
            blocks = graph.groups[group].blocks
            width = graph.groups[group].size // blocks
            assert len(kept) == blocks * max(1, percent * width // 100)


def test_the_cost_of_a_level_is_the_square_of_its_share():
    model = build("vgg16", num_classes=10, in_channels=3, image_size=32, width=0.25)
    graph = trace(model, (3, 32, 32))
    whole = {layer.name: layer for layer in count(model, (3, 32, 32)).layers}
    half = count_plan(model, graph, prefix_plan(graph, 0.5))
    for layer in half.layers[1:]:
        if layer.kind == "conv" and layer.name != "features.conv1_1":
            assert layer.macs * 4 == whole[layer.name].macs


def batches(number: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, *SMALL_SHAPE, generator=generator), torch.zeros(8))] * number


@pytest.mark.parametrize("name", CHAINS)
def test_a_level_with_statistics_of_its_own_equals_the_extracted_network(name):
    model = network(name)
    graph = trace(model, SMALL_SHAPE)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    fidelity = Fidelity(model, graph)
    shared = fidelity.extract(0.5)
    fidelity.estimate(0.5, batches(), "cpu")
    recalibrate(shared, batches(), "cpu")
    images = torch.randn(2, *SMALL_SHAPE)
    fidelity.set(0.5)
    expected = shared(images)
    assert torch.equal(model(images), expected)
    assert torch.equal(fidelity.extract(0.5)(images), expected)
    fidelity.set(1.0)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_level_without_statistics_takes_those_of_the_next_higher_one():
    model = network("chain")
    graph = trace(model, SMALL_SHAPE)
    fidelity = Fidelity(model, graph)
    for level in (0.25, 0.5):
        fidelity.estimate(level, batches(), "cpu")
    own = {level: fidelity.statistics[level]["second.1.running_mean"] for level in (0.25, 0.5)}
    own[1.0] = network("chain").second[1].running_mean
    levels = {0.2: 0.25, 0.25: 0.25, 0.4: 0.5, 0.5: 0.5, 0.75: 1.0, 1.0: 1.0}
    for level, source in levels.items():
        fidelity.set(level)
        mean = model.second[1].running_mean
        for known, means in own.items():
            assert torch.equal(mean, means[: len(mean)]) == (known == source), level
        extracted = fidelity.extract(level).second[1].running_mean
        assert torch.equal(extracted, own[source][: len(mean)])


@pytest.mark.parametrize("name", list(SMALL))
def test_ordering_changes_nothing_and_puts_the_highest_scores_first(name):
    model = network(name).double()
    graph = trace(model, SMALL_SHAPE)
    scored = [group for group in graph.prunable("keep") if group.norms]
    scores = scale_scores(model, graph, scored)
    ordered, order = order_by(model, graph, scores)
    images = torch.randn(3, *SMALL_SHAPE, dtype=torch.float64)
    torch.testing.assert_close(ordered(images), model(images))
    after = scale_scores(ordered, graph, scored)
    for group, places in order.items():
        assert sorted(places) == list(range(graph.groups[group].size))
        assert torch.equal(after[group], scores[group].sort(descending=True).values)
    untouched = set(after) - set(order)
    assert all(torch.equal(after[group], scores[group]) for group in untouched)
    again, same = order_by(ordered, graph, after)
    assert all(places == sorted(places) for places in same.values())
    state = again.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in ordered.state_dict().items())


@pytest.mark.parametrize("level", [0, -0.5, 1.01, float("nan")])
def test_levels_out_of_range_are_refused(level):
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        prefix_plan(trace(network("chain"), SMALL_SHAPE), level)
