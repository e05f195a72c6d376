"""Compact == masked, for any network and any plan; gather and scatter; rounds."""

import copy

import pytest
import torch
import torch_pruning as tp
from torch import nn

from chanprune.channels import (
    CompactionError,
    Plan,
    compact,
    count,
    count_plan,
    gather,
    masked,
    scatter,
    trace,
)
from tests.networks import (
    SMALL,
    SMALL_SHAPE,
    TORCHVISION,
    TORCHVISION_SHAPE,
    Residual,
    but_slow,
    conv_norm,
    random_plan,
    randomise,
)

TORCHVISION_PLANS = {"vgg16_bn": 1, "resnet18": 12, "densenet121": 8}
PLANS = [(name, seed) for name in SMALL for seed in range(20)]
PLANS += [(name, seed) for name, plans in TORCHVISION_PLANS.items() for seed in range(plans)]
LONG = [("vgg16_bn", 0), *(("densenet121", seed) for seed in range(2, 8))]
TOLERANCE = 1e-9


def prepared(name: str, seed: int):
    torch.manual_seed(seed)
    small = name in SMALL
    model = randomise((SMALL if small else TORCHVISION)[name](), seed).double()
    shape = SMALL_SHAPE if small else TORCHVISION_SHAPE
    graph = trace(model, shape)
    images = torch.randn((4, *shape), dtype=torch.float64)
    return model, graph, random_plan(graph, seed), images


def close(left: torch.Tensor, right: torch.Tensor) -> bool:
    return bool((left - right).abs().max() <= TOLERANCE * max(1.0, right.abs().max().item()))


def mask_norms_only(model: nn.Module, graph, plan) -> nn.Module:
    """Zero scales and shifts alone, as the papers do; every layer must have a batch norm."""
    full = copy.deepcopy(model)
    keep = torch.from_numpy(graph.cut(plan).keep)
    for layer in graph.layers.values():
        if layer.kind == "norm":
            norm = full.get_submodule(layer.name)
            with torch.no_grad():
                norm.weight[~keep[torch.from_numpy(layer.outputs)]] = 0
                norm.bias[~keep[torch.from_numpy(layer.outputs)]] = 0
    return full


@pytest.mark.parametrize(("name", "seed"), but_slow(PLANS, *LONG))
def test_compact_equals_masked(name, seed):
    """Outputs in eval and train mode, and the gradients of every surviving parameter."""
    model, graph, plan, images = prepared(name, seed)
    result = compact(model, graph, plan)
    assert result.max_error <= TOLERANCE
    reference = masked(model, graph.cut(plan))
    assert close(result.model.eval()(images), reference.eval()(images))
    if seed >= 3 and name in TORCHVISION:
        return
    outputs = [network.train()(images) for network in (result.model, reference)]
    assert close(*outputs)
    weight = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weight).sum().backward()
    expected = gather({k: p.grad for k, p in reference.named_parameters()}, graph.cut(plan))
    for key, parameter in result.model.named_parameters():
        assert close(parameter.grad, expected[key]), key


@pytest.mark.parametrize("name", ["chain", "residual", "preactivation"])
def test_zero_scales_and_shifts_alone_make_the_mask(name):
    for seed in range(5):
        model, graph, plan, images = prepared(name, seed)
        reference = mask_norms_only(model, graph, plan).eval()
        assert close(compact(model, graph, plan).model.eval()(images), reference(images))


@pytest.mark.parametrize("name", SMALL)
def test_the_empty_plan_is_the_identity_bit_for_bit(name):
    model, graph, _, images = prepared(name, 0)
    result = compact(model, graph, Plan({}))
    assert torch.equal(result.model.eval()(images), model.eval()(images))
    assert result.model.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", SMALL)
def test_compaction_shares_nothing_and_changes_nothing(name):
    model, graph, plan, _ = prepared(name, 1)
    before = copy.deepcopy(model.state_dict())
    result = compact(model, graph, plan, absorb="bias")
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.fill_(7)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])


@pytest.mark.parametrize("name", SMALL)
def test_two_rounds_equal_one(name):
    for seed in range(5):
        model, graph, plan, images = prepared(name, seed)
        first = compact(model, graph, plan)
        later = random_plan(first.graph, seed + 100)
        second = compact(first.model, first.graph, later)
        direct = compact(model, graph, plan.then(later))
        assert torch.equal(second.model.eval()(images), direct.model.eval()(images))
        for key, tensor in direct.model.state_dict().items():
            assert torch.equal(tensor, second.model.state_dict()[key])


