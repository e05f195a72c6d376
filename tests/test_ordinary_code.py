"""Networks that are written as people write them are pruned and proven, or refused by name."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

from chanprune.channels import Plan, UnsupportedNetwork, compact, count, count_plan, trace
from tests.networks import conv_norm
from tests.proof import prove

SHAPE = (3, 16, 16)


class Between(nn.Module):
    """Does something between two convolutions.

    Args:
        middle: What it does.
        width: Channels that come out of it.
        layer: A layer that it uses, if any.
    """

    def __init__(self, middle, width: int = 16, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.conv, self.head = conv_norm(3, 16), conv_norm(width, 12), nn.Linear(12, 5)
        self.middle = middle
        if layer is not None:
            self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.middle(self, self.body(x))).mean((2, 3)))


def shuffled(net: Between, x: Tensor) -> Tensor:
    n, c, h, w = x.size(dim=0), x.size(dim=1), x.size(dim=2), x.size(dim=3)
    return x.view(n, 2, c // 2, h, w).transpose(dim0=1, dim1=2).reshape(n, c, h, w)


def in_groups(net: Between, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    groups = c // 8
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def with_places(net: Between, x: Tensor) -> Tensor:
    rows = torch.linspace(-1, 1, 16).repeat(x.size(0), 1, 16, 1).type_as(x)
    columns = torch.arange(16, dtype=torch.float32).expand(x.size(0), 1, 16, 16).to(x)
    return torch.cat(tensors=[x, rows, columns], dim=1)


def turned(net: Between, x: Tensor) -> Tensor:
    x = torch.reshape(input=x, shape=(-1, 4, 4, 16, 16)).transpose(1, 2)
    return x.flatten(1, 2).unflatten(dim=1, sizes=(4, 4)).flatten(start_dim=1, end_dim=2)


def asked(net: Between, x: Tensor) -> Tensor:
    x = 2 * x if isinstance(x, Tensor) else x
    return shuffled(net, x)


MIDDLES = {
    "sizes by name": (shuffled, 16),
    "groups by width": (in_groups, 16),
    "places": (with_places, 18),
    "arguments by name": (turned, 16),
    "asks isinstance": (asked, 16),
    "attention to itself": (lambda net, x: F.scaled_dot_product_attention(x, x, x), 16),
    "attention by name": (
        lambda net, x: F.scaled_dot_product_attention(query=x, key=x + 1, value=x), 16
    ),
    "windows": (
        lambda net, x: F.unfold(x, (3, 3), padding=1).unflatten(2, (16, 16)), 144
    ),
    "norm of all": (lambda net, x: F.layer_norm(x, x.shape[1:]), 16),
    "narrow by name": (lambda net, x: x.narrow(dim=1, start=4, length=8), 8),
    "the largest": (lambda net, x: x.topk(4, 1)[0], 4),
    "length": (lambda net, x: x.norm(2, 1, keepdim=True) + x, 16),
    "constant": (lambda net, x: x * torch.tensor([0.1 * i for i in range(16)]).view(16, 1, 1), 16),
    "dropout": (lambda net, x: F.dropout(x, 0.5), 16),
    "whole numbers": (lambda net, x: x + (x > 0).float() + (x > 1).to(torch.float32), 16),
}  # fmt: skip


@pytest.mark.parametrize("name", MIDDLES)
def test_ordinary_code_is_proven(name):
    middle, width = MIDDLES[name]
    graph = prove(Between(middle, width), SHAPE, seed=0)
    assert graph is not None and graph.prunable("together")


def test_a_transposed_convolution_by_channel_has_several_outputs_for_each():
    layer = nn.ConvTranspose2d(16, 32, 2, 2, groups=16)
    graph = prove(Between(lambda net, x: net.layer(x), 32, layer), SHAPE, seed=0)
    assert graph.groups["body.0"].fixed is None


def test_positions_that_are_read_from_a_tensor_are_whole():
    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.flow, self.head = (
                conv_norm(3, 8),
                nn.Conv2d(8, 2, 1),
                nn.Conv2d(8, 4, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            places = self.flow(x).permute(0, 2, 3, 1).tanh()
            return self.head(F.grid_sample(x, places, align_corners=False))

    graph = prove(Flow(), SHAPE, seed=0)
    assert "grid_sample" in graph.groups["flow"].fixed and graph.groups["body.0"].fixed is None


def test_layers_with_two_names_are_baked_under_both():
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            norm = parametrizations.spectral_norm
            self.first, self.second = norm(nn.Conv2d(3, 8, 3)), norm(nn.Conv2d(8, 4, 3))
            self.all = nn.ModuleList([self.first, self.second])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.all:
                x = F.leaky_relu(layer(x), 0.2)
            return x

    model = Listed().eval()
    assert compact(model, trace(model, SHAPE), Plan({"first": [0, 3]})).max_error <= 1e-9


def test_layers_that_share_a_weight_still_do():
    model = Between(
        lambda net, x: net.layer[1](F.relu(net.layer[0](x))),
        layer=nn.ModuleList([nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)]),
    ).eval()
    model.layer[1].weight = model.layer[0].weight
    graph = trace(model, SHAPE)
    plan = Plan({"conv.0": [0, 3]})
    result = compact(model, graph, plan)
    assert result.max_error <= 1e-9
    assert result.model.layer[1].weight is result.model.layer[0].weight
    learned = sum(parameter.numel() for parameter in result.model.parameters())
    assert count(result.model, SHAPE).params == count_plan(model, graph, plan).params == learned


@pytest.mark.parametrize("holder", ["dictionary", "hook"])
def test_features_of_the_last_forward_do_not_hinder(holder):
    model = Between(lambda net, x: x)
    model.kept = {}
    if holder == "hook":
        model.body.register_forward_hook(lambda module, given, output: keep(output))
    else:
        model.middle = lambda net, x: keep(x)

    def keep(x: Tensor) -> Tensor:
        model.kept["body"] = x
        return x

    model.eval()(torch.randn(2, *SHAPE))
    assert model.kept["body"].grad_fn is not None
    assert compact(model, trace(model, SHAPE), Plan({"body.0": [0, 3]})).max_error <= 1e-9


def test_what_cannot_be_copied_is_named():
    model = Between(lambda net, x: x)
    model.conv.lock = threading.Lock()
    with pytest.raises(UnsupportedNetwork, match="conv.lock cannot be copied"):
        compact(model, trace(model, SHAPE), Plan({}))


def test_lazy_layers_have_to_run_first():
    model = nn.Sequential(nn.LazyConv2d(16, 3), nn.ReLU(), nn.LazyConv2d(4, 3))
    with pytest.raises(UnsupportedNetwork, match="layer 0 .LazyConv2d. has no size yet"):
        trace(model, SHAPE)
    model(torch.randn(2, *SHAPE))
    assert compact(model, trace(model, SHAPE), Plan({"0": [0, 3]})).max_error <= 1e-9


def test_a_network_without_values_is_not_checked():
    with torch.device("meta"):
        model = Between(lambda net, x: x)
    result = compact(model, trace(model, SHAPE), Plan({"body.0": [0, 3]}))
    assert result.max_error != result.max_error and result.model.conv[0].in_channels == 2


def test_images_of_whole_numbers_are_proven():
    model = nn.Sequential(conv_norm(3, 8), nn.Conv2d(8, 4, 1)).eval()

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.float() / 255)

    images = torch.randint(0, 255, (2, *SHAPE), dtype=torch.uint8)
    whole = Scaled().eval()
    assert compact(whole, trace(whole, images), Plan({"net.0.0": [0, 3]})).max_error <= 1e-9


def test_the_layout_of_the_weights_stays():
    model = Between(lambda net, x: x).to(memory_format=torch.channels_last).eval()
    small = compact(model, trace(model, SHAPE), Plan({"body.0": range(5)})).model
    weights = [p for p in small.parameters() if p.dim() == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert not small.conv[0].weight.is_contiguous()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_what_cannot_be_counted_is_named():
    class NeedsTwo(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean((2, 3)).squeeze()[:, :2]

    with pytest.raises(UnsupportedNetwork, match="NeedsTwo cannot be counted"):
        count(NeedsTwo(nn.Conv2d(3, 4, 1)), SHAPE)
    scripted = Between(lambda net, x: net.layer(x), layer=torch.jit.script(nn.Conv2d(16, 16, 1)))
    plain = Between(lambda net, x: net.layer(x), layer=nn.Conv2d(16, 16, 1))
    assert count(scripted, SHAPE).macs == count(plain, SHAPE).macs


def test_a_mask_for_all_images_does_not_double_what_is_counted():
    class Masked(nn.Sequential):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return super().forward(x * mask)

    model = Masked(conv_norm(3, 8), nn.Conv2d(8, 4, 1))
    example = torch.empty(2, *SHAPE), torch.ones(1, 1, 16, 16)
    graph = trace(model, example)
    counted = count(model, example).macs
    assert (
        counted
        == count_plan(model, graph, Plan({})).macs
        == count(nn.Sequential(*model), SHAPE).macs
    )


KEPT_NO_MORE = {
    "frozen norms": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3), FrozenBatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3)
    ),
    "norms without a scale": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, affine=False), nn.ReLU(), nn.Conv2d(16, 4, 3)
    ),
    "unflattened features": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 256), nn.Unflatten(1, (16, 4, 4)),
        nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1),
    ),
    "norms behind activations": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT_NO_MORE)
def test_a_layer_loses_filters_with_the_channels_of_what_follows(name):
    model = KEPT_NO_MORE[name]()
    graph = prove(model, SHAPE, seed=0)
    (group,) = [g for g in graph.prunable("together") if g.size >= 16]
    assert group.producers
    for absorb in ("none", "bias"):
        small = compact(model, graph, Plan({group.name: [0, 3]}), absorb=absorb).model
        filters = sum(p.numel() for p in small.parameters())
        assert filters < sum(p.numel() for p in model.parameters()) / 4
    if graph.may_be_emptied(group.name):
        assert compact(model, graph, Plan({group.name: []})).max_error <= 1e-9


def test_a_view_may_take_the_other_sizes_as_they_are():
    def view(net: Between, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        return x.view(n, 2, c // 2, *x.shape[2:]).transpose(1, 2).reshape(n, c, *x.shape[2:])

    assert prove(Between(view), SHAPE, seed=0).groups["body.0"].fixed is None
