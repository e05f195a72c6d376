"""Networks of torchvision and timm: pruned by half, with their weights, and refused by name."""

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

import chanprune
from chanprune.channels import (
    Plan,
    compact,
    count,
    filter_scores,
    gather,
    select_global,
    trace,
)
from chanprune.models import build, build_skeleton, load_weights
from chanprune.processes.errors import UserError
from tests.commands import call
from tests.networks import but_slow

TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "densenet121", "vgg16_bn", "resnext50_32x4d"),
    "mobilenet_v2",
)
TIMM = ("resnet18d", "regnetx_002", "regnety_002", "efficientnet_b0", "seresnet18")
NETWORKS = [("torchvision", name) for name in TORCHVISION] + [("timm", name) for name in TIMM]
SHAPE = (3, 64, 64)


def network(library: str, name: str, **sizes: int) -> nn.Module:
    if library == "timm":
        pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    sizes = {"num_classes": 10, "in_channels": 3, "image_size": 64, **sizes}
    return build(name, library=library, **sizes)


@pytest.mark.parametrize(("library", "name"), but_slow(NETWORKS, ("torchvision", "vgg16_bn")))
def test_half_of_the_channels_go_and_the_weights_stay(library, name):
    model = network(library, name)
    graph = trace(model, SHAPE)
    groups = [group for group in graph.prunable("keep") if group.producers]
    scores = filter_scores(model, graph, groups)
    plan = Plan(select_global(scores, 0.5).kept)
    result = compact(model, graph, plan)
    assert 0 <= result.max_error <= 1e-9
    expected = gather(model.state_dict(), graph.cut(plan))
    for key, tensor in result.model.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    whole, small = count(model, SHAPE), count(result.model, SHAPE)
    assert small.params < 0.8 * whole.params and small.macs < 0.7 * whole.macs


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_gates_and_depthwise_convolutions_do_not_keep_channels_whole(library):
    name = {"torchvision": "mobilenet_v2", "timm": "efficientnet_b0"}[library]
    graph = trace(network(library, name), SHAPE)
    prunable = sum(group.size for group in graph.prunable("together"))
    assert prunable == graph.num_channels - 3 - 10


def test_counts_of_vgg_a_on_imagenet():
    """Network Slimming, table 2: 132.9M parameters, 4.57e10 operations, which are 6 x MACs."""
    model = build_skeleton(
        name="vgg11_bn", library="torchvision", num_classes=1000, in_channels=3, image_size=224
    )
    counts = count(model, (3, 224, 224))
    assert counts.params == 132_868_840
    assert (counts.macs, counts.macs_of("conv")) == (7_609_090_048, 7_485_456_384)
    assert f"{counts.conventions()['slimming_imagenet']:.2e}" == "4.57e+10"


def test_other_image_channels_change_the_first_convolution_alone():
    model = network("torchvision", "resnet18", in_channels=1)
    assert model.conv1.weight.shape == (64, 1, 7, 7)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 10)


def test_weights_from_a_file(tmp_path):
    donor = network("torchvision", "resnet18")
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": donor.state_dict()}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        model = build(
            "resnet18", library="torchvision", num_classes=10, in_channels=3, image_size=64
        )
        assert load_weights(model, "torchvision", "resnet18", str(tmp_path / name)) == []
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, donor.state_dict()[key])


def test_another_number_of_classes_leaves_the_classifier_fresh(tmp_path):
    donor = network("torchvision", "resnet18")
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    model = network("torchvision", "resnet18", num_classes=7, in_channels=1)
    fresh = load_weights(model, "torchvision", "resnet18", str(tmp_path / "w.safetensors"))
    assert fresh == ["conv1", "fc"]
    assert torch.equal(model.layer1[0].conv1.weight, donor.layer1[0].conv1.weight)


