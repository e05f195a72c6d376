"""Budgets are met from below, within 1 %, or refused with what stands in the way."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from chanprune.channels import (
    Budget,
    NearestError,
    Plan,
    UnsupportedNetwork,
    compact,
    count,
    trace,
)
from chanprune.criteria import CRITERIA, Subject
from chanprune.methods import PruneOptions, select
from chanprune.models import build
from tests.networks import SMALL, SMALL_SHAPE, but_slow, randomise
from tests.proof import lively
from tests.random_networks import SHAPE, Network, descriptions
from tests.test_random_networks import is_sensible

SHAPE_32 = (3, 32, 32)


def cost_of(model, shape, cost):
    counts = count(model, shape)
    if cost == "memory":
        tensors = [*model.parameters(), *model.buffers()]
        return counts.tally.peak_bytes + sum(t.numel() * t.element_size() for t in tensors)
    return counts.macs if cost == "macs" else counts.params


def chosen(model, shape, cost, amount, criterion="l1", **options):
    graph = trace(model, shape)
    options = PruneOptions(ratio=0.0, coupled="together", **options)
    budget = Budget.of(model, graph, cost, amount)
    groups = graph.prunable("together")
    scores = CRITERIA[criterion]().scores(Subject(model, graph), groups)
    selection = select(scores, graph, PruneOptions(**{**vars(options), "budget": budget}))
    return graph, selection, budget


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("round_to", [1, 2])
@pytest.mark.parametrize(
    ("cost", "amount"), [("macs", 0.5), ("macs", 0.3), ("params", 0.5), ("memory", 0.8)]
)
@pytest.mark.parametrize(
    "name", but_slow(["vgg11", "resnet20", "densenet40", "resnext29"], "densenet40", "resnext29")
)
def test_what_is_left_costs_what_was_asked(name, cost, amount, round_to, scope):
    width = {} if name == "densenet40" else {"width": 0.5}
    sizes = {"num_classes": 10, "in_channels": 3, "image_size": 32}
    model = build(name, **sizes, **width).eval()
    graph, selection, _ = chosen(model, SHAPE_32, cost, amount, round_to=round_to, scope=scope)
    small = compact(model, graph, Plan(selection.kept)).model
    share = cost_of(small, SHAPE_32, cost) / cost_of(model, SHAPE_32, cost)
    assert 0.99 * amount <= share <= amount
    for group, kept in selection.kept.items():
        assert len(kept) in {graph.groups[group].size, len(kept) // round_to * round_to}


def test_an_amount_is_the_share_that_it_is():
    model = randomise(SMALL["residual"](), 0)
    whole = count(model, SMALL_SHAPE).macs
    shared, absolute = (
        chosen(model, SMALL_SHAPE, "macs", amount)[1].kept for amount in (0.6, 0.6 * whole)
    )
    assert shared == absolute


def test_a_budget_that_is_met_already_takes_nothing():
    model = randomise(SMALL["residual"](), 0)
    graph, selection, _ = chosen(model, SMALL_SHAPE, "macs", 1)
    assert selection.removed == 0
    assert all(len(kept) == graph.groups[name].size for name, kept in selection.kept.items())


@pytest.mark.parametrize(
    ("amount", "options", "message"),
    [
        (1e-9, {}, "at their floor"),
        (2, {}, "cannot be met: with all that may go"),
        (0.3, {"min_share": 0.9}, "lower prune.min_share"),
        (0, {}, "leaves no network"),
        (0.93, {"round_to": 8}, "the nearest below that was found is"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused_with_what_can(amount, options, message):
    model = randomise(SMALL["residual"](), 0)
    with pytest.raises(ValueError, match=message):
        chosen(model, SMALL_SHAPE, "macs", amount, **options)


def test_the_nearest_that_is_named_can_be_had():
    model = randomise(SMALL["residual"](), 0)
    with pytest.raises(NearestError) as refusal:
        chosen(model, SMALL_SHAPE, "macs", 0.93, round_to=8)
    nearest = int(str(refusal.value).split("that was found is ")[1].split()[0].replace(",", ""))
    graph, selection, budget = chosen(model, SMALL_SHAPE, "macs", nearest, round_to=8)
    assert budget.cost_of(selection.kept) == nearest


def test_shares_of_single_groups_are_met_and_the_others_make_up_for_them():
    model = randomise(SMALL["residual"](), 0)
    graph, selection, budget = chosen(
        model, SMALL_SHAPE, "macs", 0.442, shares={"wide.0": 0.75, "inner.0": 0.0}
    )
    assert len(selection.kept["wide.0"]) == 3 and len(selection.kept["inner.0"]) == 6
    assert 0.99 * 0.442 <= budget.share(budget.cost_of(selection.kept)) <= 0.442
    total = sum(group.size for group in graph.prunable("together"))
    assert selection.total == total
    assert selection.removed == total - sum(map(len, selection.kept.values()))


def test_layers_that_are_to_be_kept_stay_whole_and_patterns_must_match():
    model = randomise(SMALL["residual"](), 0)
    graph = trace(model, SMALL_SHAPE).keeping([r"inner\..*", "wide.1"])
    assert {graph.groups[name].fixed for name in ("inner.0", "wide.0")} == {"prune.keep names it"}
    assert "inner.0" not in {group.name for group in graph.prunable("together")}
    for pattern, message in (("nothing", "matches no layer"), ("(", "is no regular expression")):
        with pytest.raises(ValueError, match=message):
            graph.keeping([pattern])


@pytest.mark.parametrize("examples", [10, pytest.param(150, marks=pytest.mark.slow)])
def test_no_budget_is_exceeded_whatever_the_network(examples):
    met = []

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        descriptions(),
        st.sampled_from(["macs", "params", "memory"]),
        st.floats(0.05, 1.0),
        st.sampled_from([1, 2, 4]),
        st.sampled_from(["global", "layer"]),
    )
    def holds(description, cost, amount, round_to, scope):
        torch.manual_seed(0)
        model = lively(Network(description), 0)
        assume(is_sensible(copy.deepcopy(model)))
        try:
            graph, selection, _ = chosen(model, SHAPE, cost, amount, round_to=round_to, scope=scope)
        except (UnsupportedNetwork, NearestError):
            return
        except ValueError as error:
            assert "cannot be met" in str(error) or "none may go" in str(error)
            return
        small = compact(model, graph, Plan(selection.kept)).model
        whole = cost_of(model, SHAPE, cost)
        left = cost_of(small, SHAPE, cost)
        assert left <= amount * whole
        assert left >= 0.99 * int(amount * whole) or selection.removed == 0
        met.append(selection.removed > 0)

    holds()
    assert sum(met) >= len(met) / 4
