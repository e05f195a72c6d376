"""Selection is exact, deterministic, and honours floors, caps, multiples and blocks."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chanprune.channels import (
    filter_scores,
    scale_scores,
    select_above,
    select_global,
    select_widths,
    taylor_scores,
    trace,
)
from tests.networks import SMALL, SMALL_SHAPE, conv_norm, randomise


def removed_by_group(scores, selection):
    return {name: len(score) - len(selection.kept[name]) for name, score in scores.items()}


def make_scores(sizes, seed, levels=None):
    random = np.random.default_rng(seed)
    draw = (lambda n: random.integers(0, levels, n) / 8) if levels else random.random
    return {f"group{i}": torch.tensor(draw(size)) for i, size in enumerate(sizes)}


SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(sizes=SIZES, percent=st.integers(0, 99), seed=st.integers(0, 999), ties=st.booleans())
def test_exactly_the_floor_of_the_ratio_goes_or_it_is_refused(sizes, percent, seed, ties):
    scores = make_scores(sizes, seed, levels=3 if ties else None)
    wanted = percent * sum(sizes) // 100
    spare = sum(size - max(1, math.ceil(0.02 * size - 1e-9)) for size in sizes)
    if wanted > spare:
        with pytest.raises(ValueError, match="at their floor"):
            select_global(scores, percent / 100)
        return
    selection = select_global(scores, percent / 100)
    assert selection.removed == wanted
    assert sum(removed_by_group(scores, selection).values()) == wanted
    assert selection.total == sum(sizes)
    for name, score in scores.items():
        kept = selection.kept[name]
        assert len(kept) >= max(1, math.ceil(0.02 * len(score) - 1e-9))
        dropped = sorted(set(range(len(score))) - set(kept))
        if dropped and kept:
            worst_kept = min((score[c].item(), c) for c in kept)
            assert max((score[c].item(), c) for c in dropped) < worst_kept


@pytest.mark.parametrize("size", [100, 200, 1000])
def test_percentages_are_met_whatever_their_floats_are(size):
    """0.29 times 100 is a little less than 29, and 0.07 times 100 a little more than 7."""
    scores = {"low": torch.zeros(size), "high": torch.ones(3 * size)}
    for percent in range(1, 100):
        share = percent / 100
        one = select_global({"low": scores["low"]}, share, min_share=0.0)
        assert one.removed == percent * size // 100
        floored = select_global(scores, 0.25, min_share=share) if percent < 75 else None
        assert floored is None or len(floored.kept["low"]) == percent * size // 100
        capped = select_global(scores, share / 2, min_share=0.0, max_share=share)
        assert removed_by_group(scores, capped)["low"] == percent * size // 100


@pytest.mark.parametrize("tenths", range(10))
def test_ties_do_not_take_more_than_asked(tenths):
    """Nine of ten scores are zero: a strict threshold would remove them all (E.1, 4)."""
    scores = {
        "a": torch.zeros(300),
        "b": torch.cat([torch.zeros(240), torch.linspace(0.1, 1, 60)]),
    }
    selection = select_global(scores, tenths / 10)
    assert selection.removed == 60 * tenths


def test_order_is_score_then_group_then_channel():
    scores = {"b": torch.tensor([0.5, 0.1, 0.5]), "a": torch.tensor([0.5, 0.1, 0.9])}
    assert select_global(scores, 2 / 6).kept == {"b": [0, 2], "a": [0, 2]}
    assert select_global(scores, 3 / 6).kept == {"b": [2], "a": [0, 2]}
    assert select_global(scores, 4 / 6).kept == {"b": [2], "a": [2]}


def test_the_floor_is_made_up_from_the_other_groups_and_reported():
    scores = {"low": torch.full((20,), 0.01), "high": torch.linspace(1, 2, 20)}
    selection = select_global(scores, 0.7, min_channels=4)
    assert removed_by_group(scores, selection) == {"low": 16, "high": 12}
    assert selection.at_floor == ["low"]
    assert selection.threshold == pytest.approx(scores["high"][11].item())
    assert select_global(scores, 0.3, min_channels=4).at_floor == []


def test_the_cap_limits_one_pass():
    scores = {"low": torch.full((20,), 0.01), "high": torch.linspace(1, 2, 20)}
    selection = select_global(scores, 0.5, max_share=0.5)
    assert removed_by_group(scores, selection) == {"low": 10, "high": 10}


@settings(max_examples=80, deadline=None)
@given(sizes=SIZES, percent=st.integers(0, 60), seed=st.integers(0, 99), multiple=st.integers(2, 8))
def test_widths_are_multiples_and_the_shortfall_is_less_than_one(sizes, percent, seed, multiple):
    scores = make_scores(sizes, seed)
    try:
        selection = select_global(scores, percent / 100, round_to=multiple)
    except ValueError as error:
        wanted = percent * sum(sizes) // 100
        is_below_a_step = wanted < multiple and "they go by at least" in str(error)
        assert is_below_a_step or "at their floor" in str(error)
        return
    assert 0 <= percent * sum(sizes) // 100 - selection.removed < multiple
    for name, score in scores.items():
        width = len(selection.kept[name])
        assert width % multiple == 0 or width == len(score)


def test_blocks_keep_equally_many_channels():
    scores = make_scores([24, 10], 0)
    selection = select_global(scores, 0.5, blocks={"group0": 4})
    per_block = np.bincount(np.array(selection.kept["group0"]) // 6, minlength=4)
    assert len(set(per_block.tolist())) == 1
    assert selection.removed == 17
    for block in range(4):
        inside = scores["group0"][block * 6 : block * 6 + 6]
        best = inside.argsort(descending=True)[: per_block[0]] + block * 6
        assert sorted(best.tolist()) == [c for c in selection.kept["group0"] if c // 6 == block]


@pytest.mark.parametrize(
    ("ratio", "options", "message"),
    [
        (1.0, {}, r"must be in \[0, 1\)"),
        (-0.1, {}, r"must be in \[0, 1\)"),
        (0.9, {"min_share": 0.5}, "the floors leave only"),
    ],
)
def test_impossible_requests_are_refused(ratio, options, message):
    with pytest.raises(ValueError, match=message):
        select_global({"a": torch.rand(20)}, ratio, **options)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=4),
    seed=st.integers(0, 999),
)
def test_units_go_in_the_order_of_their_mean_score(counts, seed):
    """A unit of many channels goes neither sooner nor later than a single channel like them."""
    sizes, blocks = [b * w for b, w in counts], {f"group{i}": b for i, (b, _) in enumerate(counts)}
    scores = make_scores(sizes, seed)
    units = []
    for name, score in scores.items():
        parts = score.view(blocks[name], -1)
        ranked = parts.argsort(1) + torch.arange(len(parts))[:, None] * parts.shape[1]
        units += [(score[unit].mean().item(), name, set(unit.tolist())) for unit in ranked.T]
    units.sort(key=lambda unit: unit[0])
    total, goes, gone = sum(sizes), 0, {name: set() for name in scores}
    for _, name, unit in units[:-1]:
        goes, gone[name] = goes + len(unit), gone[name] | unit
        if not all(len(gone[n]) < len(score) for n, score in scores.items()):
            break
        chosen = select_global(scores, goes / total, min_share=0.0, blocks=blocks)
        for group, score in scores.items():
            assert set(chosen.kept[group]) == set(range(len(score))) - gone[group]


@pytest.mark.parametrize("blocks", [2, 4, 7])
def test_a_unit_that_does_not_fit_is_made_up_from_the_others(blocks):
    scores = {"low": torch.zeros(10 * blocks), "high": torch.ones(50)}
    total = 10 * blocks + 50
    for wanted in range(5 * blocks):
        chosen = select_global(scores, wanted / total, blocks={"low": blocks})
        low = wanted // blocks * blocks
        assert removed_by_group(scores, chosen) == {"low": low, "high": wanted - low}
        assert chosen.at_floor == []


@settings(max_examples=80, deadline=None)
@given(
    blocks=st.integers(1, 5),
    width=st.integers(1, 6),
    floor=st.integers(1, 8),
    seed=st.integers(0, 999),
    prefix=st.booleans(),
)
def test_above_a_threshold_all_blocks_keep_as_many_as_the_one_that_keeps_most(
    blocks, width, floor, seed, prefix
):
    scores = make_scores([blocks * width], seed)
    options = {"prefix": prefix, "min_channels": floor, "blocks": {"group0": blocks}}
    kept = select_above(scores, 0.6, **options).kept["group0"]
    own = [sorted(c % width for c in kept if c // width == block) for block in range(blocks)]
    parts = scores["group0"].view(blocks, width)
    needed = [
        max((c + 1 for c in range(width) if part[c] > 0.6), default=0)
        if prefix
        else int((part > 0.6).sum())
        for part in parts
    ]
    count = max(*needed, min(width, math.ceil(floor / blocks)))
    for part, channels in zip(parts, own, strict=True):
        best = range(count) if prefix else part.argsort(descending=True)[:count].tolist()
        assert channels == sorted(best)


def test_scores_must_be_finite():
    with pytest.raises(ValueError, match="not finite"):
        select_global({"a": torch.tensor([1.0, float("nan")])}, 0.5)


def test_scale_scores_sum_over_coupled_batch_norms():
    model = randomise(SMALL["residual"](), 0)
    graph = trace(model, SMALL_SHAPE)
    scores = scale_scores(model, graph, graph.prunable("together"))
    expected = model.stem[1].weight.abs() + model.outer[1].weight.abs()
    assert torch.equal(scores["stem.0"], expected.detach())
    doubled = randomise(SMALL["grouped"](), 0)
    graph = trace(doubled, SMALL_SHAPE)
    score = scale_scores(doubled, graph, graph.prunable())["grouped.0"]
    parts = (doubled.grouped[1], doubled.depthwise[1])
    expected = sum(p.weight for p in parts) + doubled.doubled[1].weight.view(18, 2).sum(1)
    torch.testing.assert_close(score, expected.detach())


class Joined(nn.Module):
    """Two branches side by side, summed with a third that is as wide as both."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both = conv_norm(3, 4), conv_norm(3, 6), conv_norm(3, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1) + self.both(x)
        return self.head(x.mean((2, 3)))