WRAPPINGS = {
    "DataParallel": lambda s: {"state_dict": {f"module.{k}": t for k, t in s.items()}},
    "torch.compile": lambda s: {f"_orig_mod.{k}": t for k, t in s.items()},
    "both": lambda s: {"net": {f"module._orig_mod.{k}": t for k, t in s.items()}, "acc": 91.2},
    "Lightning": lambda s: {
        "state_dict": {**{f"model.{k}": t for k, t in s.items()}, "criterion.weight": torch.ones(2)}
    },
    "torchvision references": lambda s: {"model": s, "optimizer": {"state": {}}, "epoch": 1},
    "average": lambda s: {"model": {k: t * 0 for k, t in s.items()}, "model_ema": s},
    "average of steps": lambda s: {
        "n_averaged": torch.tensor(3),
        **{f"module.{k}": t for k, t in s.items()},
    },
    "nested": lambda s: {"checkpoint": None, "state_dict": {"model": s}},
    "encoder": lambda s: {f"encoder.net.{k}": t for k, t in s.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_are_found_in_what_people_save(wrapping, tmp_path):
    donor, model = (network("torchvision", "resnet18", num_classes=c) for c in (10, 7))
    torch.save(WRAPPINGS[wrapping](donor.state_dict()), tmp_path / "w.pth")
    with torch.no_grad():
        model.conv1.weight.fill_(9)
    assert load_weights(model, "torchvision", "resnet18", str(tmp_path / "w.pth")) == ["fc"]
    assert torch.equal(model.conv1.weight, donor.conv1.weight)
    assert torch.equal(model.layer4[1].bn2.weight, donor.layer4[1].bn2.weight)


@pytest.mark.parametrize(
    "name",
    ["squeezenet1_1", "mnasnet0_5", "googlenet", pytest.param("vgg11", marks=pytest.mark.slow)],
)
def test_weights_of_an_imagenet_network_fit_another_number_of_classes(name, tmp_path):
    options = {"init_weights": False} if name == "googlenet" else {}
    donor = torchvision.models.get_model(name, weights=None, **options)
    torch.save(donor.state_dict(), tmp_path / "w.pth")
    model = network("torchvision", name, num_classes=7)
    fresh = load_weights(model, "torchvision", name, str(tmp_path / "w.pth"))
    assert len(fresh) == 1 and fresh[0].split(".")[0] in ("classifier", "fc")
    own, theirs = model.state_dict(), donor.state_dict()
    for key, tensor in own.items():
        if key.rpartition(".")[0] not in fresh:
            assert torch.equal(tensor, theirs[key]), key


def test_networks_with_auxiliary_heads_are_built_without():
    for name in ("googlenet", "inception_v3"):
        with torch.device("meta"):
            model = build(
                name, library="torchvision", num_classes=5, in_channels=3, image_size=128
            ).train()
            assert model(torch.empty(2, 3, 128, 128)).shape == (2, 5)


class Unsafe:
    def __reduce__(self):
        return (print, ("unpickled",))


def misfit(state: dict, key: str) -> dict:
    return {**state, key: state[key][:-1].clone()}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda s: misfit(s, "layer1.0.conv1.weight"),
            r"layer1.0.conv1.weight is \(63, 64, 3, 3\)",
        ),
        (lambda s: {k: v for k, v in s.items() if k != "bn1.bias"}, "they lack bn1.bias"),
        (lambda s: {**s, "extra": torch.ones(2)}, "unlike the network, extra"),
        (lambda s: {"weights": Unsafe()}, "hold more than tensors"),
        (lambda s: [1, 2], "not a state dict"),
        (lambda s: {"epoch": 3, "best": 0.9}, "not a state dict.*holds epoch, best"),
        (
            lambda s: {f"{who}.{k}": t for who in ("student", "teacher") for k, t in s.items()},
            r"several networks, student\.\* and teacher\.\*",
        ),
        (
            lambda s: {f"backbone.{k}": t for k, t in s.items() if "fc" not in k},
            "they lack fc.weight",
        ),
        (
            lambda s: {(f"head.{k}" if "fc" in k else k): t for k, t in s.items()},
            "they lack fc.weight, and have head.fc.weight",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(spoil, message, tmp_path, capsys):
    model = network("torchvision", "resnet18")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    torch.save(spoil(model.state_dict()), tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        load_weights(model, "torchvision", "resnet18", str(tmp_path / "w.pth"))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nowhere.safetensors", "there is no such file"),
        ("IMAGENET1K_V9", "neither a file nor one of DEFAULT, IMAGENET1K_V1"),
    ],
)
def test_weights_that_are_not_there(weights, message):
    with pytest.raises(UserError, match=message):
        load_weights(network("torchvision", "resnet18"), "torchvision", "resnet18", weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("model=torchvision", "model.name is missing"),
        ("model=torchvision model.name=resnt50", "did you mean resnet50"),
        ("model=torchvision model.name=vit_b_16 dataset.image_size=64", "chanprune: error: "),
        ("model=torchvision model.name=resnet18 model.width=2", "model.width: unknown key"),
        ("model=densenet40 model.compression=2", "must be a number in (0, 1]"),
        ("model=condensenet50 model.condensation=99", "model.condensation=99"),
    ],
)
def test_mistakes_get_one_line(arguments, message, tmp_path):
    asked = call("chanprune.summarize", *arguments.split(), cwd=tmp_path)
    assert asked.returncode == 2
    assert asked.stderr.count("\n") == 1 and message in asked.stderr


def snippet() -> str:
    """The example of README.md, for images of 64 x 64 and random weights."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = [part.partition("```")[0] for part in readme.split("```python\n")[1:]]
    code = next(block for block in blocks if "chanprune.select" in block)
    called = 'torchvision.models.resnet18(weights="DEFAULT")'
    assert called in code
    return code.replace(called, "MODEL").replace("(3, 224, 224)", "(3, 64, 64)")


@pytest.mark.parametrize(
    "name",
    but_slow(
        ["resnet18", "resnext50_32x4d", "regnet_x_400mf", "mobilenet_v2", "efficientnet_b0"],
        *("resnext50_32x4d", "efficientnet_b0"),
    ),
)
def test_the_example_of_the_readme_runs_on_the_networks_that_it_lists(name, capsys):
    model = torchvision.models.get_model(name, weights=None)
    exec(compile(snippet(), "README.md", "exec"), {"MODEL": model})
    share = int(capsys.readouterr().out) / count(model, SHAPE).macs
    assert 0.495 <= share <= 0.5


def test_scales_say_that_a_network_has_no_batch_norms():
    with torch.device("meta"):
        model = torchvision.models.vgg11(weights=None)
    graph = trace(model, SHAPE)
    with pytest.raises(ValueError, match="has a batch norm; criterion=l1"):
        chanprune.select(model, graph, ratio=0.5, criterion="scale")
