"""Learned group convolution: what is dropped and when, and the converted network."""

import json

import pytest
import torch
from safetensors.torch import load_file

import chanprune
from chanprune.channels import count, trace
from chanprune.methods import Setting, Step
from chanprune.methods.lgc import LearnedGroups, group_lasso_gradient, most_important
from chanprune.models import build
from chanprune.pipeline.prepare import prepare
from chanprune.processes.errors import UserError
from tests.test_pipeline import changed, execute

SHAPE = (3, 16, 16)
NUM_STEPS = 24


def condensenet(groups=4, condensation=4, depth=50, **options):
    torch.manual_seed(0)
    sizes = {"num_classes": 10, "in_channels": 3, "image_size": 16, "width": 0.5}
    return build(
        f"condensenet{depth}", groups=groups, condensation=condensation, **{**sizes, **options}
    )


def begun(model, **options):
    method = LearnedGroups(**options)
    method.before_training(model, trace(model, SHAPE), Setting(1.0, NUM_STEPS))
    return method


def train(model, method, watch=lambda step: None, steps=range(NUM_STEPS), decay=0.1):
    optimiser = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=decay
    )
    draws = torch.Generator().manual_seed(0)
    for index in steps:
        step = Step(index, 0, 0.05, index / NUM_STEPS)
        method.before_step(step)
        optimiser.zero_grad()
        model(torch.randn(4, *SHAPE, generator=draws)).square().mean().backward()
        method.after_backward(step)
        optimiser.step()
        method.after_step(step)
        watch(index)


def by_group(weight, groups):
    """Columns (G, I) of which a group's filters have any weight."""
    return torch.stack([weight[g::groups, :, 0, 0].abs().sum(0) for g in range(groups)]) > 0


@pytest.mark.parametrize("groups, condensation", [(4, 4), (4, 8), (2, 4), (4, 2)])
def test_inputs_are_dropped_in_steps_and_stay_dropped(groups, condensation):
    model = condensenet(groups, condensation)
    method, seen = begun(model), []

    def watch(index):
        kept = {name: mask.clone() for name, mask in method.kept.items()}
        for name, conv in model.learned_convolutions().items():
            assert not (by_group(conv.weight, groups) & ~kept[name]).any(), "dropped is zero"
        if seen:
            for name, mask in kept.items():
                assert not (mask & ~seen[-1][1][name]).any(), "and stays so"
        seen.append((method.stage, kept))

    train(model, method, watch)
    stages = [stage for stage, _ in seen]
    assert stages == sorted(stages) and set(stages) == set(range(condensation))
    last = condensation - 1
    for index, stage in enumerate(stages):
        assert stage == min(last, int(2 * last * index / NUM_STEPS + 1e-9))
    for stage, kept in seen:
        for mask in kept.values():
            widths = mask.sum(1)
            assert (widths == widths[0]).all(), "every group keeps as many"
            if stage == last:
                assert widths[0] == mask.shape[1] // condensation


def test_the_inputs_that_a_group_weighs_least_go():
    weight = torch.tensor([[3.0, 1, 2, 9], [1, 8, 7, 2], [0, 1, 5, 1], [1, 0, 1, 1]])
    kept = torch.ones(2, 4, dtype=torch.bool)
    stays = most_important(weight[:, :, None, None], kept, 2)
    assert stays.tolist() == [[False, False, True, True], [False, True, True, False]]
    kept[0, 3] = False
    assert most_important(weight[:, :, None, None], kept, 2)[0].tolist() == [
        True,
        False,
        True,
        False,
    ]


def test_importance_is_a_sum_of_absolute_values():
    """Of the two columns 3, 0 and 2, 2 the first has the larger sum of squares."""
    weight = torch.tensor([[3.0, 2], [0, 2]])[:, :, None, None]
    stays = most_important(weight, torch.ones(1, 2, dtype=torch.bool), 1)
    assert stays.tolist() == [[False, True]]