def test_scores_of_layers_that_make_part_of_a_group():
    model = randomise(Joined(), 0)
    graph = trace(model, SMALL_SHAPE)
    groups = graph.prunable("together")
    assert [group.name for group in groups] == ["left.0"]
    scales = torch.cat([model.left[1].weight, model.right[1].weight]) + model.both[1].weight
    torch.testing.assert_close(scale_scores(model, graph, groups)["left.0"], scales.detach())
    filters = [
        layer[0].weight.abs().flatten(1).sum(1)
        for layer in model.children()
        if layer is not model.head
    ]
    expected = torch.cat(filters[:2]) + filters[2]
    torch.testing.assert_close(filter_scores(model, graph, groups)["left.0"], expected.detach())


@pytest.mark.parametrize("name", ["preactivation", "dense"])
def test_channels_behind_a_gather_are_scored_by_the_columns_that_read_them(name):
    """A channel whose columns are doubled scores twice as much, and no other score changes."""
    model = randomise(SMALL[name](), 0)
    graph = trace(model, SMALL_SHAPE)
    gathered = [group for group in graph.prunable("keep") if not group.producers]
    assert gathered
    before = filter_scores(model, graph, gathered)
    for group in gathered:
        number = group.start + 1
        with torch.no_grad():
            for tensor, axes in graph.axes.items():
                for axis in axes[1:]:
                    columns = torch.from_numpy(axis.channels == number)
                    model.get_parameter(tensor)[:, columns] *= 2
        expected = before[group.name].clone()
        expected[1] *= 2
        after = filter_scores(model, graph, gathered)
        torch.testing.assert_close(after[group.name], expected)
        before = after


