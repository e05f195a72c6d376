"""Selective convolution, end to end: what is released, copied, left out, stored and loaded."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file
from torch import nn

import chanprune
from chanprune.channels import (
    Bank,
    Plan,
    compact,
    count,
    trace,
)
from chanprune.channels.slicing import gather
from chanprune.methods import Setting, Step
from chanprune.methods.selectconv import SelectiveConvolution
from chanprune.models import build
from chanprune.pipeline.optimiser import TrainOptions, make_optimiser
from chanprune.pipeline.prepare import prepare
from chanprune.processes.errors import UserError
from chanprune.rewiring import Copying, Expanded, allow_copies, selective_units, wiring
from chanprune.rewiring.allocation import executed
from tests.networks import randomise
from tests.test_pipeline import changed, execute

SMALL = {"name": "preresnet29", "width": 0.125, "shortcut": "zero_pad", "downsample": "pool"}
DENSE = {"name": "densenet40", "width": 0.25, "bottleneck": True, "transition": "pool"}
PLENTY = {"name": "selectconv", "threshold": 0.3, "until": 1.0}


def config(model=SMALL, epochs=3, **method):
    return changed(
        model=model,
        method={**PLENTY, **method},
        prune={"absorb": "none"},
        train={"epochs": epochs},
        finetune={"epochs": 0},
    )


@pytest.fixture(scope="module")
def accurate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accurate") / "run"
    return folder, execute(config(), folder)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compressed") / "run"
    return folder, execute(config(realloc=False), folder)


@pytest.fixture(scope="module")
def expanded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expanded") / "run"
    return folder, execute(config(shift="post"), folder)


def rows(summary):
    return {row["stage"]: row for row in summary["stages"]}


@pytest.mark.slow
def test_the_physical_network_is_the_trained_one(accurate, compressed, expanded):
    for folder, summary in (accurate, compressed, expanded):
        trained, pruned = rows(summary)["trained"], rows(summary)["pruned"]
        assert trained["test_accuracy"] == pruned["test_accuracy"]
        assert trained["val_accuracy"] == pruned["val_accuracy"]
        assert (pruned["params"] < trained["params"]) == (folder != expanded[0])
        model = chanprune.load(folder)
        counts = count(model, (1, 16, 16))
        stored = load_file(folder / "model.safetensors")
        named = sum(stored[name].numel() for name, _ in model.named_parameters())
        assert counts.params == summary["params"] == named
        assert counts.macs == summary["macs"]


@pytest.mark.slow
def test_released_columns_serve_copies(accurate):
    folder, _ = accurate
    model = chanprune.load(folder)
    copies = {n: m for n, m in model.named_modules() if isinstance(m, Copying)}
    described = json.loads((folder / "model.json").read_text())["copies"]
    assert copies and described.keys() == copies.keys()
    for name, norm in copies.items():
        assert norm.shift.shape == (len(described[name]["slots"]), 2)
        assert norm.shift.abs().max() > 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["released"] == 0, "nothing is rewired in the first epoch"
    assert lines[-1]["reallocated"] > 0 and lines[-1]["copies"] > 0


@pytest.mark.slow
def test_copies_behind_the_activation_become_kernels(expanded):
    folder, _ = expanded
    modules = [m for m in chanprune.load(folder).modules() if isinstance(m, Expanded)]
    assert modules and all(m.wide.kernel_size[0] >= 3 for m in modules)
    assert not any(isinstance(m, Copying) for m in chanprune.load(folder).modules())


@pytest.mark.slow
def test_training_gets_cheaper_as_channels_go(compressed):
    folder, summary = compressed
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    macs = [line["executed_macs"] for line in lines]
    per_epoch = [after - before for before, after in zip([0, *macs], macs, strict=False)]
    assert per_epoch[0] > per_epoch[1] > per_epoch[2]
    assert not any(isinstance(m, Copying) for m in chanprune.load(folder).modules())
    assert summary["macs"] < rows(summary)["trained"]["macs"]


def prepared(model=SMALL, **method):
    """A network and the method, before the first step."""
    found = prepare(config(model, **method))
    chosen = SelectiveConvolution(**{k: v for k, v in {**PLENTY, **method}.items() if k != "name"})
    network = found.network
    chosen.before_training(network.model, network.graph, Setting(1.0, 100, 0, norm_decay=1e-4))
    return chosen, network


def steps(epochs):
    return [Step(10 * epoch, epoch, 0.1, epoch / epochs) for epoch in range(epochs)]


@pytest.mark.parametrize("epochs, expected", [(4, [1, 2]), (5, [1, 2, 3]), (300, range(1, 151))])
def test_it_decides_after_each_epoch_of_the_first_half(epochs, expected):
    chosen, _ = prepared(until=0.5, threshold=0.0)
    decided = [step.epoch for step in steps(epochs) if chosen.rewirings(step)]
    assert decided == list(expected)


def test_every_slot_stays_open_where_there_are_copies_and_none_opens_again_elsewhere():
    chosen, network = prepared()
    bank = Bank(network.model, network.graph, torch.optim.SGD(network.model.parameters(), lr=0.1))
    params = sum(p.numel() for p in network.model.parameters())
    before = None
    for step in steps(4):
        for rewiring in chosen.rewirings(step):
            rewiring.apply(bank)
        cut = chosen.active_channels(step)
        if cut is not None:
            bank.activate(cut)
            if before is not None:
                for name, kept in cut.plan.kept.items():
                    assert set(kept) <= set(before.kept[name]) and kept
            before = cut.plan
    assert before is not None and wiring(network.model)
    pointwise = {unit.group for unit in chosen.units if unit.is_pointwise}
    assert not pointwise & before.kept.keys()
    bank.activate(None)
    assert params == sum(p.numel() for p in network.model.parameters())


def train(chosen, network, epochs=4, steps_per_epoch=3, seed=0):
    """Train in float64, and return the bank with everything in place."""
    model = network.model.double()
    optimiser = make_optimiser(model, TrainOptions(**config()["train"]), chosen.weight_decays())
    bank = Bank(model, network.graph, optimiser)
    draws = torch.Generator().manual_seed(seed)
    for step in steps(epochs):
        for rewiring in chosen.rewirings(step):
            rewiring.apply(bank)
        cut = chosen.active_channels(step)
        if cut is not None:
            bank.activate(cut)
        for _ in range(steps_per_epoch):
            images = torch.randn(8, 1, 16, 16, dtype=torch.float64, generator=draws)
            labels = torch.randint(0, 5, (8,), generator=draws)
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()
    plan = bank.plan
    bank.activate(None)
    return bank, plan


@pytest.mark.parametrize("model", [SMALL, DENSE], ids=lambda model: model["name"])
def test_it_makes_no_difference_whether_released_channels_are_executed(model, monkeypatch):
    found = []
    for up_to in (0.0, 0.6, 1.0):
        monkeypatch.setattr("chanprune.rewiring.allocation.GATHERED_UP_TO", up_to)
        chosen, network = prepared(model, realloc=False, threshold=0.1)
        found.append((chosen, *train(chosen, network)))
    open_channels = found[0][0]._open
    groups = found[0][1].graph.groups
    streams = {name for name in open_channels if groups[name].gathered}
    assert any(len(open_channels[name]) < groups[name].size for name in streams)
    assert not streams & found[0][2].kept.keys() and streams <= found[2][2].kept.keys()
    plan = Plan(open_channels)
    for chosen, bank, _ in found[1:]:
        assert chosen._open == open_channels
        states = [
            gather({k: v.detach() for k, v in own.model.state_dict().items()}, own.graph.cut(plan))
            for own in (found[0][1], bank)
        ]
        for name, tensor in states[0].items():
            torch.testing.assert_close(states[1][name], tensor, atol=1e-10, rtol=1e-10)


def test_what_was_released_and_is_executed_all_the_same_stays_zero():
    chosen, network = prepared(realloc=False, threshold=0.1)
    bank, plan = train(chosen, network)
    some = False
    for unit in chosen.units:
        everything = range(bank.graph.groups[unit.group].size)
        gone = sorted(set(everything) - set(chosen._open[unit.group]))
        if unit.group in plan.kept or not gone:
            continue
        some = True
        conv, norm = bank.model.get_submodule(unit.conv), bank.model.get_submodule(unit.norm)
        for parameter in (conv.weight, norm.weight, norm.bias):
            for tensor in (parameter, bank.optimiser.state[parameter]["momentum_buffer"]):
                assert (tensor[:, gone] if tensor.dim() == 4 else tensor[gone]).eq(0).all()
    assert some


def test_a_stream_is_gathered_from_where_that_is_faster():
    chosen, network = prepared(realloc=False)
    groups = network.graph.groups
    for share in (0.2, 0.6, 0.7, 1.0):
        open_channels = {
            unit.group: tuple(range(max(1, int(share * groups[unit.group].size))))
            for unit in chosen.units
        }
        kept = executed(open_channels, network.graph).kept
        for name, own in open_channels.items():
            is_left_whole = groups[name].gathered and len(own) > 0.6 * groups[name].size
            assert kept.get(name) == (None if is_left_whole else own)


def test_decisions_are_the_same_wherever_they_are_taken():
    decisions = []
    for _ in range(2):
        chosen, _ = prepared()
        decisions.append(chosen.rewirings(steps(4)[1]))
    for one, other in zip(*decisions, strict=True):
        assert (one.conv, list(one.released)) == (other.conv, list(other.released))
        if one.copies is not None:
            assert one.copies.sources == other.copies.sources
            assert torch.equal(one.copies.shifts, other.copies.shifts)


def test_shifts_have_a_weight_decay_of_their_own():
    chosen, network = prepared()
    options = TrainOptions(**config()["train"])
    optimiser = make_optimiser(network.model, options, chosen.weight_decays())
    by_parameter = {id(p): g["weight_decay"] for g in optimiser.param_groups for p in g["params"]}
    assert len(by_parameter) == len(list(network.model.parameters()))
    for name, parameter in network.model.named_parameters():
        assert by_parameter[id(parameter)] == (1e-5 if name.endswith(".shift") else 1e-4)


@pytest.mark.parametrize("scope, expected", [("pointwise", 18), ("all", 36)])
def test_which_convolutions_have_copies(scope, expected):
    chosen, network = prepared(DENSE, scope=scope)
    assert len(chosen.units) == 36
    assert sum(isinstance(m, Copying) for m in network.model.modules()) == expected


def test_what_cannot_be_selective_is_listed():
    chosen, _ = prepared()
    assert "left alone" in chosen.advice and "conv" in chosen.advice
    with torch.device("meta"):
        grouped = build("preresnext29", num_classes=10, in_channels=3, image_size=32, width=0.25)
        vgg = build("vgg16", num_classes=10, in_channels=3, image_size=32, width=0.25)
    _, others = selective_units(grouped, trace(grouped, (3, 32, 32)))
    assert sum(reason == "it is in groups" for reason in others.values()) == 9
    units, others = selective_units(vgg, trace(vgg, (3, 32, 32)))
    assert units and any("pool" in reason for reason in others.values())


@pytest.mark.parametrize("name, units", [("resnet50", 32), ("densenet121", 119), ("vgg16_bn", 8)])
def test_networks_of_torchvision_are_selective(name, units):
    with torch.device("meta"):
        model = getattr(torchvision.models, name)()
    found, others = selective_units(model, trace(model, (3, 64, 64)))
    convs = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(found) == units
    assert {unit.conv for unit in found} | others.keys() == set(convs) and all(others.values())


@pytest.mark.parametrize("relu", [torch.relu, torch.relu_, F.relu, nn.ReLU()])
def test_every_relu_is_known(relu):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.relu = relu if isinstance(relu, nn.Module) else None
            self.second, self.linear = nn.Conv2d(4, 5, 3), nn.Linear(5, 2)

        def forward(self, x):
            x = (self.relu or relu)(self.norm(self.first(x)))
            return self.linear(self.second(x).mean((2, 3)))

    model = Net()
    units, _ = selective_units(model, trace(model, (3, 8, 8)))
    assert [unit.conv for unit in units] == ["second"]


def test_a_network_without_selective_convolutions_is_refused():
    with pytest.raises(UserError, match="no convolution that only reads a batch norm and ReLU"):
        prepare(config({"name": "vgg11", "width": 0.0625, "norm": False}))


def test_copies_behind_the_activation_are_for_pointwise_convolutions():
    with pytest.raises(UserError, match="take method.scope=pointwise"):
        prepare(config(shift="post", scope="all"))


def test_a_schedule_that_is_too_short_for_the_threshold_is_pointed_out():
    chosen, _ = prepared(threshold=1e-5)
    assert "releases hardly anything" in chosen.advice
    assert "hardly" not in prepared(threshold=0.5)[0].advice


def test_unread_outputs_of_a_grouped_convolution_go_evenly():
    """Its blocks must stay equally wide, whatever of them is still read through copies."""
    model = randomise(
        build("preresnext29", num_classes=5, in_channels=3, image_size=16, width=0.25), 0
    )
    for unit in selective_units(model, trace(model, (3, 16, 16)))[0]:
        norm = model.get_submodule(unit.norm)
        first_of_blocks = torch.arange(0, norm.num_features, norm.num_features // 8)
        released = torch.cat([first_of_blocks, torch.tensor([1])])
        allow_copies(norm).read_copies(released, torch.full_like(released, 2))
    graph = trace(model, (3, 16, 16))
    left = graph.cut(Plan({})).still_read
    grouped = {name: kept for name, kept in left.items() if graph.groups[name].blocks > 1}
    assert grouped
    for name, kept in grouped.items():
        group = graph.groups[name]
        width = group.size // group.blocks
        counts = np.bincount(np.array(kept) // width, minlength=group.blocks)
        assert set(counts) == {width - 1}
    assert compact(model, graph, Plan(left)).max_error <= 1e-9
