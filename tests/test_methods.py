"""Network slimming's arithmetic (spec E.1, 11 and 12) and the learning-rate schedules."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from chanprune.channels import select_global, taylor_scores, trace
from chanprune.methods import METHODS, Plain, PruneOptions, Setting, Step
from chanprune.methods.scales import remarks_on_cut, scaled_norms
from chanprune.methods.slimming import Slimming
from chanprune.pipeline.optimiser import (
    TrainOptions,
    make_optimiser,
    schedule_of,
    set_lr,
    setting_of,
)
from chanprune.pipeline.schedule import Schedule
from tests.networks import SMALL, SMALL_SHAPE, randomise

OPTIONS = TrainOptions(
    epochs=1,
    batch_size=8,
    lr=0.1,
    optimiser="sgd",
    momentum=0.9,
    nesterov=True,
    weight_decay=1e-4,
    weight_decay_norm=1e-4,
    weight_decay_bias=1e-4,
    schedule="step",
    milestones=(0.5, 0.75),
    lr_factor=0.1,
    warmup=0.0,
    label_smoothing=0.0,
    precision="fp32",
    compile=False,
    save_every_minutes=10.0,
)
NOW = Step(index=0, epoch=0, lr=0.1, progress=0.0)


def test_one_step_without_data_moves_a_scale_by_penalty_and_decay():
    """lr * (weight * sign + decay * scale) * (1 + momentum) on the first Nesterov step."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 4),
        nn.BatchNorm1d(4),
    )
    start = torch.tensor([0.5, -0.5, 0.0, 2.0])
    with torch.no_grad():
        model[1].weight.copy_(start)
        model[5].weight.copy_(start)
    before = {name: p.clone() for name, p in model.named_parameters()}
    method = Slimming(sparsity_weight=1e-4)
    method.before_training(model, trace(model, SMALL_SHAPE), Setting(lr_travel=1.0))
    optimiser = make_optimiser(model, OPTIONS)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    method.after_backward(NOW)
    optimiser.step()
    expected = start - 0.1 * (1e-4 * start.sign() + 1e-4 * start) * 1.9
    for norm in (model[1], model[5]):
        torch.testing.assert_close(norm.weight.detach(), expected, rtol=0, atol=1e-9)
        assert norm.weight[2] == 0
    assert 0.5 - model[1].weight[0].item() == pytest.approx(2.85e-5, rel=1e-2)
    only_decay = before["0.weight"] * (1 - 0.1 * 1e-4 * 1.9)
    torch.testing.assert_close(model[0].weight.detach(), only_decay)