def test_the_lasso_acts_until_the_last_drop():
    model = condensenet()
    method = begun(model, group_lasso=1.0)
    acted = []
    for index in range(NUM_STEPS):
        step = Step(index, 0, 0.05, index / NUM_STEPS)
        method.before_step(step)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        method.after_backward(step)
        pull = sum(conv.weight.grad.abs().sum() for conv in model.learned_convolutions().values())
        acted.append((method.stage, bool(pull)))
    assert {pull for stage, pull in acted if stage == method.condensation - 1} == {False}
    assert {pull for stage, pull in acted if stage < method.condensation - 1} == {True}


def test_the_classifier_keeps_the_features_with_the_largest_weights():
    method = begun(model := condensenet())
    converted, cut = (c.state["classifier.weight"].abs().sum(0) for c in method.conversions(model))
    assert len(cut) == len(converted) // 2
    torch.testing.assert_close(cut.sort().values, converted.sort().values[-len(cut) :])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_gradient_of_the_group_lasso(groups):
    weight = torch.randn(8, 6, 1, 1, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        weight[:, 2] *= 1e-6
    squares = weight[:, :, 0, 0].view(-1, groups, 6).square().sum(0)
    expected = torch.autograd.grad(squares.clamp(min=1e-6).sqrt().sum(), weight)[0]
    torch.testing.assert_close(group_lasso_gradient(weight.detach(), groups), expected)


@pytest.mark.parametrize("groups, condensation", [(4, 4), (4, 8), (2, 4)])
def test_the_converted_network_computes_the_same(groups, condensation):
    model = condensenet(groups, condensation)
    method = begun(model, cut_classifier=False)
    train(model, method)
    (conversion,) = method.conversions(model)
    converted = condensenet(groups, condensation, **conversion.options)
    converted.load_state_dict(conversion.state)
    images = torch.randn(2, *SHAPE, dtype=torch.float64)
    expected, got = (m.double().eval()(images) for m in (model, converted))
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    assert not converted.learned_convolutions()


@pytest.mark.parametrize(
    "depth, flops, params", [(86, 65_812_394, 0), (182, 512_658_874, 4_209_226)]
)
def test_products_have_the_published_counts(depth, flops, params):
    sizes = {"num_classes": 10, "in_channels": 3, "image_size": 32}
    with torch.device("meta"):
        converted = build(f"condensenet{depth}", converted=True, half_classifier=True, **sizes)
    counts = count(converted, (3, 32, 32))
    assert counts.conventions()["condensenet"] == flops
    assert params in (0, counts.params)


@pytest.mark.slow
def test_a_run_ends_with_the_converted_network(tmp_path):
    config = changed(
        model={"name": "condensenet50", "width": 0.5},
        method={"name": "lgc", "group_lasso": 1e-5},
        train={"epochs": 3},
        finetune={"epochs": 0},
    )
    summary = execute(config, tmp_path / "run")
    rows = {row["stage"]: row for row in summary["stages"]}
    trained, converted, cut = rows["trained"], rows["converted"], rows["converted, classifier cut"]
    assert converted["test_accuracy"] == trained["test_accuracy"]
    assert cut["params"] < converted["params"] < trained["params"]
    assert converted["macs"] < 0.7 * trained["macs"]
    model = chanprune.load(tmp_path / "run")
    counts = count(model, (1, 16, 16))
    stored = load_file(tmp_path / "run/model.safetensors")
    assert counts.params == summary["params"]
    assert counts.params == sum(stored[name].numel() for name, _ in model.named_parameters())
    description = json.loads((tmp_path / "run/model.json").read_text())
    assert description["architecture"]["converted"] is True


def test_other_networks_are_refused():
    for model in ({"name": "vgg11", "width": 0.0625}, {"name": "condensenet50", "converted": True}):
        with pytest.raises(UserError, match="take model=condensenet50"):
            prepare(changed(model=model, method={"name": "lgc"}))


def test_a_schedule_without_a_step_for_each_drop_drops_all_the_same():
    model = condensenet(condensation=8)
    method = LearnedGroups()
    method.before_training(model, trace(model, SHAPE), Setting(1.0, 3))
    assert "too few" in method.advice
    for index in range(3):
        method.before_step(Step(index, 0, 0.1, index / 3))
    assert all(mask.sum(1).eq(mask.shape[1] // 8).all() for mask in method.kept.values())
