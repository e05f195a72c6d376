"""The constants that dropped channels leave: where absorbing them is exact, and what is left."""

import copy

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


IN_PLACE = {
    "ReLU": nn.ReLU,
    "Hardsigmoid": nn.Hardsigmoid,
    "Threshold": lambda inplace: nn.Threshold(0.5, 2.0, inplace),
    "ELU": lambda inplace: nn.ELU(inplace=inplace),
    "Hardswish": nn.Hardswish,
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_an_activation_writes_over_is_not_taken_for_a_constant(name):
    """Channels that emit nothing go; the layers in front of them lose nothing."""
    results = []
    for inplace in (False, True):
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), IN_PLACE[name](inplace))
        rest = (conv_norm(6, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        model = randomise(nn.Sequential(first, *rest), 0).double().eval()
        norm = model.get_submodule("1.1")
        with torch.no_grad():
            norm.weight[:4], norm.bias[:4] = 0, 0
        error, absorbed = error_of(
            model, trace(model, SMALL_SHAPE), Plan({"1.0": range(4, 8)}), "bias"
        )
        assert error < 1e-12 and absorbed["1.0"].exact
        results.append(absorbed)
    assert results[0] == results[1]


class ReadAgain(nn.Module):
    """Reads a tensor again that an activation has written over; or twice what it returns."""

    def __init__(self, inplace):
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        self.act = nn.Threshold(0.5, 2.0, inplace)
        self.rest = nn.Sequential(conv_norm(6, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        seen = self.front(images)
        active = self.act(seen)
        return self.head(self.rest((seen if self.act.inplace else active) + active))


def test_a_tensor_that_is_written_over_is_known_by_its_earlier_name_too():
    errors = []
    for inplace in (False, True):
        model = randomise(ReadAgain(inplace), 0).double().eval()
        torch.manual_seed(1)
        plan = Plan({"rest.0.0": range(4, 8)})
        errors.append(error_of(model, trace(model, SMALL_SHAPE), plan, "bias")[0])
    assert errors[0] == pytest.approx(errors[1], rel=1e-12)


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


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (5, 2), (3, 2)])
def test_what_is_absorbed_is_right_on_the_mean_over_the_positions(kernel, padding, bias):
    """No other constant errs less in squares; without a bias the batch norm behind takes it."""
    model = network(kernel, padding, bias=bias)[:4]
    constant_channels(model, ["0.1"], [1, 5])
    result = compact(
        model, trace(model, SMALL_SHAPE), Plan({"0.0": [0, 2, 3, 4, 6, 7]}), absorb="bias"
    )
    images = torch.randn(2, *SMALL_SHAPE, dtype=torch.float64)
    error = result.model.eval()(images) - model.eval()(images)
    assert error.abs().max() > 1e-3
    assert error.mean((2, 3)).abs().max() < 1e-12
    before_norm = (
        error / (model[3].weight / (model[3].running_var + model[3].eps).sqrt())[:, None, None]
    )
    assert result.absorbed["0.0"].border_error == pytest.approx(before_norm.abs().max().item())


def pointwise(model: nn.Module) -> nn.Module:
    """Make every convolution one of 1x1, which has no border."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d):
                options = {"groups": child.groups, "bias": child.bias is not None}
                sizes = child.in_channels, child.out_channels, 1, child.stride
                setattr(module, name, nn.Conv2d(*sizes, **options))
    return model


@pytest.mark.parametrize("constant", ["none", "all", "first", "last"])
@pytest.mark.parametrize("name", [name for name in SMALL if name != "biased"])
def test_what_is_called_exact_is(name, constant):
    """Group by group; and channels that are constants wherever they are emitted are exact."""
    torch.manual_seed(0)
    model = randomise(pointwise(SMALL[name]()), 0).double()
    whole = copy.deepcopy(model.state_dict())
    graph = trace(model, SMALL_SHAPE)
    chosen = {"none": slice(0), "all": slice(None), "first": slice(1), "last": slice(-1, None)}
    for group in graph.prunable("together"):
        model.load_state_dict(whole)
        width = group.size // group.blocks
        stays = [c for c in range(group.size) if c % width % 2 == 0]
        for norm in group.norms[chosen[constant]]:
            repeats = model.get_submodule(norm).num_features // group.size
            channels = [c for c in range(group.size * repeats) if c // repeats not in stays]
            constant_channels(model, [norm], channels)
        error, absorbed = error_of(model, graph, Plan({group.name: stays}), "bias")
        is_exact = absorbed[group.name].exact
        assert error < 1e-9 or not is_exact, group.name
        are_constants = constant == "all" and len(group.norms) >= len(group.producers)
        assert is_exact or not are_constants or group.gates, group.name


def test_a_gate_makes_of_a_constant_what_the_image_decides():
    torch.manual_seed(0)
    model = randomise(pointwise(SMALL["gated"]()), 0).double()
    constant_channels(model, ["first.1"], [1, 5])
    graph = trace(model, SMALL_SHAPE)
    error, absorbed = error_of(model, graph, Plan({"first.0": [0, 2, 3, 4, 6, 7]}), "bias")
    assert error > 1e-6
    assert not absorbed["first.0"].exact


def test_a_gate_that_is_a_constant_makes_another_constant():
    torch.manual_seed(0)
    model = SMALL["gated"]()
    model.gate = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Sigmoid())
    model = randomise(pointwise(model), 0).double()
    constant_channels(model, ["first.1", "gate.1"], [1, 5])
    with torch.no_grad():
        model.gate[0].weight[:, [1, 5]] = 0
    graph = trace(model, SMALL_SHAPE)
    error, absorbed = error_of(model, graph, Plan({"first.0": [0, 2, 3, 4, 6, 7]}), "bias")
    assert error < 1e-9
    assert absorbed["first.0"].exact


def test_channels_without_a_batch_norm_are_not_called_exact():
    model = SMALL["biased"]().double()
    graph = trace(model, SMALL_SHAPE)
    error, absorbed = error_of(model, graph, Plan({"first": [0, 1, 2]}), "bias")
    assert error > 1e-3
    assert not absorbed["first"].exact


def test_what_a_block_without_channels_emits_is_known_whatever_its_scales():
    """Its branch is a constant, and goes with the channels of the sum that it is added to."""
    torch.manual_seed(0)
    model = randomise(pointwise(SMALL["residual"]()), 0).double()
    constant_channels(model, ["inner.1"], list(range(6)))
    constant_channels(model, ["stem.1"], [2, 6])
    graph = trace(model, SMALL_SHAPE)
    plan = Plan({"inner.0": (), "stem.0": [0, 1, 3, 4, 5, 7]})
    error, absorbed = error_of(model, graph, plan, "bias")
    assert error < 1e-9
    assert all(report.exact for report in absorbed.values())


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


class Shared(nn.Module):
    """One layer, behind which a batch norm stands or does not, reads two others."""

    def __init__(self, has_norm: bool):
        super().__init__()
        self.first, self.second = conv_norm(3, 8), conv_norm(3, 8)
        reader = nn.Conv2d(8, 6, 1, bias=not has_norm)
        self.reader = nn.Sequential(reader, nn.BatchNorm2d(6) if has_norm else nn.Identity())
        self.out = nn.Linear(6, 3)

    def forward(self, images):
        first, second = self.reader(self.first(images)), self.reader(self.second(images))
        return self.out((2 * first + second).mean((2, 3)))


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("constants", [(2.0, 2.0), (1.0, 3.0), (0.0, 2.0)])
def test_a_layer_that_is_called_twice_takes_the_mean_of_its_constants(has_norm, constants):
    model = randomise(Shared(has_norm), 0).double()
    with torch.no_grad():
        for branch, constant in zip((model.first, model.second), constants, strict=True):
            branch[1].weight[:4], branch[1].bias[:4] = 0, constant
    graph = trace(model, SMALL_SHAPE)
    error, absorbed = error_of(model, graph, Plan({"first.0": range(4, 8)}), "bias")
    is_alike = constants[0] == constants[1]
    assert absorbed["first.0"].exact == is_alike
    assert (error < 1e-12) == is_alike
    plain = error_of(model, graph, Plan({"first.0": range(4, 8)}), "none")[0]
    assert error < plain


def test_rectified_normal_agrees_with_sampling_and_is_exact_at_zero():
    shift = torch.tensor([-1.0, 0.0, 0.3, 2.0, -0.5, 0.7], dtype=torch.float64)
    scale = torch.tensor([0.5, 1.0, -0.8, 0.3, 0.0, 0.0], dtype=torch.float64)
    samples = torch.relu(shift + scale * torch.randn(400_000, 6, dtype=torch.float64))
    mean, spread = rectified_normal(shift, scale)
    torch.testing.assert_close(mean, samples.mean(0), rtol=0.02, atol=2e-3)
    torch.testing.assert_close(spread, samples.std(0), rtol=0.02, atol=2e-3)
    assert mean[4:].tolist() == [0.0, pytest.approx(0.7)]
    assert spread[4:].tolist() == [0.0, 0.0]
