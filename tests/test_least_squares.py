"""Least squares: the weights of what is left are those that a plain loop finds, and repair it."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chanprune.channels import Plan, compact, count, refit, trace
from chanprune.channels.patches import inputs_at, matrix, outputs_at, put_matrix
from chanprune.channels.ridge import STRENGTHS, Equations, correction
from tests.networks import SMALL, SMALL_SHAPE, conv_norm, random_plan, randomise
from tests.test_pipeline import changed, execute

# Layer -> (what is added to its output, the batch norm between).
BESIDE = {
    "residual": {"outer.0": ("stem", "outer.1"), "shortcut.0": ("last", "shortcut.1")},
    "preactivation": {"outer.0": ("stem", None)},
}


def images(number=10, dtype=torch.float64, seed=0, shape=SMALL_SHAPE):
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def batches(*args, **options):
    return [(part, None) for part in images(*args, **options).split(5)]


def random_network(name):
    torch.manual_seed(0)
    return randomise(SMALL[name](), 0).double().eval()


def cut_network(model, plan=None, absorb="bias", shape=SMALL_SHAPE):
    graph = trace(model, shape)
    plan = random_plan(graph, 0) if plan is None else plan
    return compact(model, graph, plan, absorb=absorb, check=False).model, graph.cut(plan)


def seen_by(model, names, inputs):
    """Return module name -> (input, output) of its call."""
    seen, handles = {}, []
    for name in names:

        def note(module, given, output, name=name):
            seen[name] = given[0].clone(), output.clone()

        handles.append(model.get_submodule(name).register_forward_hook(note))
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return seen


def columns(module, inputs, group):
    """Return (positions, inputs of one group times kernel), image by image."""
    if isinstance(module, nn.Linear):
        return inputs
    part = inputs.chunk(module.groups, 1)[group]
    unfolded = F.unfold(part, module.kernel_size, module.dilation, module.padding, module.stride)
    return unfolded.transpose(1, 2).flatten(0, 1)


def ridge(inputs, missing, strength):
    """Minimise |missing - inputs x|^2 + ridge |x|^2."""
    scale = (strength * inputs.square().sum(0).mean()).sqrt()
    stacked = torch.cat([inputs, scale * torch.eye(inputs.shape[1]).double()])
    wanted = torch.cat([missing, missing.new_zeros(inputs.shape[1], missing.shape[1])])
    return torch.linalg.lstsq(stacked, wanted).solution


def solved_by_loop(module, norm, inputs, wanted):
    """Give one layer its weights, on every position."""
    rows = [columns(module, inputs, g) for g in range(getattr(module, "groups", 1))]
    missing = wanted - module(inputs)
    missing = missing.movedim(1, -1).flatten(0, -2) if missing.dim() > 2 else missing
    held = torch.arange(len(missing)) * len(inputs) // len(missing) % 5 == 4
    shift = missing.mean(0)
    parts = (missing - shift).chunk(len(rows), 1)
    rows_mean = [own.mean(0) for own in rows]
    rows = [own - mean for own, mean in zip(rows, rows_mean, strict=True)]
    errors = {}
    for strength in STRENGTHS:
        errors[strength] = sum(
            (part[held] - own[held] @ ridge(own[~held], part[~held], strength)).square().sum()
            for own, part in zip(rows, parts, strict=True)
        )
    best = min(errors, key=errors.get)
    shapes = [(own.shape[1], part.shape[1]) for own, part in zip(rows, parts, strict=True)]
    if errors[best] >= sum(part[held].square().sum() for part in parts):
        solutions = [torch.zeros(shape).double() for shape in shapes]
    else:
        solutions = [ridge(own, p, best) for own, p in zip(rows, parts, strict=True)]
    change = torch.cat([solution.T for solution in solutions]).reshape(module.weight.shape)
    means = torch.cat([m @ solution for m, solution in zip(rows_mean, solutions, strict=True)])
    with torch.no_grad():
        module.weight += change
        if module.bias is not None:
            module.bias += shift - means
        else:
            norm.running_mean -= shift - means


def loop(model, small, cut, inputs, beside):
    """Solve layer after layer, each with the network's present inputs."""
    layers, names = cut.before.layers, [*dict(model.named_modules())][1:]
    whole = seen_by(model, names, inputs)
    for name, layer in cut.after.layers.items():
        if layer.kind not in ("conv", "linear"):
            continue
        ours = seen_by(small, names, inputs)
        kept = torch.from_numpy(cut.keep[layers[name].outputs])
        wanted = whole[name][1][:, kept]
        if name in beside:
            other, norm = beside[name]
            lacks = whole[other][1][:, kept] - ours[other][1]
            if norm is not None:
                norm = small.get_submodule(norm)
                slope = norm.weight / (norm.running_var + norm.eps).sqrt()
                lacks = lacks / slope[:, None, None]
            wanted = wanted + lacks
        if (wanted - ours[name][1]).norm() > 1e-9:
            norm = small.get_submodule(*layer.normalised_by) if layer.normalised_by else None
            solved_by_loop(small.get_submodule(name), norm, ours[name][0], wanted)


