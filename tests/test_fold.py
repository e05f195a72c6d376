"""Folded batch norms: the same outputs, for every kind of network, and what is left alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import chanprune
from chanprune.channels import Plan, UnsupportedNetwork, channels_last, compact, count, fold, trace
from chanprune.channels.gathered import read
from chanprune.channels.operations import BATCH_NORMS
from chanprune.models import architecture
from chanprune.pipeline.model_file import Preprocessing, save_model
from chanprune.processes.errors import UserError
from chanprune.rewiring import Copies, Copying, allow_copies, plain_copies
from tests.networks import (
    SMALL,
    SMALL_SHAPE,
    TORCHVISION,
    TORCHVISION_SHAPE,
    but_slow,
    random_plan,
    randomise,
)
from tests.proof import difference, lively
from tests.random_networks import SHAPE as RANDOM_SHAPE
from tests.random_networks import Description, Network, descriptions
from tests.test_zoo import LONG, NETWORKS, network
from tests.test_zoo import SHAPE as ZOO_SHAPE

TOLERANCE = 1e-9
# Batch norms that stay: those that read a stream that others read, before an activation.
LEFT = {"preresnet29": 10, "preresnet164": 55, "preresnext29": 10}
LEFT |= {"densenet40": 39, "densenet100": 51, "condensenet50": 25, "condensenet74": 37}


@torch.no_grad()
def folded(model, shape=SMALL_SHAPE):
    """Fold a network with random statistics; return what came of it, having compared on images."""
    model = randomise(lively(model, 0), 0).double().eval()
    done = fold(model, shape)
    images = torch.randn(3, *shape, dtype=torch.float64)
    assert difference([done.model(images)], [model(images)]) <= TOLERANCE
    assert done.max_error <= TOLERANCE
    norms = [m for m in done.model.modules() if isinstance(m, BATCH_NORMS)]
    assert len(norms) == len(done.left)
    return done


@pytest.mark.parametrize("name", but_slow(NETWORKS, *LONG))
def test_every_network_of_ours_is_folded(name):
    model = network(name)
    graph = trace(model, ZOO_SHAPE)
    small = compact(model, graph, random_plan(graph, 1), check=False).model
    for each in (model, small):
        done = folded(each, ZOO_SHAPE)
        assert len(done.left) == LEFT.get(name, 0) and (done.into or name == "densenet40")


@pytest.mark.parametrize("name", SMALL)
def test_every_shape_of_network_is_folded(name):
    model = SMALL[name]()
    graph = trace(model, SMALL_SHAPE)
    folded(compact(model, graph, random_plan(graph, 2), check=False).model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_torchvisions_networks_are_folded(name):
    folded(TORCHVISION[name](), TORCHVISION_SHAPE)


@pytest.mark.parametrize("examples", [15, pytest.param(150, marks=pytest.mark.slow)])
def test_random_networks_are_folded_or_refused(examples):
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(descriptions(), st.integers(0, 9))
    def check(description: Description, seed: int):
        torch.manual_seed(seed)
        model = Network(description)
        assume(any(isinstance(m, BATCH_NORMS) for m in model.modules()))
        try:
            assert fold(lively(model, seed).eval(), RANDOM_SHAPE).max_error <= TOLERANCE
        except UnsupportedNetwork as refusal:
            assert "batch norms folded" not in str(refusal)

    check()


class Twice(nn.Module):
    """One convolution that is called twice, and what is done to each of its outputs."""

    def __init__(self, first, second):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), first, second

    def forward(self, x):
        return self.second(self.conv(self.first(self.conv(x)).relu()))


class Joined(nn.Module):
    """A batch norm of a sum of two convolutions, of which one may be read elsewhere as well."""

    def __init__(self, is_read=False):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1, bias=False)
        self.norm, self.is_read = nn.BatchNorm2d(6), is_read

    def forward(self, x):
        left = self.left(x)
        y = self.norm(left + self.right(x)).relu()
        return y + left if self.is_read else y


class Picked(nn.Module):
    """A batch norm of channels that are picked of a convolution."""

    def __init__(self, index):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(len(index))
        self.register_buffer("index", torch.tensor(index))

    def forward(self, x):
        return self.norm(torch.index_select(self.conv(x), 1, self.index)).relu()


def chain(*layers):
    return nn.Sequential(*layers)


def norm_of(width, **options):
    return nn.BatchNorm2d(width, **options)


def same_norm_twice():
    norm = norm_of(3)
    return Twice(norm, norm)


def gathered():
    model = chain(nn.Conv2d(3, 6, 3), norm_of(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    read(model[1], torch.tensor([5, 0, 2, 3]))
    return model


def batch_statistics():
    return chain(nn.Conv2d(3, 6, 3), norm_of(6, track_running_stats=False))


def hooked(name):
    model = chain(nn.Conv2d(3, 6, 3), norm_of(6), nn.ReLU())
    model.get_submodule(name).register_forward_hook(lambda *_: None)
    return model


# Name -> a network, and how many of its batch norms are folded and left.
CASES = {
    "grouped": (chain(nn.Conv2d(3, 6, 3, groups=3, bias=False), norm_of(6)), 1, 0),
    "transposed": (chain(nn.ConvTranspose2d(3, 6, 3, 2, groups=3), norm_of(6)), 1, 0),
    "without scales": (chain(nn.Conv2d(3, 6, 3), norm_of(6, affine=False)), 1, 0),
    "dropout between": (chain(nn.Conv2d(3, 6, 3), nn.Dropout(), norm_of(6)), 1, 0),
    "pool between": (chain(nn.Conv2d(3, 6, 3), nn.AvgPool2d(2), norm_of(6)), 1, 0),
    "padded pool": (chain(nn.Conv2d(3, 6, 3), nn.AvgPool2d(2, padding=1), norm_of(6)), 0, 1),
    "activation": (chain(nn.Conv2d(3, 6, 3), nn.ReLU(), norm_of(6)), 0, 1),
    "shuffled": (chain(nn.Conv2d(3, 6, 3), nn.ChannelShuffle(3), norm_of(6)), 1, 0),
    "in front": (chain(norm_of(3), nn.Conv2d(3, 6, 3)), 1, 0),
    "in front of groups": (chain(norm_of(3), nn.Conv2d(3, 6, 3, groups=3, bias=False)), 1, 0),
    "in front of zeros": (chain(norm_of(3), nn.Conv2d(3, 6, 3, padding=1)), 0, 1),
    "in front of a frame": (
        *(chain(norm_of(3), nn.Conv2d(3, 6, 3, padding="same", padding_mode="reflect")), 1, 0),
    ),
    "in front of a shuffle": (
        *(chain(norm_of(3), nn.ChannelShuffle(3), nn.Conv2d(3, 6, 1)), 1, 0),
    ),
    "both sides": (chain(norm_of(3), nn.Conv2d(3, 6, 3), norm_of(6), nn.Tanh()), 2, 0),
    "flattened": (chain(norm_of(3), nn.Flatten(), nn.Linear(768, 5)), 1, 0),
    "features": (*(chain(nn.Flatten(), nn.Linear(768, 8, bias=False), nn.BatchNorm1d(8)), 1, 0),),
    "rows": (chain(nn.Linear(16, 8), nn.BatchNorm1d(4)), 0, 1),
    "two norms on one layer": (Twice(norm_of(3), norm_of(3)), 0, 2),
    "one norm on one layer twice": (same_norm_twice(), 1, 0),
    "one output of two": (Twice(norm_of(3), nn.Identity()), 0, 1),
    "sum": (Joined(), 1, 0),
    "sum that is read": (Joined(is_read=True), 0, 1),
    "picked": (Picked([4, 0, 2]), 1, 0),
    "picked twice": (Picked([4, 0, 4]), 0, 1),
    "gathered": (gathered(), 1, 0),
    "the batch's": (batch_statistics(), 0, 1),
    "hook on the layer": (hooked("0"), 0, 1),
    "hook on the norm": (hooked("1"), 0, 1),
    "weight of its own": (chain(weight_norm(nn.Conv2d(3, 6, 3)), norm_of(6)), 0, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_folded_and_what_is_left(name):
    model, into, left = CASES[name]
    before = copy.deepcopy(model.state_dict())
    shape = (4, 16) if name == "rows" else SMALL_SHAPE
    model = model.double().eval()
    done = fold(randomise(copy.deepcopy(model), 0), shape)
    assert (len(done.into), len(done.left)) == (into, left)
    assert done.max_error <= TOLERANCE
    assert all(
        torch.equal(tensor, before[key].double()) for key, tensor in model.state_dict().items()
    )


def test_filters_that_nobody_reads_go_with_the_gather():
    done = folded(gathered())
    assert done.model[0].out_channels == 4 and type(done.model[1]) is nn.Identity


def test_a_shared_weight_stays_with_the_other_layer():
    model = chain(nn.Conv2d(3, 3, 3), norm_of(3), nn.ReLU(), nn.Conv2d(3, 3, 3))
    model[3].weight = model[0].weight
    done = folded(model)
    assert torch.equal(done.model[3].weight, model[3].weight)
    assert not torch.equal(done.model[0].weight, model[0].weight)


def saved(folder):
    """Write a compact network of ours as a run does."""
    model = network("resnet20").float()
    graph, plan = trace(model, ZOO_SHAPE), random_plan(trace(model, ZOO_SHAPE), 1)
    small = compact(model, graph, plan, check=False).model
    arguments = architecture({"name": "resnet20", **NETWORKS["resnet20"]}, ZOO_SHAPE, 5)
    preprocessing = Preprocessing(ZOO_SHAPE, (0.5,) * 3, (0.2,) * 3)
    counts = count(small, ZOO_SHAPE)
    folder.mkdir()
    save_model(folder, small, arguments, plan, preprocessing, tuple("abcde"), counts)


def test_a_folded_network_refuses_what_would_be_wrong(tmp_path):
    saved(tmp_path / "run")
    whole, small = chanprune.load(tmp_path / "run"), chanprune.load(tmp_path / "run", fold=True)
    images = torch.randn(5, *whole.input_shape)
    with torch.no_grad():
        assert difference([small(images)], [whole(images)]) < 1e-5
    assert (type(small), small.class_names) == (type(whole), whole.class_names)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        small.train()(images)
    small.eval()(images)
    with pytest.raises(ValueError, match="without fold=True"):
        small.set_fidelity(0.5)
    with pytest.raises(ValueError, match="without fold=True"):
        chanprune.extract(small, 0.5)
    with pytest.raises(UserError, match="without fold=True"):
        chanprune.save(copy.deepcopy(small), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    graph = chanprune.trace(whole, ZOO_SHAPE)
    optimizer = torch.optim.SGD(whole.parameters())
    for ask in (
        lambda: chanprune.carry(whole, small, graph, Plan({}), optimizer),
        lambda: chanprune.refit(whole, small, graph, Plan({}), [(images, None)]),
    ):
        with pytest.raises(ValueError, match="without fold=True"):
            ask()


@torch.no_grad()
def test_networks_of_ones_own_are_loaded_folded(tmp_path):
    model = randomise(SMALL["chain"](), 0)
    graph = chanprune.trace(model, SMALL_SHAPE)
    small = chanprune.compact(model, graph, random_plan(graph, 0)).eval()
    chanprune.save(small, tmp_path)
    loaded = chanprune.load(tmp_path, factory=type(model), fold=True)
    assert not any(isinstance(module, BATCH_NORMS) for module in loaded.modules())
    images = torch.randn(5, *SMALL_SHAPE)
    assert difference([loaded(images)], [small(images)]) < 1e-5


def test_filters_are_loaded_channels_last():
    model = channels_last(chain(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv1d(14, 2, 3)))
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in model[:2])
    images = torch.randn(2, 3, 16, 16)
    assert model[:2](images).is_contiguous(memory_format=torch.channels_last)
    weight = model[0].weight.contiguous()
    assert torch.allclose(model[0](images), F.conv2d(images, weight, model[0].bias), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("own", [[0, 1, 2, 3, 4], [2, 7, 0, 3, 6]])
@pytest.mark.parametrize("layer", [nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3, padding=1)])
def test_copies_are_made_of_plain_operations(layer, own):
    model = chain(nn.Conv2d(3, 8, 3), copy.deepcopy(layer), nn.ReLU())
    copying = allow_copies(model[1])
    copying.gather_channels(torch.tensor(own))
    copying.copy(Copies([1, 3], [1, 3], [7, 0], torch.tensor([[1.25, -0.5], [0.0, 2.0]])))
    model = lively(model, 0).double().eval()
    plain = plain_copies(copy.deepcopy(model))
    assert not any(isinstance(module, Copying) for module in plain.modules())
    images = torch.randn(5, *SMALL_SHAPE, dtype=torch.float64)
    assert difference([plain(images)], [model(images)]) <= TOLERANCE
    assert fold(plain, SMALL_SHAPE).max_error <= TOLERANCE
