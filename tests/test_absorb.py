"""The constants that dropped channels leave: where absorbing them is exact, and what is left."""

import pytest
import torch
from torch import nn

from chanprune.channels import Plan, compact, trace
from chanprune.channels.absorb import rectified_normal
from tests.networks import SMALL, SMALL_SHAPE, conv_norm, randomise


def constant_channels(model: nn.Module, norms: list[str], channels: list[int]) -> None:
    """Let these channels emit ReLU of their shift, whatever they see."""
    with torch.no_grad():
        for name in norms:
            norm = model.get_submodule(name)
            norm.weight[channels] = 0
            norm.bias[channels] = norm.bias[channels].abs() + 0.2


def error_of(model, graph, plan, absorb):
    images = torch.randn(4, *graph.input_shape, dtype=torch.float64)
    result = compact(model, graph, plan, absorb=absorb)
    difference = result.model.eval()(images) - model.eval()(images)
    return difference.abs().max().item(), result.absorbed


def network(kernel: int, padding: int, **options) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 6, kernel, padding=padding, **options)
    model = nn.Sequential(conv_norm(3, 8), nn.MaxPool2d(2), conv, nn.BatchNorm2d(6), nn.ReLU())
    return randomise(model, 0).double()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 0)])
def test_unpadded_convolutions_absorb_exactly(kernel, padding, bias):
    model = network(kernel, padding, bias=bias)
    constant_channels(model, ["0.1"], [1, 5])
    graph = trace(model, SMALL_SHAPE)
    plan = Plan({"0.0": [0, 2, 3, 4, 6, 7]})
    assert error_of(model, graph, plan, "none")[0] > 0.05
    error, absorbed = error_of(model, graph, plan, "bias")
    assert error < 1e-12
    assert absorbed["0.0"].exact


def test_padded_convolutions_leave_the_border_and_say_so():
    model = network(3, 1, bias=False)
    constant_channels(model, ["0.1"], [1, 5])
    graph = trace(model, SMALL_SHAPE)
    plan = Plan({"0.0": [0, 2, 3, 4, 6, 7]})
    dropped, _ = error_of(model, graph, plan, "none")
    error, absorbed = error_of(model, graph, plan, "bias")
    assert 1e-3 < error < dropped
    assert not absorbed["0.0"].exact
    assert absorbed["0.0"].border_error > 1e-3
    assert absorbed["0.0"].spread == 0


def test_linear_layers_absorb_exactly_behind_pooling_and_flatten():
    model = randomise(SMALL["chain"](), 0).double()
    constant_channels(model, ["second.1"], [0, 9])
    constant_channels(model, ["norm"], [2])
    graph = trace(model, SMALL_SHAPE)
    plan = Plan({"second.0": list(range(1, 9)), "hidden": [0, 1, *range(3, 12)]})
    assert error_of(model, graph, plan, "none")[0] > 0.01
    error, absorbed = error_of(model, graph, plan, "bias")
    assert error < 1e-12
    assert absorbed["second.0"].exact and absorbed["hidden"].exact


def test_constants_behind_a_gather_are_absorbed():
    """A pre-activation block: the batch norm behind the 1x1 convolution takes the constant."""
    torch.manual_seed(0)
    model = SMALL["preactivation"]()
    model.inner[0][0] = nn.Conv2d(8, 6, 1, bias=False)
    model = randomise(model, 0).double()
    constant_channels(model, ["norms.0"], [3])
    graph = trace(model, SMALL_SHAPE)
    error, absorbed = error_of(model, graph, Plan({"norms.0": [0, 1, 2, 4, 5, 6, 7]}), "bias")
    assert error < 1e-12
    assert absorbed["norms.0"].exact


def test_the_constants_of_a_residual_sum_are_added():
    torch.manual_seed(0)
    model = SMALL["residual"]()
    model.wide[0] = nn.Conv2d(8, 12, 1)
    model.inner[0] = nn.Conv2d(8, 6, 1)
    model = randomise(model, 0).double()
    constant_channels(model, ["stem.1", "outer.1"], [2, 6])
    graph = trace(model, SMALL_SHAPE)
    error, absorbed = error_of(model, graph, Plan({"stem.0": [0, 1, 3, 4, 5, 7]}), "bias")
    assert error < 1e-12
    assert absorbed["stem.0"].exact


def test_a_consumer_without_bias_or_batch_norm_is_reported():
    torch.manual_seed(0)
    model = randomise(
        nn.Sequential(conv_norm(3, 8), nn.Conv2d(8, 4, 1, bias=False), nn.ReLU()), 0
    ).double()
    constant_channels(model, ["0.1"], [1])
    graph = trace(model, SMALL_SHAPE)
    error, absorbed = error_of(model, graph, Plan({"0.0": [0, *range(2, 8)]}), "bias")
    assert not absorbed["0.0"].exact
    assert absorbed["0.0"].border_error >= error - 1e-12


def test_channels_that_still_vary_are_not_called_exact():
    model = network(1, 0)
    graph = trace(model, SMALL_SHAPE)
    absorbed = error_of(model, graph, Plan({"0.0": list(range(7))}), "bias")[1]
    assert not absorbed["0.0"].exact
    assert absorbed["0.0"].spread > 0.1


def test_rectified_normal_agrees_with_sampling_and_is_exact_at_zero():
    shift = torch.tensor([-1.0, 0.0, 0.3, 2.0, -0.5, 0.7], dtype=torch.float64)
    scale = torch.tensor([0.5, 1.0, -0.8, 0.3, 0.0, 0.0], dtype=torch.float64)
    samples = torch.relu(shift + scale * torch.randn(400_000, 6, dtype=torch.float64))
    mean, spread = rectified_normal(shift, scale)
    torch.testing.assert_close(mean, samples.mean(0), rtol=0.02, atol=2e-3)
    torch.testing.assert_close(spread, samples.std(0), rtol=0.02, atol=2e-3)
    assert mean[4:].tolist() == [0.0, pytest.approx(0.7)]
    assert spread[4:].tolist() == [0.0, 0.0]
