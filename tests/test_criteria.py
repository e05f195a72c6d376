"""Criteria: each against its definition in a plain loop, and against Torch-Pruning's function."""

import math

import pytest
import torch
import torch.nn.functional as F

from chanprune.channels import Plan, compact, trace
from chanprune.criteria import CRITERIA, Subject
from chanprune.methods import PruneOptions, select
from tests.networks import SMALL, SMALL_SHAPE, randomise

NETWORKS = ("residual", "dense", "grouped", "preactivation")
BY_FILTERS = ("l1", "l2", "lamp", "median", "taylor")


def batches(number=12):
    images = torch.rand(number, *SMALL_SHAPE, generator=torch.Generator().manual_seed(3))
    return images.double(), torch.arange(number) % 5


def subject_of(name):
    model = randomise(SMALL[name](), 0).double().eval()
    return Subject(model, trace(model, SMALL_SHAPE), lambda number: [batches()], seed=1)


def rows_of(subject, group, first, weights):
    """List the filters of each channel; the columns that read it where it has none."""
    numbers = range(group.start, group.start + group.size)
    rows = [[] for _ in numbers]
    layers = subject.graph.layers
    if group.producers:
        for name in group.producers[:1] if first else group.producers:
            for place, number in enumerate(layers[name].outputs):
                if number in numbers:
                    rows[number - group.start] += weights[name][place].flatten().tolist()
        return rows
    readers = [x for x in layers.values() if x.kind in ("conv", "linear")]
    readers = [x for x in readers if any(n in numbers for n in x.inputs)]
    for layer in readers[:1] if first else readers:
        weight = weights[layer.name]
        for place, number in enumerate(layer.inputs):
            if number in numbers:
                width, height = len(layer.inputs) // layer.blocks, len(weight) // layer.blocks
                block = place // width
                own = weight[block * height : (block + 1) * height, place % width]
                rows[number - group.start] += own.flatten().tolist()
    return rows


def expected(name, subject, group, first):
    """Score a group by the definition, number by number."""
    layers = [x for x in subject.graph.layers.values() if x.kind in ("conv", "linear")]
    weights = {x.name: subject.model.get_submodule(x.name).weight for x in layers}
    if name == "taylor":
        images, labels = batches()
        loss = F.cross_entropy(subject.model(images), labels)
        slopes = torch.autograd.grad(loss, list(weights.values()))
        weights = {n: w * g for (n, w), g in zip(weights.items(), slopes, strict=True)}
    rows = rows_of(subject, group, first, {n: w.detach() for n, w in weights.items()})
    if name == "l1":
        return [sum(map(abs, row)) for row in rows]
    if name == "taylor":
        return [abs(sum(row)) for row in rows]
    if name == "median":
        return [sum(math.dist(row, other) for other in rows) for row in rows]
    squares = [sum(x * x for x in row) for row in rows]
    if name == "l2":
        return [math.sqrt(square) for square in squares]
    return [square / sum(other for other in squares if other >= square) for square in squares]


@pytest.mark.parametrize("grouping", ["group", "first"])
@pytest.mark.parametrize("name", BY_FILTERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_scores_are_those_of_the_definition(network, name, grouping):
    subject = subject_of(network)
    options = {} if name == "lamp" else {"normalise": "none"}
    criterion = CRITERIA[name](grouping=grouping, **options)
    groups = subject.graph.prunable("together")
    scores = criterion.scores(subject, groups)
    for group in groups:
        wanted = expected(name, subject, group, grouping == "first")
        assert scores[group.name].tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", [n for n in CRITERIA if n != "own"])
def test_every_criterion_leaves_the_network_alone_and_serves_a_selection(name):
    subject = subject_of("residual")
    subject.model.requires_grad_(False)
    before = {key: tensor.clone() for key, tensor in subject.model.state_dict().items()}
    groups = subject.graph.prunable("together")
    scores = CRITERIA[name]().scores(subject, groups)
    again = CRITERIA[name]().scores(subject, groups)
    assert all(torch.equal(scores[key], again[key]) for key in scores)
    assert all(score.isfinite().all() and (score >= 0).all() for score in scores.values())
    for key, tensor in subject.model.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert all(parameter.grad is None for parameter in subject.model.parameters())
    kept = select(scores, subject.graph, PruneOptions(ratio=0.4)).kept
    assert compact(subject.model, subject.graph, Plan(kept)).max_error <= 1e-9


@pytest.mark.parametrize("normalise", ["mean", "max"])
def test_normalised_scores_do_not_depend_on_a_groups_own_size(normalise):
    subject = subject_of("residual")
    groups = subject.graph.prunable("together")
    criterion = CRITERIA["l1"](normalise=normalise)
    before = criterion.scores(subject, groups)
    with torch.no_grad():
        subject.model.wide[0].weight.mul_(7)
    after = criterion.scores(subject, groups)
    for name, score in before.items():
        torch.testing.assert_close(after[name], score)
        top = score.mean() if normalise == "mean" else score.max()
        assert top.item() == pytest.approx(1)


def test_batch_norm_scales_are_summed_over_what_is_coupled():
    subject = subject_of("residual")
    scores = CRITERIA["scale"]().scores(subject, subject.graph.prunable("together"))
    for group in subject.graph.prunable("together"):
        norms = [subject.model.get_submodule(norm) for norm in group.norms]
        wanted = sum(norm.weight.detach().abs() for norm in norms)
        torch.testing.assert_close(scores[group.name], wanted)


def test_a_scope_of_the_layer_takes_the_same_share_of_each_group():
    subject = subject_of("residual")
    groups = subject.graph.prunable("together")
    scores = CRITERIA["l1"](normalise="none").scores(subject, groups)
    kept = select(scores, subject.graph, PruneOptions(ratio=0.5, scope="layer")).kept
    for group in groups:
        assert len(kept[group.name]) == pytest.approx(group.size / 2, abs=1)
        best = scores[group.name].topk(len(kept[group.name])).indices.sort().values
        assert best.tolist() == kept[group.name]


@pytest.mark.parametrize("name", ["l1", "l2", "lamp", "taylor"])
def test_scores_are_torch_prunings_where_the_definitions_agree(name):
    tp = pytest.importorskip("torch_pruning")
    subject = subject_of("residual")
    model = subject.model
    images, labels = batches()
    F.cross_entropy(model(images), labels).backward()
    one = {"group_reduction": "first"}
    theirs = {
        "l1": tp.importance.MagnitudeImportance(p=1, normalizer=None, **one),
        "l2": tp.importance.MagnitudeImportance(p=2, normalizer=None, **one),
        "lamp": tp.importance.LAMPImportance(**one),
        "taylor": tp.importance.TaylorImportance(normalizer=None, multivariable=True, **one),
    }[name]
    dependencies = tp.DependencyGraph().build_dependency(model, example_inputs=images)
    options = {} if name == "lamp" else {"normalise": "none"}
    ours = CRITERIA[name](grouping="first", **options)
    for group in subject.graph.prunable("together"):
        layer = model.get_submodule(group.producers[0])
        coupled = dependencies.get_pruning_group(
            layer, tp.prune_conv_out_channels, idxs=list(range(group.size))
        )
        wanted = theirs(coupled).double()
        got = ours.scores(subject, [group])[group.name].double()
        torch.testing.assert_close(
            got.square() if name == "l2" else got, wanted, rtol=1e-5, atol=1e-9
        )