def test_the_ranking_of_scales_ignores_the_filters_size():
    """Rescaling a filter under its batch norm changes nothing (E.1, 9)."""
    model = randomise(SMALL["chain"](), 0).double().eval()
    graph = trace(model, SMALL_SHAPE)
    images = torch.randn(2, *SMALL_SHAPE, dtype=torch.float64)
    before, scores = model(images), scale_scores(model, graph, graph.prunable())
    factor = torch.rand(8, dtype=torch.float64) * 3 + 0.5
    conv, norm = model.first[0], model.first[1]
    with torch.no_grad():
        conv.weight *= factor.view(-1, 1, 1, 1)
        norm.running_mean *= factor
        norm.running_var.copy_((norm.running_var + norm.eps) * factor**2 - norm.eps)
    torch.testing.assert_close(model(images), before)
    after = scale_scores(model, graph, graph.prunable())
    assert all(torch.equal(after[name], score) for name, score in scores.items())


def few_images(number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    images = torch.randn(number, *SMALL_SHAPE, dtype=torch.float64, generator=draws)
    return images, torch.randint(5, (number,), generator=draws)


@pytest.mark.parametrize("name", ["chain", "residual", "dense"])
def test_taylor_scores_are_what_the_loss_loses_with_the_scale(name):
    """The score of every channel is the derivative by a factor on its scale, by differences."""
    torch.manual_seed(0)
    model = randomise(SMALL[name](), 0).double().train()
    graph = trace(model, SMALL_SHAPE)
    images, labels = few_images(6)
    (group, *_) = [g for g in graph.prunable() if len(g.norms) == 1]
    scores = taylor_scores(model, graph, [group], [(images, labels)])[group.name]
    assert model.training
    model.eval()
    scale = model.get_submodule(group.norms[0]).weight
    for channel in range(group.size):
        losses = []
        for change in (-1e-5, 1e-5):
            before = scale.detach()[channel].clone()
            with torch.no_grad():
                scale[channel] *= 1 + change
                losses.append(F.cross_entropy(model(images), labels).item())
                scale[channel] = before
        difference = abs(losses[1] - losses[0]) / 2e-5
        assert scores[channel].item() == pytest.approx(difference, rel=1e-5, abs=1e-9)


def test_taylor_scores_are_root_mean_squares_over_few_images():
    """Many images count by twenties, and coupled batch norms are added in squares."""
    model = randomise(SMALL["residual"](), 0).double()
    graph = trace(model, SMALL_SHAPE)
    images, labels = few_images(40)
    whole = taylor_scores(model, graph, graph.prunable("together"), [(images, labels)])["stem.0"]
    total = torch.zeros_like(whole)
    model.eval()
    scales = [model.stem[1].weight, model.outer[1].weight]
    for part, own in zip(images.split(20), labels.split(20), strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(part), own), scales)
        total += sum((s * g).detach() ** 2 for s, g in zip(scales, gradients, strict=True)) / 2
    torch.testing.assert_close(whole, total.sqrt())
    with pytest.raises(ValueError, match="no images"):
        taylor_scores(model, graph, graph.prunable(), [])


