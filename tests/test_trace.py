"""The channel graph: groups, what stays whole, and what is refused."""

import pytest
import torch
from torch import Tensor, nn

from chanprune.channels import Plan, UnsupportedNetwork, compact, trace
from tests.networks import SMALL, SMALL_SHAPE, TORCHVISION, TORCHVISION_SHAPE, conv_norm


def graph_of(name: str):
    return trace(SMALL[name](), SMALL_SHAPE)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_axis_has_channels_of_the_right_number(name):
    model = SMALL[name]()
    graph = trace(model, SMALL_SHAPE)
    axes = graph.axes
    state = model.state_dict()
    assert set(axes) == {key for key, tensor in state.items() if tensor.dim() > 0}
    for key, of_tensor in axes.items():
        for axis in of_tensor:
            assert len(axis.channels) == state[key].shape[axis.dim] * axis.blocks
    sizes = [group.size for group in graph.groups.values()]
    assert sum(sizes) == graph.num_channels
    starts = [group.start for group in graph.groups.values()]
    assert starts == [sum(sizes[:i]) for i in range(len(sizes))]


def test_a_chain_has_one_group_per_layer_and_its_ends_are_fixed():
    graph = graph_of("chain")
    assert list(graph.groups) == ["input", "first.0", "second.0", "hidden", "head"]
    assert [group.name for group in graph.prunable()] == ["first.0", "second.0", "hidden"]
    assert graph.group_axes("first.0") == [
        ("first.0.weight", 0),
        ("first.1.weight", 0),
        ("first.1.bias", 0),
        ("first.1.running_mean", 0),
        ("first.1.running_var", 0),
        ("second.0.weight", 1),
    ]
    flattened = next(axis for axis in graph.axes["hidden.weight"] if axis.dim == 1)
    assert flattened.channels.tolist() == [11 + c for c in range(10) for _ in range(16)]


def test_residual_sums_couple_their_producers():
    graph = graph_of("residual")
    assert graph.groups["stem.0"].producers == ("stem.0", "outer.0")
    assert graph.groups["last.0"].norms == ("last.1", "shortcut.1")
    assert [g.name for g in graph.prunable("keep")] == ["inner.0", "wide.0"]
    assert [g.name for g in graph.prunable("together")] == ["stem.0", "inner.0", "wide.0", "last.0"]


def test_a_stream_stays_whole_and_its_batch_norms_gather():
    graph = graph_of("preactivation")
    assert graph.groups["stem"].fixed is not None
    assert "gather" in graph.groups["stem"].fixed
    gathered = [group.name for group in graph.groups.values() if group.gathered]
    assert gathered == ["norms.0", "norms.1", "norm"]


def test_grouped_convolutions_divide_and_depthwise_ones_join():
    graph = graph_of("grouped")
    assert graph.groups["first.0"].blocks == 3
    joined = graph.groups["grouped.0"]
    assert joined.blocks == 3
    assert joined.norms == ("grouped.1", "depthwise.1", "doubled.1")
    doubled = graph.layers["doubled.0"].outputs
    assert doubled.tolist() == [joined.start + c for c in range(18) for _ in range(2)]


def test_a_gate_goes_with_what_it_scales_and_does_not_couple_it():
    graph = graph_of("gated")
    group = graph.groups["first.0"]
    assert (group.producers, group.gates, group.fixed) == (("first.0",), ("gate.2",), None)
    assert ("gate.2.weight", 0) in graph.group_axes("first.0")
    assert [g.name for g in graph.prunable("keep")] == ["first.0", "gate.0", "inner.0"]


def test_zero_padding_appends_channels_that_stay():
    graph = graph_of("padded")
    assert graph.groups["stem.0"].producers == ("stem.0", "outer.0")
    assert "zeros" in graph.groups["stem.0"].fixed
    assert [g.name for g in graph.prunable()] == ["inner.0"]


def test_a_layer_called_twice_couples_its_input_and_output():
    graph = graph_of("shared")
    assert graph.groups["first.0"].producers == ("first.0", "twice")


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks_are_followed(name):
    with torch.device("meta"):
        model = TORCHVISION[name]()
    graph = trace(model, TORCHVISION_SHAPE)
    expected = {"vgg16_bn": (15, 15), "resnet18": (8, 12), "densenet121": (120, 120)}[name]
    assert (len(graph.prunable("keep")), len(graph.prunable("together"))) == expected


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = conv_norm(3, 8)
        self.block = nn.Sequential(conv_norm(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.first(x).transpose(1, 2))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Unfolding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = conv_norm(3, 8)
        self.patches = nn.Unfold(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.patches(self.first(x))


class Tied(nn.Module):
    """Two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_norm(3, 8)
        self.left = nn.Conv2d(8, 8, 1)
        self.right = nn.Conv2d(8, 8, 1)
        self.right.weight = self.left.weight
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.left(self.first(x)))
        return self.head(torch.relu(self.right(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (Branching, "Branching cannot be traced"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(network, named):
    with pytest.raises(UnsupportedNetwork, match=named) as refusal:
        trace(network(), SMALL_SHAPE)
    assert "\n" not in str(refusal.value)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(UnsupportedNetwork, match=r"does not take images of shape \(3, 4, 4\)"):
        trace(SMALL["chain"](), (3, 4, 4))


@pytest.mark.parametrize(
    ("network", "whole"),
    [
        (Transposed, {"first.0": "block.0.0 reads another dimension"}),
        (Unfolding, {"first.0": "patches needs all its channels"}),
        (Tied, {"first.0": "shares its weights", "left": "shares its weights"}),
    ],
)
def test_what_cannot_be_pruned_stays_whole_and_says_why(network, whole):
    graph = trace(network(), SMALL_SHAPE)
    for name, reason in whole.items():
        assert reason in (graph.groups[name].fixed or "")


def test_tracing_and_compacting_leave_the_network_alone():
    model = SMALL["chain"]().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    frozen.eval()
    graph = trace(model, SMALL_SHAPE)
    compact(model, graph, Plan({}), absorb="bias")
    assert [module for module in model.modules() if not module.training] == [frozen]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