@pytest.mark.parametrize("name", ["chain", "residual", "grouped", "dense"])
def test_the_weights_are_those_of_a_plain_loop(name):
    """A sum, a concatenation, grouped and depthwise convolutions, a linear layer behind flatten."""
    model = random_network(name)
    if name == "dense":
        model.grow = nn.Conv2d(8, 4, 3, padding=1).double()
    small, cut = cut_network(model)
    expected = copy.deepcopy(small)
    loop(model, expected, cut, images(), BESIDE.get(name, {}))
    refits = refit(model, small, cut, batches())
    assert all(fitted.left is None for fitted in refits.values())
    for key, tensor in expected.state_dict().items():
        torch.testing.assert_close(small.state_dict()[key], tensor, rtol=1e-6, atol=1e-7)


def test_what_is_a_combination_of_kept_channels_is_recovered():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3)
    ).double()
    with torch.no_grad():
        mixed = torch.randn(4, 4, dtype=torch.float64)
        model[0].weight[4:] = torch.einsum("ij,jchw->ichw", mixed, model[0].weight[:4])
    small, cut = cut_network(model, Plan({"0": range(4)}))
    fresh = images(seed=1)
    scale = model(fresh).std()
    assert (small(fresh) - model(fresh)).abs().max() > 0.1 * scale
    refits = refit(model, small, cut, batches())
    assert (small(fresh) - model(fresh)).abs().max() < 1e-4 * scale
    assert refits["1"].before > 0.1 and refits["1"].after < 1e-4


@pytest.mark.parametrize("name", SMALL)
def test_no_layer_is_worse_on_the_images_that_it_saw(name):
    model = random_network(name)
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    small, cut = cut_network(model)
    again = copy.deepcopy(small)
    counts = count(small, SMALL_SHAPE)
    refits = refit(model, small, cut, batches())
    assert refits and all(fitted.after <= fitted.before for fitted in refits.values())
    assert any(fitted.after < 0.95 * fitted.before for fitted in refits.values())
    assert all(fitted.left is None for fitted in refits.values())
    assert count(small, SMALL_SHAPE) == counts
    assert refit(model, again, cut, batches()) == refits, "the same bits again"
    for key, tensor in small.state_dict().items():
        assert tensor.isfinite().all() and torch.equal(tensor, again.state_dict()[key])
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in state.items())
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize(("number", "inputs"), [(40, 12), (12, 40), (12, 12)])
def test_both_forms_have_the_same_solution(number, inputs):
    torch.manual_seed(0)
    rows = torch.randn(3, number, inputs, dtype=torch.float64)
    missing = torch.randn(3, number, 5, dtype=torch.float64)
    for strength in STRENGTHS:
        primal, dual = (
            Equations(rows, missing, is_primal).solved(strength) for is_primal in (1, 0)
        )
        torch.testing.assert_close(primal, dual, rtol=1e-6, atol=1e-8)


