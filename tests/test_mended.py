"""A compact network computes what the masked one does: for images of any size, in both modes."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chanprune.channels import Plan, UnsupportedNetwork, compact, masked, trace
from tests.networks import conv_norm, randomise

SHAPE = (3, 16, 16)


def double(model: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(model, seed).double().eval()


class Halves(nn.Module):
    """One half of a convolution's channels goes through a layer of its own, and may be gone."""

    def __init__(self, layer: nn.Module, size: int = 8) -> None:
        super().__init__()
        self.body, self.left = conv_norm(3, 16), layer
        self.right = nn.Conv2d(size, 4, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.body(x).chunk(2, 1)
        left = self.right(torch.sigmoid(self.left(F.relu(left))))
        return self.head(torch.cat([left.mean((2, 3)), right.mean((2, 3))], 1))


LAYERS = {
    "padded": nn.Conv2d(8, 8, 3, padding=1),
    "without bias": nn.Conv2d(8, 8, 5, padding=2, bias=False),
    "in steps": nn.Conv2d(8, 8, 3, stride=2, padding=1, dilation=2),
    "same": nn.Conv2d(8, 8, 4, padding="same", dilation=2),
    "transposed": nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_without_inputs_puts_out_its_bias_at_every_position(name):
    model = double(Halves(LAYERS[name]))
    graph = trace(model, SHAPE)
    cut = graph.cut(plan := Plan({"body.0": [8, 9, 10, 13]}))
    result = compact(model, graph, plan)
    group = result.graph.groups["left"]
    twice = compact(result.model, result.graph, Plan({group.name: [0, 2, 5]}))
    assert twice.max_error <= 1e-9
    for height, width in ((16, 16), (8, 24), (13, 9)):
        images = torch.randn(2, 3, height, width, dtype=torch.float64)
        torch.testing.assert_close(result.model(images), masked(model, cut)(images))
    again = trace(result.model, SHAPE)
    assert compact(result.model, again, Plan({"body.0": [1, 2]})).max_error <= 1e-9


class Resized(nn.Module):
    """Puts out as many pixels as it is given, which is read as numbers, and a scaled sum."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv_norm(3, 8), nn.Conv2d(8, 4, 1)
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1))

    def forward(self, x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        if x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, 1))
        x = self.head(self.body(F.max_pool2d(x - self.mean, 2)))
        return F.interpolate(x, size=(2 * int(x.shape[2]), 2 * int(x.shape[3]))) * scale


COPIES = {
    "itself": lambda network: network,
    "copied": copy.deepcopy,
    "stored": lambda network: pickle.loads(pickle.dumps(network)),
    "compiled": lambda network: torch.compile(network, backend="eager"),
}


@pytest.mark.parametrize("how", COPIES)
def test_an_exported_network_takes_any_batch_and_no_other_size(how):
    model = double(Resized())
    graph = trace(model, SHAPE)
    result = compact(model, graph, Plan({"body.0": [0, 3]}))
    network, reference = (
        COPIES[how](result.model),
        masked(model, graph.cut(Plan({"body.0": [0, 3]}))),
    )
    for batch in (1, 3):
        images = torch.randn(batch, *SHAPE, dtype=torch.float64)
        torch.testing.assert_close(network(images), reference(images))
    with pytest.raises(
        ValueError, match=r"exported for .*\(any, 3, 16, 16\), not \(2, 3, 13, 16\)"
    ):
        network(torch.zeros(2, 3, 13, 16, dtype=torch.float64))


def test_an_exported_network_is_pruned_again():
    model = double(Resized())
    first = compact(model, trace(model, SHAPE), Plan({"body.0": range(5)})).model
    second = compact(first, trace(first, SHAPE), Plan({"body.0": [0, 3]}))
    assert second.max_error <= 1e-9
    with pytest.raises(ValueError, match="exported for"):
        second.model(torch.zeros(2, 3, 13, 16, dtype=torch.float64))


@pytest.mark.parametrize("scale", [torch.tensor(2.0), torch.rand(1, 4, 1, 1)])
def test_what_is_the_same_for_all_images_has_no_batch(scale):
    model = double(Resized())
    graph = trace(model, (torch.empty(2, *SHAPE), scale))
    small = compact(model, graph, plan := Plan({"body.0": [0, 3]})).model
    given = torch.randn(5, *SHAPE, dtype=torch.float64), scale.double()
    torch.testing.assert_close(small(*given), masked(model, graph.cut(plan))(*given))


class Counting(nn.Module):
    """Counts its calls, and batch norms count their batches; decides by size where it is asked."""

    def __init__(self, decides: bool) -> None:
        super().__init__()
        self.body, self.head, self.decides = conv_norm(3, 8), nn.Linear(8, 4), decides
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        if self.decides and x.shape[2] > 4:
            x = x * 2
        return self.head((self.body(x) + self.body(2 * x)).mean((2, 3)))


@pytest.mark.parametrize("decides", [False, True])
def test_nothing_in_the_network_changes_while_it_is_traced(decides):
    model = Counting(decides).train()
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, SHAPE)
    compact(model, graph, Plan({"body.0": [1, 2]}))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Within(nn.Module):
    """Opens a context around a layer or around a table, and shuffles channels by written sizes."""

    def __init__(self, context, around: str, decides: bool) -> None:
        super().__init__()
        self.body, self.head = conv_norm(3, 8), nn.Conv2d(8, 4, 1)
        self.context, self.around, self.decides = context, around, decides

    def forward(self, x: Tensor) -> Tensor:
        if self.decides and x.shape[2] > 4:
            x = x * 2
        with self.context():
            table = torch.arange(x.shape[3], device=x.device) * 0.5
            x = self.body(x) if self.around == "layer" else x
        x = x if self.around == "layer" else self.body(x)
        return self.head((x * table).view(-1, 2, 4, 16, 16).transpose(1, 2).flatten(1, 2))


CONTEXTS = {
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "no autocast": partial(torch.autocast, "cuda", enabled=False),
    "no_grad": torch.no_grad,
    "set_grad_enabled": partial(torch.set_grad_enabled, False),
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("decides", [False, True])
@pytest.mark.parametrize("name", CONTEXTS)
def test_no_context_of_the_forward_is_lost(name, decides):
    model = Within(CONTEXTS[name], "layer", decides).eval()
    with pytest.raises(UnsupportedNetwork, match="within torch|opens torch.inference_mode"):
        compact(model, trace(model, SHAPE), Plan({"body.0": [0, 1]}))


@pytest.mark.parametrize("decides", [False, True])
def test_a_table_needs_no_gradients(decides):
    model = Within(torch.no_grad, "table", decides).double().eval()
    assert compact(model, trace(model, SHAPE), Plan({"body.0": [0, 1]})).max_error <= 1e-9


def test_a_network_of_its_own_class_keeps_its_contexts():
    class Frozen(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self[0](x)
            return self[1](x)

    model = Frozen(conv_norm(3, 8), nn.Conv2d(8, 4, 1))
    small = compact(model, trace(model, SHAPE), Plan({"0.0": [0, 1, 4]})).model
    small(torch.randn(2, *SHAPE)).sum().backward()
    assert small[1].weight.grad is not None and small[0][0].weight.grad is None


class Auxiliary(nn.Module):
    """Puts out more in train mode, scaled by a number of channels if it is asked to."""

    def __init__(self, by_width: bool, drops: bool = False) -> None:
        super().__init__()
        self.body, self.conv = conv_norm(3, 8), nn.Conv2d(8, 12, 3)
        self.aux, self.head = nn.Linear(12, 5), nn.Linear(12, 5)
        self.by_width, self.drops = by_width, drops

    def forward(self, x: Tensor):
        x = self.conv(self.body(x)).mean((2, 3))
        if self.drops:
            x = F.dropout(x)
        if not self.training:
            return self.head(x)
        return self.head(x), self.aux(x) / (self.conv.out_channels if self.by_width else 12)


def test_train_mode_is_compared_by_its_values_too():
    plan = Plan({"conv": [0, 1, 2]})
    for drops in (False, True):
        model = double(Auxiliary(by_width=False, drops=drops))
        assert compact(model, trace(model, SHAPE), plan).max_error <= 1e-9
    model = double(Auxiliary(by_width=True))
    message = "in train mode .* truediv is given 3 in the compact network and 12 in the whole one"
    with pytest.raises(UnsupportedNetwork, match=message):
        compact(model, trace(model, SHAPE), plan)


class Ending(nn.Module):
    """Ends as it is told to."""

    def __init__(self, end) -> None:
        super().__init__()
        self.body, self.conv, self.head = conv_norm(3, 8), nn.Conv2d(8, 12, 3), nn.Linear(12, 5)
        self.end = end
        self.register_buffer("forbidden", torch.tensor([True, False, False, True, False]))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self, self.conv(self.body(x)).mean((2, 3)))


ENDINGS = {
    "complex": lambda net, x: torch.fft.rfft(net.head(x)),
    "infinite": lambda net, x: net.head(x).masked_fill(net.forbidden, float("-inf")),
    "dropout in both modes": lambda net, x: net.head(F.dropout(x)),
}
REFUSED = {
    "random": (lambda net, x: net.head(x + torch.randn_like(x)), "draws random numbers"),
    "by width": (lambda net, x: net.head(x * net.head.in_features**-0.5), "mul is given 0.57"),
    "by shape": (lambda net, x: net.head(x / net.conv.weight.shape[0]), "size of conv.weight"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_outputs_of_any_kind_are_compared(name):
    model = double(Ending(ENDINGS[name]))
    assert compact(model, trace(model, SHAPE), Plan({"conv": [0, 1, 2]})).max_error <= 1e-9


@pytest.mark.parametrize("name", REFUSED)
def test_the_reason_is_named_where_two_networks_differ(name):
    end, reason = REFUSED[name]
    model = double(Ending(end))
    with pytest.raises(UnsupportedNetwork, match=reason):
        compact(model, trace(model, SHAPE), Plan({"conv": [0, 1, 2]}))


def test_hooks_that_a_network_built_from_its_calls_has_not_are_named():
    class Shuffled(Ending):
        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x).view(-1, 2, 4, 16, 16).transpose(1, 2).reshape(-1, 8, 16, 16)
            return self.head(self.conv(x).mean((2, 3)))

    model = double(Shuffled(None))
    model.body.register_forward_hook(lambda module, given, output: 2 * output)
    with pytest.raises(UnsupportedNetwork, match="body has forward hooks, which are not called"):
        compact(model, trace(model, SHAPE), Plan({"body.0": [0, 1]}))