@pytest.mark.parametrize("name", but_slow([*SMALL, *TORCHVISION], "vgg16_bn"))
def test_counts_of_plan_module_and_tensors_agree(name):
    model, graph, plan, _ = prepared(name, 2)
    small = compact(model, graph, plan, check=False).model
    built = count(small, graph.input_shape)
    assert built == count_plan(model, graph, plan)
    assert built.params == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_gather_and_scatter_are_inverse(name):
    model, graph, plan, _ = prepared(name, 3)
    state = model.state_dict()
    small = gather(state, graph.cut(plan))
    zeros = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    again = gather(scatter(small, zeros, graph.cut(plan)), graph.cut(plan))
    assert all(torch.equal(again[key], tensor) for key, tensor in small.items())
    untouched = scatter(small, state, graph.cut(plan))
    assert all(torch.equal(untouched[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("name", ["chain", "residual", "grouped"])
def test_gather_serves_the_optimisers_state(name):
    """Momentum cut by the plan is what the compact network would have accumulated itself."""
    model, graph, plan, images = prepared(name, 4)
    networks = (compact(model, graph, plan).model.train(), masked(model, graph.cut(plan)).train())
    momenta = []
    for network in networks:
        optimiser = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)
        for step in range(3):
            optimiser.zero_grad()
            network(images + step).square().sum().backward()
            optimiser.step()
        momenta.append(
            {k: optimiser.state[p]["momentum_buffer"] for k, p in network.named_parameters()}
        )
    cut = gather(momenta[1], graph.cut(plan))
    assert all(close(momenta[0][key], tensor) for key, tensor in cut.items())


def test_compaction_on_the_meta_device_gives_the_shapes():
    with torch.device("meta"):
        empty = Residual()
    model = Residual()
    graph = trace(empty, SMALL_SHAPE)
    plan = random_plan(graph, 0)
    shapes = compact(empty, graph, plan, check=False).model.state_dict()
    real = compact(model, trace(model, SMALL_SHAPE), plan).model.state_dict()
    assert {k: t.shape for k, t in shapes.items()} == {k: t.shape for k, t in real.items()}


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"first.0": []}, "head would be a constant, which output cannot take"),
        ({"first.0": [3, 1]}, "ascending"),
        ({"first.0": [0, 12]}, "keeps channel 12"),
        ({"frist.0": [0]}, "known: input, first.0"),
        ({"head": [0]}, "must stay whole"),
        ({"first.0": [0, 1, 2, 3]}, "each of which must keep equally many"),
    ],
)
def test_plans_that_do_not_fit_are_refused(kept, message):
    model = SMALL["grouped"]()
    with pytest.raises(ValueError, match=message):
        compact(model, trace(model, SMALL_SHAPE), Plan(kept))


def test_the_self_check_finds_a_graph_that_is_wrong():
    """A network whose code was changed behind the graph's back is caught, and the layer named."""
    model = randomise(SMALL["chain"](), 0)
    graph = trace(model, SMALL_SHAPE)
    model.first[2] = nn.Softmax(1)
    with pytest.raises(CompactionError, match="they part at layer second.0"):
        compact(model, graph, Plan({"first.0": [0, 1, 2]}))


def test_channels_may_be_permuted():
    """Permuting a group's channels leaves the function, before and after pruning (E.1, 8)."""
    model, graph, _, images = prepared("residual", 5)
    group = graph.groups["stem.0"]
    order = torch.randperm(group.size)
    permuted = copy.deepcopy(model)
    state = permuted.state_dict()
    for tensor, dim in graph.group_axes("stem.0"):
        state[tensor].copy_(state[tensor].index_select(dim, order))
    assert close(permuted.eval()(images), model.eval()(images))
    kept = [1, 4, 6]
    moved = sorted(order.tolist().index(channel) for channel in kept)
    before = compact(model, graph, Plan({"stem.0": kept})).model.eval()(images)
    after = compact(permuted, graph, Plan({"stem.0": moved})).model.eval()(images)
    assert close(after, before)


@pytest.mark.parametrize(
    "name", but_slow(["chain", "residual", "dense", "vgg16_bn", "resnet18"], "vgg16_bn")
)
def test_torch_pruning_gives_the_same_network(name):
    """Oracle: the same kept channels give the same outputs and sizes."""
    torch.manual_seed(0)
    make, shape = (
        (SMALL[name], SMALL_SHAPE) if name in SMALL else (TORCHVISION[name], TORCHVISION_SHAPE)
    )
    model = randomise(make(), 0).eval()
    graph = trace(model, shape)
    plan = random_plan(graph, 1)
    plan = Plan({n: k for n, k in plan.kept.items() if graph.groups[n].producers})
    other = copy.deepcopy(model)
    images = torch.randn((2, *shape))
    dependencies = tp.DependencyGraph().build_dependency(other, images)
    for group_name, kept in plan.kept.items():
        group = graph.groups[group_name]
        module = other.get_submodule(group.producers[0])
        prune = (
            tp.prune_linear_out_channels
            if isinstance(module, nn.Linear)
            else tp.prune_conv_out_channels
        )
        gone = sorted(set(range(group.size)) - set(kept))
        if gone:
            dependencies.get_pruning_group(module, prune, idxs=gone).prune()
    ours = compact(model, graph, plan).model.eval()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in other.parameters())
    torch.testing.assert_close(ours(images), other(images), rtol=1e-4, atol=1e-5)


class Preactivated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.next = conv_norm(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.next(torch.relu(self.norm(x))) + x.mean((1, 2, 3), keepdim=True)


def test_gathering_before_the_batch_norm_is_exact():
    """select(BN(x)) == BN_sliced(select(x)), bit for bit (E.1, 2)."""
    norm = randomise(nn.BatchNorm2d(8), 0).eval()
    images = torch.randn(2, 8, 5, 5)
    index = [0, 3, 7]
    sliced = nn.BatchNorm2d(3).eval()
    sliced.load_state_dict({k: v[index] if v.dim() else v for k, v in norm.state_dict().items()})
    assert torch.equal(norm(images)[:, index], sliced(images[:, index]))