def test_inputs_that_are_always_zero_or_constant_keep_their_weights():
    rows = torch.zeros(1, 30, 4, dtype=torch.float64)
    rows[:, :, 2] = 1.5
    missing = images(1, shape=(30, 3))
    held = torch.arange(30) % 5 == 4
    for centred in (True, False):
        delta, shift = correction(rows, missing, held, centred)
        assert delta.isfinite().all() and not delta[..., [0, 1, 3]].any()
        assert bool(shift.any()) == centred
    rows[:, :, 0] = missing[..., 0]
    delta, _ = correction(rows, missing[..., :1], held, True)
    assert not delta[..., 1:].any() and delta[0, 0, 0] == pytest.approx(1, abs=1e-5)


GEOMETRIES = {
    "strided": (nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0)), (4, 9, 7)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding=2, groups=2, bias=False), (4, 9, 7)),
    "same": (nn.Conv2d(4, 6, 3, padding="same"), (4, 5, 6)),
    "reflecting": (nn.Conv2d(4, 4, 3, padding=2, groups=4, padding_mode="reflect"), (4, 5, 6)),
    "circular": (nn.Conv1d(4, 6, 5, padding=2, padding_mode="circular"), (4, 9)),
    "volumes": (nn.Conv3d(2, 4, 3, stride=2, padding=1), (2, 5, 4, 3)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), (4, 5, 4)),
    "transposed, grouped": (nn.ConvTranspose2d(4, 8, (2, 3), (2, 3), groups=4), (4, 3, 4)),
    "transposed, dilated": (nn.ConvTranspose1d(4, 6, 3, 1, 3, dilation=2), (4, 9)),
    "linear": (nn.Linear(7, 5), (3, 7)),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_rows_times_weights_is_what_a_layer_computes(name):
    module, shape = GEOMETRIES[name]
    module = copy.deepcopy(module).double()
    axis = -1 if name == "linear" else 1
    inputs = images(3, shape=shape)
    if inputs.dim() == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    output = module(inputs).detach()
    number = output.numel() // output.shape[axis]
    chosen = torch.randperm(number)[: number // 2]
    rows = inputs_at(module, inputs, tuple(output.shape[2:]) if axis == 1 else (), chosen)
    products = (rows @ matrix(module).mT).transpose(0, 1).flatten(1)
    bias = 0 if module.bias is None else module.bias
    torch.testing.assert_close(products + bias, outputs_at(axis, output, chosen))
    weight = module.weight.detach().clone()
    values = matrix(module)
    put_matrix(module, torch.zeros_like(values))
    put_matrix(module, values)
    assert torch.equal(module.weight, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_parameters_of_any_precision_are_solved_in_float64(dtype):
    model = random_network("residual").to(dtype)
    small, cut = cut_network(model)
    refits = refit(model, small, cut, batches(dtype=dtype))
    assert all(parameter.dtype == dtype for parameter in small.parameters())
    assert sum(fitted.after < fitted.before for fitted in refits.values()) >= 4
    assert all(tensor.isfinite().all() for tensor in small.state_dict().values())


def test_more_inputs_than_images_and_channels_that_are_dead():
    torch.manual_seed(0)
    model = nn.Sequential(conv_norm(3, 16), nn.Flatten(), nn.Linear(16 * 16 * 16, 5))
    model = randomise(model, 0).double().eval()
    with torch.no_grad():
        model[0][1].weight[:9], model[0][1].bias[:9] = 0, -1
    small, cut = cut_network(model, Plan({"0.0": range(3, 13)}), absorb="none")
    refits = refit(model, small, cut, batches())
    assert refits["2"].after < refits["2"].before
    assert all(tensor.isfinite().all() for tensor in small.state_dict().values())


class Odd(nn.Module):
    """Two layers beside one that does not do what its weight says."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 1)
        self.tied, self.other = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
        self.scaled = Scaled(6, 6, 1)
        self.last = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.last(torch.relu(self.scaled(y) + self.tied(x) + self.other(x)))


class Scaled(nn.Conv2d):
    def forward(self, input):  # noqa: A002
        return 2 * super().forward(input)


def test_what_cannot_be_solved_is_left_and_listed():
    torch.manual_seed(0)
    model = Odd().double().eval()
    small, cut = cut_network(model, Plan({"first": range(3)}))
    small.other.weight = small.tied.weight
    state = copy.deepcopy(small.state_dict())
    refits = refit(model, small, cut, batches())
    assert "its weights times its input" in refits["scaled"].left
    assert "shares" in refits["tied"].left and "shares" in refits["other"].left
    assert math.isnan(refits["tied"].after)
    for name in ("scaled", "tied"):
        assert torch.equal(small.get_submodule(name).weight, state[f"{name}.weight"])
    assert refits["last"].after < refits["last"].before


def test_values_that_are_not_finite_change_nothing():
    model = random_network("biased")
    small, cut = cut_network(model)
    state = copy.deepcopy(small.state_dict())
    refits = refit(model, small, cut, [(images() * math.nan, None)])
    assert all("not finite" in fitted.left for fitted in refits.values())
    assert all(torch.equal(tensor, small.state_dict()[key]) for key, tensor in state.items())


def test_a_layer_with_computed_weights_and_a_block_without_channels():
    torch.manual_seed(0)
    model = SMALL["residual"]()
    nn.utils.parametrizations.weight_norm(model.outer[0])
    model = randomise(model, 0).double().eval()
    small, cut = cut_network(model, Plan({"inner.0": range(4), "wide.0": ()}))
    refits = refit(model, small, cut, batches())
    assert refits["outer.0"].after < refits["outer.0"].before
    assert "last.0" not in refits and "wide.0" not in refits
    fresh = images(seed=1)
    worse, _ = cut_network(model, Plan({"inner.0": range(4), "wide.0": ()}))
    errors = [(network(fresh) - model(fresh)).norm() for network in (small, worse)]
    assert errors[0] < errors[1]


def test_an_upsampling_network_in_one_dimension():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.ConvTranspose1d(8, 6, 4, 2, 1),
        nn.ReLU(),
        nn.Conv1d(6, 2, 3),
    )
    model = randomise(model, 0).double().eval()
    small, cut = cut_network(model, Plan({"0": range(4)}), shape=(3, 20))
    refits = refit(model, small, cut, batches(shape=(3, 20)))
    assert refits.keys() == {"3", "5"}
    assert all(fitted.after < fitted.before for fitted in refits.values())


def test_without_values_or_images_it_is_refused():
    model = random_network("chain")
    small, cut = cut_network(model)
    with pytest.raises(ValueError, match="no images"):
        refit(model, small, cut, [])
    with pytest.raises(ValueError, match="meta device"):
        refit(copy.deepcopy(model).to("meta"), small, cut, batches())


def test_a_run_repairs_and_tells(tmp_path, capsys):
    prune = {"least_squares": 100, "recalibrate": 64}
    summary = execute(changed(prune=prune, train={"epochs": 3}), tmp_path / "run")
    stages = {row["stage"]: row["val_accuracy"] for row in summary["stages"]}
    names = list(stages)
    place = names.index("pruned, least squares")
    assert names[place - 1] == "pruned, constants absorbed"
    assert names[place + 1] == "pruned, statistics anew"
    assert stages["pruned, least squares"] > stages["pruned, constants absorbed"]
    told = capsys.readouterr().out
    assert "least squares: outputs of" in told and "->" in told