@pytest.mark.parametrize("start", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("name", ["slimming", "prioritized"])
def test_a_travel_shorter_than_the_start_is_told_before_training(name, start):
    options = {"decreasing": False} if name == "prioritized" else {}

    def advice(travel, lr_travel=500.0):
        model = SMALL["chain"]()
        for norm in scaled_norms(model):
            nn.init.constant_(norm.weight, start)
        method = METHODS[name](travel=travel, **options)
        method.before_training(model, trace(model, SMALL_SHAPE), Setting(lr_travel=lr_travel))
        return method.advice

    assert advice(1.01 * start) == advice(0.0) == ""
    assert f"scales start at {start:g}" in advice(0.5 * start)
    assert f"train 2.0 times as long (train.epochs), or give method.travel={start:g}" in advice(
        0.5 * start
    )
    too_short = advice(0.5 * start, lr_travel=start)
    assert "times as long" in too_short and "method.travel" not in too_short


def test_the_default_travel_is_in_proportion_to_where_scales_start():
    def travel(start):
        model = SMALL["chain"]()
        for norm in scaled_norms(model):
            nn.init.constant_(norm.weight, start)
        setting = Setting(lr_travel=1e5)
        return Slimming().before_training(model, trace(model, SMALL_SHAPE), setting)["travel"]

    assert travel(0.5) == pytest.approx(6.6) and travel(1.0) == pytest.approx(13.2)


@pytest.mark.parametrize(
    ("unused", "in_use", "removed", "lost"),
    [
        ([1e-4] * 70, [0.5] * 30, 70, 0),
        ([1e-4] * 70, [0.5] * 30, 40, 0),
        ([1e-4] * 70, [0.5] * 30, 90, 20),
        ([1e-3] * 70, [5e-3] * 30, 90, 0),
        ([], [0.3 + 0.001 * i for i in range(100)], 30, 30),
        ([], [0.3] * 100, 0, 0),
    ],
)
def test_a_cut_through_channels_in_use_is_told(unused, in_use, removed, lost):
    scores = {"a": torch.tensor((unused + in_use)[::2]), "b": torch.tensor((unused + in_use)[1::2])}
    selection = select_global(scores, removed / 100, min_share=0.0)
    told = remarks_on_cut(scores, selection)
    assert len(told) == bool(lost)
    assert not lost or f"{lost} of these channels are in use" in told[0]


def travelled(weight: float, decay: float) -> float:
    """Simulate an unused scale under the paper's schedule: 160 epochs of 782 steps."""
    schedule = Schedule("step", 0.1, 160 * 782)
    scale, velocity, momentum = 0.5, 0.0, 0.9
    for step in range(schedule.num_steps):
        lr = schedule.at(step)
        gradient = decay * scale + weight * ((scale > 0) - (scale < 0))
        velocity = momentum * velocity + gradient
        scale -= lr * (gradient + momentum * velocity)
    return abs(scale)


def test_the_papers_schedule_brings_unused_scales_to_zero():
    travel = Schedule("step", 0.1, 160 * 782).travel(0.9)
    assert travel == pytest.approx(66_001, rel=1e-4)
    assert travelled(1e-4, 1e-4) < 1e-6
    assert travelled(1e-5, 1e-4) < 1e-6
    assert travelled(0, 1e-4) == pytest.approx(0.5 * math.exp(-1e-4 * travel), rel=0.01)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_travel_is_what_a_constant_gradient_moves_a_parameter_by(momentum):
    """Adam's steps are of the rate's length whatever the momentum; SGD's add up."""
    for optimiser in ("sgd", "adam"):
        options = replace(OPTIONS, optimiser=optimiser, momentum=momentum, weight_decay_bias=0.0)
        setting = setting_of(options, 2000, 0, PruneOptions(ratio=0.5))
        model = nn.BatchNorm1d(1, affine=True)
        stepper = make_optimiser(model, replace(options, weight_decay_norm=0.0))
        schedule = schedule_of(options, 2000)
        for step in range(2000):
            set_lr(stepper, schedule.at(step))
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            stepper.step()
        assert 1 - model.weight.item() == pytest.approx(setting.lr_travel, rel=0.01)


def test_travel_and_weight_are_two_names_of_one_thing():
    model = SMALL["chain"]()
    graph = trace(model, SMALL_SHAPE)
    facts = Slimming(travel=3.0).before_training(model, graph, Setting(lr_travel=6000.0))
    assert facts == {"sparsity_weight": pytest.approx(5e-4), "travel": pytest.approx(3.0)}
    facts = Slimming(sparsity_weight=5e-4).before_training(model, graph, Setting(lr_travel=6000.0))
    assert facts["travel"] == pytest.approx(3.0)
    for norm in scaled_norms(model):
        nn.init.constant_(norm.weight, 0.5)
    paper = Slimming().before_training(model, graph, Setting(lr_travel=66_001.0))
    assert paper == {"sparsity_weight": pytest.approx(1e-4, rel=1e-4), "travel": pytest.approx(6.6)}
    short = Slimming().before_training(model, graph, Setting(lr_travel=100.0))
    assert short["sparsity_weight"] == 0.01
    with pytest.raises(ValueError, match="not both"):
        Slimming(1e-4, travel=1.0).before_training(model, graph, Setting(lr_travel=100.0))


def test_the_smallest_scales_go():
    model = randomise(SMALL["chain"](), 0)
    graph = trace(model, SMALL_SHAPE)
    method = Slimming()
    selection, scores = method.select_channels(model, graph, PruneOptions(ratio=0.5))
    every = torch.cat(list(scores.values())).sort().values
    assert selection.removed == 15
    assert selection.threshold == pytest.approx(every[14].item())
    for name, kept in selection.kept.items():
        assert (scores[name][kept] > selection.threshold).all()


def test_by_taylor_the_least_important_go():
    model = randomise(SMALL["chain"](), 0)
    graph = trace(model, SMALL_SHAPE)
    images, labels = torch.randn(40, *SMALL_SHAPE), torch.randint(5, (40,))
    method = Slimming(criterion="taylor")
    method.before_pruning(model, graph, lambda number: [(images, labels)])
    selection, scores = method.select_channels(model, graph, PruneOptions(ratio=0.5))
    expected = taylor_scores(model, graph, graph.prunable(), [(images, labels)])
    assert scores.keys() == expected.keys()
    for name, kept in selection.kept.items():
        torch.testing.assert_close(scores[name], expected[name])
        assert (scores[name][kept] > selection.threshold).all()


def test_penalties_end_with_the_train_stage():
    graph = trace(SMALL["chain"](), SMALL_SHAPE)
    assert type(Slimming().finetune_hooks(graph)) is Plain


def test_every_parameter_is_in_the_group_that_its_weight_decay_names():
    model = SMALL["chain"]()
    options = TrainOptions(
        **{**vars(OPTIONS), "weight_decay": 1.0, "weight_decay_norm": 2.0, "weight_decay_bias": 3.0}
    )
    decay = {
        id(p): group["weight_decay"]
        for group in make_optimiser(model, options).param_groups
        for p in group["params"]
    }
    found = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert found["first.0.weight"] == 1.0
    assert found["first.1.weight"] == found["first.1.bias"] == found["norm.weight"] == 2.0
    assert found["head.bias"] == 3.0
    assert len(found) == len(decay)


@given(epochs=st.integers(1, 200), steps=st.integers(1, 50))
def test_step_schedules_drop_at_their_milestones_for_every_number_of_epochs(epochs, steps):
    total = epochs * steps
    schedule = Schedule("step", 0.1, total, (0.5, 0.75), 0.1)
    rates = [schedule.at(step) for step in range(total)]
    assert all(a >= b for a, b in zip(rates, rates[1:], strict=False))
    counted = [sum(math.isclose(r, rate) for r in rates) for rate in (0.1, 0.01, 0.001)]
    first, second = round(total * 0.5), round(total * 0.75)
    assert counted == [first, second - first, total - second]


@given(total=st.integers(1, 500), warmup=st.sampled_from([0.0, 0.1, 0.4]))
def test_cosine_schedules_rise_and_fall(total, warmup):
    schedule = Schedule("cosine", 0.1, total, warmup=warmup)
    rates = [schedule.at(step) for step in range(total)]
    assert all(0 < rate <= 0.1 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert schedule.travel(0.5) == pytest.approx(2 * sum(rates))
