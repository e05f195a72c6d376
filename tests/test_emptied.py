"""Groups without a channel: blocks become shortcuts, dense layers vanish, nothing else breaks."""

import pytest
import torch
from torch import Tensor, fx, nn

from chanprune.channels import Plan, compact, count, count_plan, masked, select_global, trace
from chanprune.models import build
from tests.networks import SMALL, SMALL_SHAPE, but_slow, random_plan, randomise

SHAPE = (3, 16, 16)


def network(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    model = build(name, num_classes=5, in_channels=3, image_size=16, **options)
    return randomise(model, 0).double()


def modules(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if not list(module.children())}


@pytest.mark.parametrize("group", ["bn1", "conv1", "conv2"])
def test_a_preactivation_block_without_a_channel_is_its_shortcut(group):
    model = network("preresnet29", width=0.25)
    graph = trace(model, SHAPE)
    result = compact(model, graph, Plan({f"stages.1.1.{group}": ()}))
    gone = {f"stages.1.1.{name}" for name in ("bn1", "conv1", "bn2", "conv2", "bn3", "conv3")}
    assert modules(model) - modules(result.model) >= gone
    model.stages[1][1] = nn.Identity()
    images = torch.randn(2, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(result.model.eval()(images), model.eval()(images))


def test_a_projection_block_without_a_channel_is_its_projection():
    model = network("preresnet29", width=0.25)
    graph = trace(model, SHAPE)
    result = compact(model, graph, Plan({"stages.1.0.conv2": ()}))
    model.stages[1][0] = model.stages[1][0].shortcut
    images = torch.randn(2, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(result.model.eval()(images), model.eval()(images))


@pytest.mark.parametrize("options", [{"shortcut": "A"}, {"shortcut": "B"}])
def test_a_postactivation_block_without_a_channel_adds_a_constant(options):
    """Its second batch norm makes a constant of nothing, which the sum still gets."""
    model = network("resnet20", width=0.5, **options)
    graph = trace(model, SHAPE)
    result = compact(model, graph, Plan({"stages.1.1.conv1": (), "stages.2.0.conv1": ()}))
    state = result.model.state_dict()
    assert [key for key in state if key.startswith("stages.1.1")] == ["stages.1.1.bn2.bias"]
    norm = model.get_submodule("stages.1.1.bn2")
    constant = norm.bias - norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(state["stages.1.1.bn2.bias"], constant)


def test_a_dense_layer_without_a_channel_appends_nothing():
    model = network("densenet40", width=0.25)
    graph = trace(model, SHAPE)
    plan = graph.cut(Plan({"stages.0.3.bn": ()})).complete
    assert plan.kept["stages.0.3.conv"] == ()
    whole = graph.groups["stages.0.5.bn"].size
    assert len(plan.kept["stages.0.5.bn"]) == whole - 3
    result = compact(model, graph, plan)
    assert not any(key.startswith("stages.0.3") for key in result.model.state_dict())
    assert result.graph.groups["stages.0.5.bn"].size == whole - 3
    assert (
        result.model.get_submodule("stages.1.conv").in_channels
        == graph.groups["stages.1.bn"].size - 3
    )


def emptied(graph, seed: int, number: int) -> Plan:
    """A random plan that empties some groups besides."""
    groups = [g.name for g in graph.prunable() if graph.may_be_emptied(g.name)]
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [groups[i] for i in order[:number]]
    return Plan({**random_plan(graph, seed).kept, **{name: () for name in chosen}})


NETWORKS = {
    "resnet20": {"width": 0.5},
    "preresnet29": {"width": 0.25},
    "resnext29": {"width": 0.03, "cardinality": 4},
    "preresnext29": {"width": 0.03, "cardinality": 4},
    "densenet40": {"width": 0.25},
    "densenet100": {"width": 0.25, "bottleneck": True, "transition": "pool"},
    "condensenet50": {"width": 0.5},
}


@pytest.mark.parametrize("name", but_slow(NETWORKS, "densenet100"))
@pytest.mark.parametrize("seed", range(3))
def test_compact_equals_masked_and_rounds_compose(name, seed):
    model = network(name, **NETWORKS[name])
    graph = trace(model, SHAPE)
    plan = emptied(graph, seed, 1 + 2 * seed)
    first = compact(model, graph, plan)
    assert isinstance(first.model, fx.GraphModule)
    built, planned = count(first.model, SHAPE), count_plan(model, graph, plan)
    assert {layer.name: layer for layer in built.layers} == {
        layer.name: layer for layer in planned.layers
    }
    assert built.params == sum(p.numel() for p in first.model.parameters())
    later = emptied(first.graph, seed + 10, 1)
    second = compact(first.model, first.graph, later)
    at_once = compact(model, graph, graph.cut(plan).complete.then(first.graph.cut(later).complete))
    images = torch.randn(2, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(
        second.model.eval()(images), at_once.model.eval()(images), rtol=1e-9, atol=1e-9
    )


def constant_channels(model: nn.Module, norm: str) -> None:
    """Let a batch norm emit its shift, whatever it sees."""
    module = model.get_submodule(norm)
    with torch.no_grad():
        module.weight.zero_()
        module.bias.abs_().add_(0.2)


class Branch(nn.Module):
    """Two pre-activation dense layers of 1x1 convolutions, where absorbing is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(10), nn.BatchNorm2d(14)])
        self.convs = nn.ModuleList(
            [nn.Conv2d(6, 4, 1, bias=False), nn.Conv2d(10, 4, 1, bias=False)]
        )
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(torch.relu(norm(x)))], 1)
        return self.head(torch.relu(self.norms[2](x)).mean((2, 3)))


@pytest.mark.parametrize("layer", [0, 1])
def test_the_constants_of_a_dropped_dense_layer_are_absorbed(layer):
    model = randomise(Branch(), 0).double()
    constant_channels(model, f"norms.{layer}")
    model.norms[2].bias.data.abs_()
    graph = trace(model, SHAPE)
    plan = Plan({f"norms.{layer}": ()})
    images = torch.randn(4, *SHAPE, dtype=torch.float64)
    dropped = compact(model, graph, plan).model.eval()(images)
    absorbed = compact(model, graph, plan, absorb="bias")
    expected = model.eval()(images)
    assert (dropped - expected).abs().max() > 1e-3
    assert (absorbed.model.eval()(images) - expected).abs().max() < 1e-12
    assert all(report.exact for report in absorbed.absorbed.values())


def test_the_constants_of_a_dropped_residual_branch_are_absorbed():
    """They travel along the stream, into every later batch norm and projection."""
    model = network("preresnet29", width=0.25)
    constant_channels(model, "stages.0.1.bn3")
    graph = trace(model, SHAPE)
    plan = Plan({"stages.0.1.conv2": ()})
    images = torch.randn(4, *SHAPE, dtype=torch.float64)
    absorbed = compact(model, graph, plan, absorb="bias").model.eval()(images)
    assert (absorbed - model.eval()(images)).abs().max() < 1e-12


def test_the_constants_of_a_postactivation_block_join_its_own():
    model = network("resnet20", width=0.5)
    constant_channels(model, "stages.0.1.bn1")
    model.stages[0][1].conv2 = nn.Conv2d(8, 8, 1, bias=False).double()
    graph = trace(model, SHAPE)
    images = torch.randn(4, *SHAPE, dtype=torch.float64)
    absorbed = compact(model, graph, Plan({"stages.0.1.conv1": ()}), absorb="bias")
    assert (absorbed.model.eval()(images) - model.eval()(images)).abs().max() < 1e-12


@pytest.mark.parametrize(("name", "group"), [("chain", "second.0"), ("shared", "first.0")])
def test_a_network_cut_in_two_is_refused(name, group):
    graph = trace(SMALL[name](), SMALL_SHAPE)
    assert not graph.may_be_emptied(group)
    with pytest.raises(ValueError, match=f"keeps no channel of {group}, but "):
        assert graph.cut(Plan({group: ()})).after


def test_selection_empties_only_what_it_may():
    scores = {"block": torch.arange(8.0), "chain": torch.arange(8.0) / 10}
    chosen = select_global(scores, 0.6, min_channels=0, min_share=0.0, may_be_emptied=["block"])
    assert len(chosen.kept["chain"]) == 1 and chosen.at_floor == ["chain"]
    scores = {"block": torch.arange(8.0) / 10, "chain": torch.arange(8.0)}
    chosen = select_global(scores, 0.6, min_channels=0, min_share=0.0, may_be_emptied=["block"])
    assert chosen.kept["block"] == []


class Halves(nn.Module):
    """Convolves both halves of its channels behind a pool; one may have nothing to read."""

    def __init__(self, pool) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 8, 3, padding=1), pool
        self.left, self.right = nn.Conv2d(4, 6, 3, stride=2), nn.Conv2d(4, 6, 3, stride=2)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).relu().chunk(2, 1)
        return self.head((self.left(self.pool(a)) + self.right(self.pool(b))).relu())


POOLS = {
    "maximum": nn.MaxPool2d(3, 2, 1),
    "dilated": nn.MaxPool2d(2, stride=1, dilation=2),
    "average": nn.AvgPool2d((2, 3), stride=(2, 1), padding=(0, 1)),
    "maximum called": lambda x: nn.functional.max_pool2d(x, 3, 2, 1),
    "dilated called": lambda x: nn.functional.max_pool2d(x, 2, 1, dilation=2),
    "average called": lambda x: nn.functional.avg_pool2d(x, (2, 3), padding=(0, 1)),
}


@pytest.mark.parametrize("name", POOLS)
def test_what_is_empty_behind_a_pool_is_as_large_as_the_pool_leaves_it(name):
    torch.manual_seed(0)
    model = Halves(POOLS[name]).double().eval()
    graph = trace(model, SHAPE)
    cut = graph.cut(Plan({"stem": [0, 2, 3]}))
    small = compact(model, graph, cut.plan).model
    for size in (16, 19):
        images = torch.randn(2, 3, size, 16, dtype=torch.float64)
        torch.testing.assert_close(small(images), masked(model, cut)(images))
