"""Every network of ours, at reduced width: compact == masked for any plan, and after reloading."""

import copy
import json
import subprocess
import sys

import pytest
import torch

from chanprune.channels import Plan, channels_last, compact, count, count_plan, trace
from chanprune.models import MODELS, architecture, build
from chanprune.pipeline.model_file import Preprocessing, save_model
from tests.networks import but_slow, random_plan, randomise

SHAPE = (3, 16, 16)
POOLED = {"shortcut": "zero_pad", "downsample": "pool"}
NETWORKS = {
    "vgg11": {"width": 0.08},
    "vgg19": {"width": 0.05, "head": "fc512"},
    "resnet20": {"width": 0.5},
    "resnet32": {"width": 0.4, "shortcut": "B"},
    "resnet56": {"width": 0.2},
    "preresnet29": {"width": 0.4},
    "preresnet164": {"width": 0.1, **POOLED},
    "resnext29": {"width": 0.03, "cardinality": 4},
    "preresnext29": {"width": 0.03, "cardinality": 4},
    "densenet40": {"width": 0.25},
    "densenet100": {"width": 0.25, "bottleneck": True, "compression": 0.5},
    "c2f": {"width": 0.4},
    "condensenet50": {"width": 0.5},
    "condensenet74": {"width": 0.5, "converted": True},
}
LONG = ("resnet32", "resnet56", "preresnet164", "preresnext29", "densenet40", "densenet100")
LONG += ("c2f", "condensenet50", "condensenet74")
# Maps of 1 x 1 pixels, where a matrix product's bits depend on where its operands lie in memory.
ONE_PIXEL = ("c2f",)
NUM_PLANS = 20


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    options = NETWORKS[name]
    model = build(name, num_classes=5, in_channels=3, image_size=16, **options)
    for key, buffer in model.named_buffers():
        if key.endswith("select.index"):
            buffer.copy_(torch.randperm(len(buffer)) % (buffer.max() + 1))
    return randomise(model, 0).double()


def test_every_kind_of_network_is_here():
    others = {"torchvision", "timm", "mlp784", "custom"}
    kinds = {name.rstrip("0123456789") for name in set(MODELS) - others}
    assert {name.rstrip("0123456789") for name in NETWORKS} == kinds


@pytest.mark.parametrize("name", but_slow(NETWORKS, *LONG))
def test_compact_equals_masked(name):
    """The self-check compares to 1e-9 in float64, twice; it raises where they differ."""
    model = network(name)
    graph = trace(model, SHAPE)
    sizes = set()
    for seed in range(NUM_PLANS):
        plan = random_plan(graph, seed)
        result = compact(model, graph, plan)
        assert result.max_error <= 1e-9
        counts = count(result.model, SHAPE)
        assert counts == count_plan(model, graph, plan)
        assert counts.params == sum(p.numel() for p in result.model.parameters())
        sizes.add(counts.params)
    assert len(sizes) > NUM_PLANS // 2


@pytest.mark.parametrize("name", NETWORKS)
def test_a_compact_network_can_be_traced_and_pruned_again(name):
    model = network(name)
    graph = trace(model, SHAPE)
    first = compact(model, graph, random_plan(graph, 1), check=False)
    traced = trace(first.model, SHAPE)
    assert compact(first.model, traced, random_plan(traced, 2)).max_error <= 1e-9
    if all(group.blocks == 1 for group in graph.groups.values()):
        sizes = [{n: g.size for n, g in x.groups.items()} for x in (traced, first.graph)]
        assert sizes[0] == sizes[1]


LOAD = """
import json, sys, torch, chanprune
for folder in json.loads(sys.argv[1]):
    model = chanprune.load(folder)
    torch.save(model(torch.load(f"{folder}/images.pt")), f"{folder}/outputs.pt")
"""


@pytest.mark.slow
def test_compact_checkpoints_give_the_same_bits_in_a_fresh_process(tmp_path):
    expected = {}
    for name, options in NETWORKS.items():
        model = network(name).float()
        graph = trace(model, SHAPE)
        plan = random_plan(graph, 3)
        emptiable = [g.name for g in graph.prunable() if graph.may_be_emptied(g.name)]
        plan = graph.cut(Plan({**plan.kept, **{group: () for group in emptiable[:1]}})).complete
        small = compact(model, graph, plan, absorb="bias").model.eval()
        folder = tmp_path / name
        folder.mkdir()
        images = torch.randn(2, *SHAPE)
        torch.save(images, folder / "images.pt")
        expected[folder] = channels_last(copy.deepcopy(small))(images)
        arguments = architecture({"name": name, **options}, SHAPE, 5)
        preprocessing = Preprocessing(SHAPE, (0.5,) * 3, (0.2,) * 3)
        counts = count(small, SHAPE)
        save_model(folder, small, arguments, plan, preprocessing, tuple("abcde"), counts)
    folders = json.dumps([str(folder) for folder in expected])
    subprocess.run([sys.executable, "-c", LOAD, folders], check=True)
    for folder, outputs in expected.items():
        got = torch.load(folder / "outputs.pt")
        if folder.name in ONE_PIXEL:
            torch.testing.assert_close(got, outputs)
        else:
            assert torch.equal(got, outputs), folder.name
