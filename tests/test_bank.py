"""The bank: what is active trains like a small network, what is not keeps every bit."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chanprune.channels import Bank, Plan, compact, count, gather, masked, trace
from tests.networks import SMALL, SMALL_SHAPE, random_plan, randomise

NAMES = tuple(SMALL)


def prepared(name, adam=False):
    torch.manual_seed(0)
    model = randomise(SMALL[name](), 0).double().train()
    graph = trace(model, SMALL_SHAPE)
    return model, graph, Bank(model, graph, make_optimiser(model, adam))


def make_optimiser(model, adam=False):
    half = len(list(model.parameters())) // 2
    groups = [
        {"params": list(model.parameters())[:half], "weight_decay": 0.1},
        {"params": list(model.parameters())[half:], "weight_decay": 0.0},
    ]
    if adam:
        return torch.optim.Adam(groups, lr=0.01)
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)


def step(model, optimiser, number):
    random = torch.Generator().manual_seed(number)
    images = torch.randn(4, *SMALL_SHAPE, generator=random, dtype=torch.float64)
    labels = torch.randint(0, 5, (4,), generator=random)
    optimiser.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimiser.step()
    return loss.item()


def everything(model, optimiser):
    """All tensors of a whole network and its optimiser, by name."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            state[f"{key} {name}"] = value.clone()
    return state


def axes_of(name, graph):
    return graph.axes.get(name.split(" ")[-1], ())


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_active_trains_like_the_compact_network_and_the_rest_keeps_every_bit(name, adam):
    model, graph, bank = prepared(name, adam)
    for number in range(2):
        step(model, bank.optimiser, number)
    for number in range(4):
        plan = random_plan(graph, number)
        before = everything(model, bank.optimiser)
        small = compact(model, graph, plan, check=False).model
        alone = make_optimiser(small, adam)
        for key in {key.split(" ")[0] for key in before if " " in key}:
            own = {n: before[f"{key} {n}"] for n, _ in model.named_parameters()}
            cut = own if key == "step" else gather(own, graph.cut(plan))
            for parameter_name, parameter in small.named_parameters():
                alone.state[parameter][key] = cut[parameter_name].clone()
        bank.activate(graph.cut(plan))
        assert bank.macs == count(small, SMALL_SHAPE).macs
        for repeat in range(2):
            loss = step(model, bank.optimiser, 10 * number + repeat)
            assert loss == pytest.approx(step(small, alone, 10 * number + repeat), rel=1e-12)
        bank.activate(None)
        after = everything(model, bank.optimiser)
        expected = everything(small, alone)
        keep = graph.cut(plan).keep
        for tensor, value in after.items():
            axes = axes_of(tensor, graph)
            if value.dim() == 0 or not axes:
                torch.testing.assert_close(value, expected[tensor])
                continue
            part = gather({tensor.split(" ")[-1]: value}, graph.cut(plan))
            torch.testing.assert_close(next(iter(part.values())), expected[tensor])
            rows = torch.from_numpy(keep[axes[0].channels])
            assert torch.equal(value[~rows], before[tensor][~rows]), tensor
            if len(axes) > 1 and axes[1].blocks == 1:
                columns = torch.from_numpy(keep[axes[1].channels])
                assert torch.equal(value[:, ~columns], before[tensor][:, ~columns]), tensor


@pytest.mark.parametrize("name", NAMES)
def test_a_step_on_active_channels_is_a_step_of_the_masked_network(name):
    """Spec D, 1: batch norms normalise with the statistics of the batch in both."""
    model, graph, bank = prepared(name)
    plan = random_plan(graph, 3)
    whole = masked(model, graph.cut(plan)).train()
    images = torch.randn(4, *SMALL_SHAPE, dtype=torch.float64)
    bank.activate(graph.cut(plan))
    logits = model(images)
    torch.testing.assert_close(logits, whole(images), rtol=1e-10, atol=1e-10)
    logits.square().sum().backward()
    whole(images).square().sum().backward()
    gradients = {n: p.grad for n, p in whole.named_parameters()}
    small = gather(gradients, graph.cut(plan))
    for parameter_name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, small[parameter_name], rtol=1e-8, atol=1e-8, msg=parameter_name
        )


@pytest.mark.parametrize("name", ["chain", "residual", "dense"])
def test_choosing_without_a_step_changes_nothing(name):
    model, graph, bank = prepared(name)
    step(model, bank.optimiser, 0)
    parameters = dict(model.named_parameters())
    before = everything(model, bank.optimiser)
    for number in range(3):
        bank.activate(graph.cut(random_plan(graph, number)))
        with bank.whole():
            assert everything(model, bank.optimiser).keys() == before.keys()
            for tensor, value in everything(model, bank.optimiser).items():
                assert torch.equal(value, before[tensor]), tensor
        assert bank.plan == random_plan(graph, number)
    bank.activate(None)
    assert all(p is parameters[n] for n, p in model.named_parameters())
    assert [type(module) for module in model.modules()] == [
        type(module) for module in SMALL[name]().modules()
    ]


def test_with_everything_active_it_is_plain_training():
    model, graph, bank = prepared("residual")
    plain = copy.deepcopy(model)
    alone = make_optimiser(plain)
    everything_kept = Plan({g.name: range(g.size) for g in graph.prunable()})
    for number in range(5):
        bank.activate(graph.cut(everything_kept))
        assert step(model, bank.optimiser, number) == step(plain, alone, number)
    bank.activate(None)
    for name, tensor in everything(plain, alone).items():
        assert torch.equal(everything(model, bank.optimiser)[name], tensor), name


def test_what_enters_has_the_momentum_that_it_had():
    model, graph, bank = prepared("chain")
    group = graph.prunable()[0]
    step(model, bank.optimiser, 0)
    norm = group.norms[0]
    buffer = bank.optimiser.state[model.get_parameter(f"{norm}.weight")]["momentum_buffer"]
    before = buffer.clone()
    bank.activate(graph.cut(Plan({group.name: [0, 1]})))
    bank.activate(graph.cut(Plan({group.name: [1, 2]})))
    own = bank.optimiser.state[model.get_parameter(f"{norm}.weight")]["momentum_buffer"]
    assert torch.equal(own, before[1:3])
    assert np.count_nonzero(before.numpy()) == len(before)


def test_tensors_are_really_small():
    model, graph, bank = prepared("chain")
    whole = sum(p.numel() for p in model.parameters())
    bank.activate(graph.cut(Plan({g.name: [0] for g in graph.prunable()})))
    assert sum(p.numel() for p in model.parameters()) < whole / 4
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(c.weight.shape[0] == c.out_channels for c in convolutions)


def layout(tensor):
    return [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "biased"])
def test_every_change_of_tensors_is_counted_and_moments_have_their_layout(name):
    """What was recorded of a step holds as long as nothing is counted."""
    model, graph, bank = prepared(name)
    model.to(memory_format=torch.channels_last)
    step(model, bank.optimiser, 0)

    def tensors():
        moments = [state["momentum_buffer"] for state in bank.optimiser.state.values()]
        return [tensor.data_ptr() for tensor in (*model.parameters(), *moments)]

    plan = random_plan(graph, 0)
    for change in (lambda: None, lambda: bank.activate(graph.cut(plan)), lambda: None, bank.whole):
        before, seen = tensors(), bank.changes
        opened = change()
        if opened is not None:
            with opened:
                pass
        assert (tensors() != before) == (bank.changes > seen)
        for parameter, state in bank.optimiser.state.items():
            assert layout(state["momentum_buffer"]) == layout(parameter)
