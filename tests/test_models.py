"""VGG: counts to the last digit (spec D.2), sizes, and what is refused."""

import pytest
import torch
from safetensors import safe_open
from torch import nn

from chanprune.channels import Plan, compact, count, count_plan, trace
from chanprune.errors import UserError
from chanprune.models import MODELS, architecture, build
from chanprune.pipeline.model_file import Preprocessing, save_model

FC512 = {"head": "fc512"}
PRIORITIZED = {"head": "fc512", "head_norm": False, "conv_bias": True}
BIASED = {"head": "fc512", "conv_bias": True}
# name, options, classes, params, macs, batch-norm scales
PUBLISHED = [
    ("vgg16", {}, 10, 14_724_042, 313_201_664, 4_224),
    ("vgg16", {}, 100, 14_770_212, 313_247_744, 4_224),
    ("vgg16", FC512, 10, 14_987_722, 313_463_808, 4_736),
    ("vgg16", PRIORITIZED, 10, 14_990_922, 313_463_808, 4_224),
    ("vgg16", PRIORITIZED, 100, 15_037_092, 313_509_888, 4_224),
    ("vgg19", {}, 10, 20_035_018, 398_136_320, 5_504),
    ("vgg19", {}, 100, 20_081_188, 398_182_400, 5_504),
]
# Li et al. 2017: half the filters of conv 1 and 8 to 13.
HALVED = ["conv1_1", "conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3"]
PRUNED = [
    (FC512, 5_397_034, 206_279_680, 3_168),
    (BIASED, 5_399_690, 206_279_680, 3_168),
]
SHAPE = (3, 32, 32)


def meta(name: str, classes: int = 10, **options) -> nn.Module:
    with torch.device("meta"):
        return build(name, num_classes=classes, in_channels=3, image_size=32, **options)


def num_scales(model: nn.Module) -> int:
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, norms))


@pytest.mark.parametrize(("name", "options", "classes", "params", "macs", "scales"), PUBLISHED)
def test_published_counts(name, options, classes, params, macs, scales):
    model = meta(name, classes, **options)
    counts = count(model, SHAPE)
    assert (counts.params, counts.macs, num_scales(model)) == (params, macs, scales)


@pytest.mark.parametrize(("options", "params", "macs", "scales"), PRUNED)
def test_published_counts_of_vgg16_a(options, params, macs, scales, tmp_path):
    """From the plan, of the built module, and of the tensors in the file."""
    model = build("vgg16", num_classes=10, in_channels=3, image_size=32, **options)
    graph = trace(model, SHAPE)
    plan = Plan(
        {f"features.{name}": range(graph.groups[f"features.{name}"].size // 2) for name in HALVED}
    )
    planned = count_plan(model, graph, plan)
    small = compact(model, graph, plan).model
    built = count(small, SHAPE)
    assert planned == built
    assert (built.params, built.macs, num_scales(small)) == (params, macs, scales)
    preprocessing = Preprocessing(SHAPE, (0.5,) * 3, (0.2,) * 3)
    arguments = architecture({"name": "vgg16", **options}, SHAPE, 10)
    save_model(tmp_path, small, arguments, plan, preprocessing, tuple("abcdefghij"), built)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = sum(
            file.get_tensor(key).numel()
            for key in file.keys()  # noqa: SIM118 - a safetensors file is no mapping
            if not key.endswith(buffers)
        )
    assert stored == params


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("head", ["linear", "fc512"])
def test_any_size_width_and_number_of_channels(name, head):
    for size, width, channels, classes in ((16, 0.1, 1, 3), (33, 0.07, 4, 7), (64, 0.05, 3, 2)):
        model = build(
            name,
            num_classes=classes,
            in_channels=channels,
            image_size=size,
            width=width,
            head=head,
        ).eval()
        assert model(torch.randn(2, channels, size, size)).shape == (2, classes)


def test_layers_are_named_as_in_the_papers():
    names = [name for name, m in meta("vgg16").features.named_children() if "conv" in name]
    assert names == [
        *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
        *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3"),
    ]


def test_initialisation_is_the_papers():
    torch.manual_seed(0)
    model = build("vgg11", num_classes=10, in_channels=3, image_size=32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.unique().tolist() == [0.5]
            assert module.bias.abs().max() == 0
    conv = model.features.conv4_2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_small_images_are_refused():
    with pytest.raises(UserError, match="16 x 16 pixels or more, not 15 x 15"):
        build("vgg16", num_classes=10, in_channels=3, image_size=15)
