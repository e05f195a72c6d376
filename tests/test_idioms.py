"""A network is proven, whatever its forward is written like, or refused by name when traced."""

import copy
import dataclasses
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, remove_weight_norm, spectral_norm, weight_norm

from chanprune.channels import (
    CompactionError,
    Plan,
    UnsupportedNetwork,
    compact,
    count,
    masked,
    trace,
)
from tests.idioms import FOLLOWED, NONZERO, REFUSED, SHAPE, Idiom, between
from tests.networks import SMALL_SHAPE, Chain, Residual, conv_norm, randomise
from tests.proof import prove


def network(forward) -> nn.Module:
    torch.manual_seed(0)
    return randomise(Idiom(forward), 0).double().eval()


def flat(output) -> list:
    """All that an output holds, in order."""
    if dataclasses.is_dataclass(output):
        output = [getattr(output, field.name) for field in dataclasses.fields(output)]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [leaf for part in output for leaf in flat(part)]
    return [output]


def agree(left, right) -> bool:
    pairs = list(zip(flat(left), flat(right), strict=True))
    return all(
        torch.allclose(a, b, rtol=1e-9, atol=1e-9) if isinstance(a, Tensor) else a == b
        for a, b in pairs
    )


def plans(graph) -> list[Plan]:
    """Half of every group, one channel of every group, and a random part."""
    draws = np.random.default_rng(0)
    sizes = {g.name: g.size for g in graph.prunable("together") if g.blocks == 1}
    return [
        Plan({name: range(0, size, 2) for name, size in sizes.items()}),
        Plan({name: [size - 1] for name, size in sizes.items()}),
        Plan({n: sorted(draws.choice(s, (s + 2) // 3, replace=False)) for n, s in sizes.items()}),
    ]


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_followed_computes_what_the_masked_network_does(name):
    net = network(FOLLOWED[name])
    graph = trace(net, SHAPE)
    images = torch.randn(3, *SHAPE, dtype=torch.float64)
    for plan in plans(graph):
        result = compact(net, graph, plan)
        assert result.max_error <= 1e-9
        assert agree(result.model(images), masked(net, graph.cut(plan))(images))
    trained = [flat(n.train()(images)) for n in (net, result.model)]
    shapes = [[getattr(leaf, "shape", leaf) for leaf in leaves] for leaves in trained]
    assert shapes[0] == shapes[1]
    for group in graph.prunable("together"):
        if graph.may_be_emptied(group.name):
            assert compact(net, graph, Plan({group.name: ()})).max_error <= 1e-9


@pytest.mark.parametrize("name", sorted(FOLLOWED.keys() - NONZERO))
def test_constants_are_absorbed_wherever_channels_are_dropped(name):
    """Where dropped channels emit zero there is nothing to absorb, and nothing changes."""
    net = network(FOLLOWED[name])
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.zeros_(module.weight)
            nn.init.constant_(module.bias, -1)
    graph = trace(net, SHAPE)
    plan = plans(graph)[0]
    whole = compact(net, graph, plan).model.state_dict()
    absorbed = compact(net, graph, plan, absorb="bias").model.state_dict()
    for key, tensor in whole.items():
        torch.testing.assert_close(absorbed[key], tensor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_followed_is_refused_by_name_and_says_what_would_be(name):
    forward, message = REFUSED[name]
    with pytest.raises(UnsupportedNetwork, match=message) as refusal:
        trace(network(forward), SHAPE)
    text = str(refusal.value)
    assert "\n" not in text and "symbolic" not in text and "Proxy" not in text
    assert ";" in text


def test_what_an_operation_needs_whole_stays_whole_and_says_why():
    expected = {
        "squeeze": "squeeze moves or takes part of it",
        "by number of channels": "computes with its number of channels",
        "width beside": "the network's output",
        "assignment": "setitem needs all its channels",
        "functional convolution": "conv2d needs all its channels",
        "chosen by index": "gathers fixed channels",
        "norm called twice": "b.1 is called several times",
        "spatial attention": "it is broadcast in mul",
    }
    for name, reason in expected.items():
        groups = trace(network(FOLLOWED[name]), SHAPE).groups.values()
        assert any(reason in (group.fixed or "") for group in groups), name


def features_beside(net: Idiom, x: Tensor) -> dict:
    """The mean over channels is another where there are fewer."""
    t = net.a(x)
    return {"logits": net.fc(net.b(t).mean((2, 3))), "other": [t.mean(1)]}


def test_the_self_check_looks_at_every_output():
    """A second output whose code was changed behind the graph's back is caught, and named."""
    net = network(FOLLOWED["list in dictionary"])
    graph = trace(net, SHAPE)
    net.given = features_beside
    with pytest.raises(CompactionError, match=r"in output\['other'\]\[0\]"):
        compact(net, graph, Plan({"a.0": range(8)}))


def test_the_self_check_looks_at_the_outputs_structure():
    net = network(between(lambda net, t: t))
    graph = trace(net, SHAPE)
    net.given = lambda net, x: (net.fc(net.c(net.a(x)).mean((2, 3))), *net.a(x).unbind(1))
    with pytest.raises(CompactionError, match="another structure"):
        compact(net, graph, Plan({"a.0": range(8)}))


@pytest.mark.parametrize("scale", [1e-6, 1e-8])
def test_the_self_check_finds_small_differences(scale):
    """A graph that lacks a consumer of a millionth's weight is wrong."""
    net = network(between(lambda net, t: t))
    graph = trace(net, SHAPE)
    net.given = between(lambda net, t: t + scale * t.sum(1, keepdim=True))
    with pytest.raises(CompactionError, match="differ by"):
        compact(net, graph, Plan({"a.0": range(8)}))


def test_the_self_check_sees_a_signal_that_dies_away():
    """The statistics are those of a signal that is far larger: the logits are the bias alone."""
    net = network(between(lambda net, t: t))
    for norm in (net.a[1], net.c[1]):
        norm.running_var.fill_(1e30)
        norm.running_mean.zero_()
        norm.bias.data.zero_()
    graph = trace(net, SHAPE)
    net.given = between(lambda net, t: t - t.mean(1, keepdim=True))
    with pytest.raises(CompactionError, match="differ by"):
        compact(net, graph, Plan({"a.0": range(8)}))


def test_casts_to_less_than_float64_are_followed():
    net = network(between(lambda net, t: net.b(t.float()).to(torch.float32))).float()
    graph = trace(net, SHAPE)
    for absorb in ("none", "bias"):
        assert compact(net, graph, plans(graph)[0], absorb=absorb).max_error <= 1e-9


def gone(net: nn.Module) -> nn.Module:
    """The network without its residual branch."""
    return compact(net, trace(net, SHAPE), Plan({"b.0": ()})).model


@pytest.mark.parametrize("again", [lambda net: net, copy.deepcopy, "pickled", "traced"])
def test_train_mode_survives_when_a_block_goes(again):
    net = network(FOLLOWED["auxiliary output"])
    small = gone(net if again != "pickled" else net)
    if again == "pickled":
        net.given = None
        small = pickle.loads(pickle.dumps(small))
    elif again == "traced":
        graph = trace(small, SHAPE)
        small = compact(small, graph, Plan({"a.0": range(0, 16, 2)})).model
    else:
        small = again(small)
    images = torch.randn(64, *SHAPE, dtype=torch.float64)
    assert not any(name.startswith("b.") for name, _ in small.named_modules())
    assert isinstance(small.eval()(images), Tensor)
    assert torch.equal(small(images), small(images))
    logits, auxiliary = small.train()(images)
    assert not torch.equal(logits, small(images)[0])
    assert torch.equal(auxiliary, small(images)[1])
    assert {"fc.weight", "aux.weight"} <= small.state_dict().keys()


def test_layers_of_train_mode_alone_are_cut_and_trained():
    net = network(FOLLOWED["auxiliary output"])
    graph = trace(net, SHAPE)
    plan = Plan({"a.0": range(0, 16, 2)})
    images = torch.randn(4, *SHAPE, dtype=torch.float64)
    small = compact(net, graph, plan).model.train()
    assert small.aux.in_features == 8
    expected = masked(net, graph.cut(plan)).train()(images)[1]
    torch.testing.assert_close(small(images)[1], expected)
    assert count(small, SHAPE).params == sum(p.numel() for p in small.parameters())


def test_layers_of_a_train_mode_that_cannot_be_traced_are_checked():
    def forward(net: Idiom, x: Tensor):
        t = net.a(x)
        logits = net.fc(net.b(t).mean((2, 3)))
        is_chosen = net.training and random.random() < 2
        return (logits, net.aux(t.mean((2, 3)))) if is_chosen else logits

    net = network(forward)
    graph = trace(net, SHAPE)
    with pytest.raises(CompactionError, match="in train mode the compact network fails"):
        compact(net, graph, Plan({"a.0": range(8)}))
    assert compact(net, graph, Plan({"b.0": range(8)})).max_error <= 1e-9


def test_a_frozen_layer_stays_frozen_when_a_block_goes():
    net = network(FOLLOWED["auxiliary output"]).train()
    net.a[1].eval()
    modes = {name: module.training for name, module in gone(net).named_modules()}
    assert not modes["a.1"] and modes["c.1" if "c.1" in modes else "a.0"]


def test_a_block_that_goes_by_chance_cannot_be_emptied():
    graph = trace(network(FOLLOWED["path dropped by chance"]), SHAPE)
    assert not graph.may_be_emptied("b.0")
    with pytest.raises(ValueError, match="draws random numbers"):
        assert graph.cut(Plan({"b.0": ()})).after


class Optional(nn.Module):
    """Arguments besides the images, each with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv_norm(3, 8), nn.Linear(8, 5)

    def forward(self, images, targets=None, *more, features=False, **others):
        assert targets is None and not more and not others
        pooled = self.body(images).mean((2, 3))
        return pooled if features else self.head(pooled)


def test_arguments_keep_their_defaults():
    graph = trace(Optional(), SMALL_SHAPE)
    assert list(graph.groups) == ["input", "body.0", "head"]
    assert compact(Optional(), graph, Plan({"body.0": [1, 2]})).max_error <= 1e-9


class Noting(Chain):
    """Hooks and a forward that note things."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list = []
        self.last, self.calls = None, 0
        self.hook = self.first.register_forward_hook(self.note)

    def note(self, module, inputs, output) -> None:
        self.sizes.append(output.shape)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.second(self.pool(self.first(x)))
        pooled = torch.nn.functional.avg_pool2d(self.last, 2).flatten(1)
        return self.head(torch.relu(self.norm(self.hidden(pooled))))


@pytest.mark.parametrize("shape", [SMALL_SHAPE, (3, 4, 4)])
def test_tracing_leaves_hooks_and_attributes_as_they_were(shape):
    net = Noting()
    net.pool.eval()
    modes = [module.training for module in net.modules()]
    try:
        trace(net, shape)
    except UnsupportedNetwork:
        assert shape != SMALL_SHAPE
    assert (net.last, net.calls, net.sizes) == (None, 0, [])
    assert [module.training for module in net.modules()] == modes
    net(torch.randn(2, *SMALL_SHAPE))
    assert len(net.sizes) == 1 and net.calls == 1


def test_a_network_that_holds_its_last_features_can_be_compacted_and_counted():
    net = Noting()
    net(torch.randn(2, *SMALL_SHAPE))
    graph = trace(net, SMALL_SHAPE)
    assert compact(net, graph, Plan({"first.0": [0, 3]})).max_error <= 1e-9
    assert count(net, SMALL_SHAPE).macs > 0


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Equalised(nn.Conv2d):
    """Scaled by the number of inputs."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight / weight[0].numel() ** 0.5, bias)


class SamePadded(nn.Conv2d):
    """Code of its own that leaves the weights alone."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, groups=self.groups)


def two(make) -> nn.Module:
    torch.manual_seed(0)
    layers = [make(3, 16), nn.ReLU(), make(16, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 5))


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize(
    "make",
    [
        lambda i, o: parametrizations.weight_norm(nn.Conv2d(i, o, 3)),
        lambda i, o: parametrizations.spectral_norm(nn.Conv2d(i, o, 3)),
        lambda i, o: weight_norm(nn.Conv2d(i, o, 3)),
        lambda i, o: spectral_norm(nn.Conv2d(i, o, 3)),
        lambda i, o: prune.l1_unstructured(nn.Conv2d(i, o, 3), "weight", 0.5),
        lambda i, o: Standardised(i, o, 3),
        lambda i, o: Equalised(i, o, 3),
    ],
)
def test_layers_that_compute_their_weights_are_baked(make):
    net = two(make).double().eval()
    graph = trace(net, SMALL_SHAPE)
    assert graph.baked == {"0", "2"}
    images = torch.randn(2, *SMALL_SHAPE, dtype=torch.float64)
    whole = compact(net, graph, Plan({})).model
    torch.testing.assert_close(whole(images), net(images), rtol=1e-9, atol=1e-9)
    small = compact(net, graph, Plan({"0": range(0, 16, 2), "2": [1, 5]}))
    assert small.max_error <= 1e-9
    assert type(small.model[2]) is nn.Conv2d and small.model[2].weight.shape[:2] == (2, 8)
    assert trace(small.model, SMALL_SHAPE).baked == frozenset()


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize(
    "make",
    [
        lambda i, o: remove_weight_norm(weight_norm(nn.Conv2d(i, o, 3))),
        lambda i, o: SamePadded(i, o, 3),
        lambda i, o: SamePadded(i, i, 3, groups=i) if i == o else SamePadded(i, o, 3),
    ],
)
def test_layers_with_code_of_their_own_are_followed_where_that_is_right(make):
    net = two(make)
    graph = trace(net, SMALL_SHAPE)
    assert compact(net, graph, Plan({"0": range(0, 16, 2), "2": [1]})).max_error <= 1e-9
    with torch.device("meta"):
        assert list(trace(two(make), SMALL_SHAPE).groups) == list(graph.groups)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (nn.DataParallel, "model.module"),
        (torch.optim.swa_utils.AveragedModel, "model.module"),
        (lambda net: torch.compile(net, backend="eager"), "model._orig_mod"),
        (lambda net: nn.Sequential(nn.DataParallel(net)), "0.module"),
    ],
)
def test_wrappers_are_named(wrap, message):
    with pytest.raises(UnsupportedNetwork, match=message):
        trace(wrap(Residual()), SMALL_SHAPE)


def test_synchronised_batch_norms_are_followed():
    net = nn.SyncBatchNorm.convert_sync_batchnorm(randomise(Residual(), 0))
    graph = trace(net, SMALL_SHAPE)
    emptied = Plan({"inner.0": (), "wide.0": [0, 1]})
    assert compact(net, graph, emptied, absorb="bias").max_error <= 1e-9


class Aliased(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_norm(3, 8), conv_norm(8, 8), nn.Linear(8, 5)
        self.stages = nn.ModuleList([self.a, self.b])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)).mean((2, 3)))


def test_a_module_under_two_names_may_lose_channels():
    net = Aliased()
    graph = trace(net, SMALL_SHAPE)
    assert [group.name for group in graph.prunable()] == ["a.0", "b.0"]
    small = compact(net, graph, Plan({"a.0": [0, 1], "b.0": [5]})).model
    assert small.stages[0][0] is small.a[0]
    assert small.stages[1][0].weight.shape == (1, 2, 3, 3)


class Unnormalised(nn.Module):
    """A batch norm without running statistics behind a convolution without bias; by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.conv = conv_norm(3, 8), nn.Conv2d(8, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=torch.relu(self.norm(input=self.conv(input=self.a(x)))).mean((2, 3)))


def test_what_a_batch_norm_takes_out_itself_need_not_be_absorbed():
    """Constants go with the mean of the batch, so that absorbing is exact and changes nothing."""
    net = randomise(nn.Sequential(), 0)
    net = Unnormalised().double().eval()
    nn.init.zeros_(net.a[1].weight)
    nn.init.constant_(net.a[1].bias, 0.7)
    net.a[1].weight.data[::2] = 1
    graph = trace(net, SMALL_SHAPE)
    small = compact(net, graph, Plan({"a.0": range(0, 8, 2)}), absorb="bias").model
    images = torch.randn(4, *SMALL_SHAPE, dtype=torch.float64)
    torch.testing.assert_close(small(images), net(images))


def test_zeros_on_both_sides_of_the_channels_are_groups_of_their_own():
    net = network(lambda net, x: net.fc(F.pad(net.a(x), (0, 0, 0, 0, 3, 5)).mean((2, 3))))
    net.fc = nn.Linear(24, 5).double()
    graph = trace(net, SHAPE)
    assert sum(group.size for group in graph.groups.values()) == graph.num_channels
    assert compact(net, graph, Plan({"a.0": range(8)})).max_error < 1e-9


class Siamese(nn.Module):
    """Two images through the same layers, batch norms too."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, left, right):
        left, right = (self.head(self.second(self.first(x)).mean((2, 3))) for x in (left, right))
        return left - 2 * right


class SharedHead(nn.Module):
    """A convolution for three scales, each with a batch norm of its own."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, images):
        scales = [torch.nn.functional.max_pool2d(images, size) for size in (1, 2, 4)]
        pairs = zip(self.norms, scales, strict=True)
        return [self.out(torch.relu(norm(self.shared(scale)))) for norm, scale in pairs]


@pytest.mark.parametrize(
    ("network", "example", "prunable"),
    [
        (
            Siamese,
            (torch.rand(2, *SMALL_SHAPE), torch.rand(2, *SMALL_SHAPE)),
            {"first.0", "second.0"},
        ),
        (SharedHead, SMALL_SHAPE, {"shared"}),
    ],
)
def test_layers_that_are_called_several_times_lose_channels_in_all_calls(
    network, example, prunable
):
    graph = prove(network(), example, 0)
    assert {group.name for group in graph.prunable()} == prunable