def test_taylor_scores_ignore_a_factor_that_the_next_batch_norm_takes_out():
    """Scales that shrink together change the ranking by scales, and nothing that is computed."""
    model = randomise(SMALL["chain"](), 0).double()
    graph = trace(model, SMALL_SHAPE)
    batches = [few_images(20), few_images(20, seed=1)]
    images, _ = few_images(2)
    before, output = taylor_scores(model, graph, graph.prunable(), batches), model.eval()(images)
    norm, next_norm = model.first[1], model.second[1]
    scales = scale_scores(model, graph, graph.prunable())
    with torch.no_grad():
        norm.weight *= 0.1
        norm.bias *= 0.1
        next_norm.running_mean *= 0.1
        next_norm.running_var.copy_((next_norm.running_var + next_norm.eps) * 0.01 - next_norm.eps)
    torch.testing.assert_close(model(images), output)
    after = taylor_scores(model, graph, graph.prunable(), batches)
    for name, scores in before.items():
        torch.testing.assert_close(after[name], scores)
    shrunk = scale_scores(model, graph, graph.prunable())["first.0"]
    torch.testing.assert_close(shrunk, scales["first.0"] * 0.1)


def test_nothing_to_choose_from_is_said():
    assert select_global({}, 0.0).kept == {}
    with pytest.raises(ValueError, match="none may go"):
        select_global({}, 0.5)


@given(st.data())
def test_given_widths_keep_the_best_of_each_group(data):
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    scores = {f"g{i}": torch.randperm(size).float() for i, size in enumerate(sizes)}
    widths = {name: data.draw(st.integers(1, len(score))) for name, score in scores.items()}
    selection = select_widths(scores, widths)
    for name, score in scores.items():
        assert selection.kept[name] == sorted(score.topk(widths[name]).indices.tolist())
    assert selection.removed == sum(sizes) - sum(widths.values())


def test_widths_that_cannot_be_are_refused():
    scores = {"a": torch.rand(8), "b": torch.rand(4)}
    with pytest.raises(ValueError, match="c cannot keep 1 channels; there are: a 8, b 4"):
        select_widths(scores, {"c": 1})
    with pytest.raises(ValueError, match="b cannot keep 5 channels"):
        select_widths(scores, {"b": 5})
    with pytest.raises(ValueError, match="a must keep a multiple of 4 channels, not 6"):
        select_widths(scores, {"a": 6}, blocks={"a": 4})
    assert select_widths({"a": torch.arange(8.0)}, {"a": 4}, blocks={"a": 2}).kept == {
        "a": [2, 3, 6, 7]
    }
