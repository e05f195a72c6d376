"""The networks: counts to the last digit (spec D.2, B.4), sizes, and what is refused."""

import pytest
import torch
from safetensors import safe_open
from torch import nn

from chanprune.channels import Plan, compact, count, count_plan, trace
from chanprune.models import MODELS, architecture, build, build_skeleton
from chanprune.pipeline.model_file import Preprocessing, save_model
from chanprune.processes.errors import UserError

FC512 = {"head": "fc512"}
PRIORITIZED = {"head": "fc512", "head_norm": False, "conv_bias": True}
BIASED = {"head": "fc512", "conv_bias": True}
ZERO_PAD = {"shortcut": "zero_pad"}
POOLED = {"shortcut": "zero_pad", "downsample": "pool"}
BOTTLENECK = {"stem": 24, "bottleneck": True, "transition": "pool"}
BC = {"stem": 24, "bottleneck": True, "compression": 0.5}
CONVERTED = {"converted": True}
# name, options, classes, params, macs, batch-norm scales
PUBLISHED = [
    ("vgg16", {}, 10, 14_724_042, 313_201_664, 4_224),
    ("vgg16", {}, 100, 14_770_212, 313_247_744, 4_224),
    ("vgg16", FC512, 10, 14_987_722, 313_463_808, 4_736),
    ("vgg16", PRIORITIZED, 10, 14_990_922, 313_463_808, 4_224),
    ("vgg16", PRIORITIZED, 100, 15_037_092, 313_509_888, 4_224),
    ("vgg19", {}, 10, 20_035_018, 398_136_320, 5_504),
    ("vgg19", {}, 100, 20_081_188, 398_182_400, 5_504),
    ("resnet20", {}, 10, 269_722, 40_551_040, 688),
    ("resnet56", {}, 10, 853_018, 125_485_696, 2_032),
    ("resnet56", {}, 100, 858_868, 125_491_456, 2_032),
    ("resnet110", {}, 10, 1_727_962, 252_887_680, 4_048),
    ("resnet110", {}, 100, 1_733_812, 252_893_440, 4_048),
    ("preresnet29", {}, 10, 312_218, 47_106_560, 2_032),
    ("preresnet164", {}, 10, 1_703_258, 247_646_720, 12_112),
    ("preresnet164", {}, 100, 1_726_388, 247_669_760, 12_112),
    ("preresnet164", ZERO_PAD, 10, 1_661_274, 242_403_840, 12_112),
    ("preresnet164", POOLED, 10, 1_661_274, 239_258_112, 12_112),
    ("preresnet164", POOLED, 100, 1_684_404, 239_281_152, 12_112),
    ("resnext29", {}, 10, 34_426_698, 5_387_266_048, 28_736),
    ("resnext29", {"cardinality": 16}, 10, 68_155_210, 10_688_866_304, 50_240),
    ("preresnext29", {}, 10, 33_751_370, 4_900_726_784, 26_944),
    ("preresnext29", {}, 100, 33_843_620, 4_900_818_944, 26_944),
    ("densenet40", {}, 10, 1_019_722, 264_812_928, 9_048),
    ("densenet40", {}, 100, 1_060_132, 264_853_248, 9_048),
    ("densenet40", {"stem": 24}, 10, 1_059_298, 282_917_328, 9_360),
    ("densenet40", {"stem": 24}, 100, 1_100_428, 282_958_368, 9_360),
    ("densenet40", BOTTLENECK, 10, 211_978, 71_334_240, 3_372),
    ("densenet40", BOTTLENECK, 100, 233_668, 71_355_840, 3_372),
    ("densenet40", {"stem": 24, "bottleneck": True}, 10, 249_946, 87_996_768, 3_636),
    ("densenet40", BC, 10, 176_122, 72_365_352, 2_544),
    ("densenet100", BOTTLENECK, 10, 995_698, 286_439_280, 17_592),
    ("densenet100", BOTTLENECK, 100, 1_049_788, 286_493_280, 17_592),
    ("densenet100", BC, 10, 769_162, 287_929_692, 11_994),
    ("densenet100", BC, 100, 800_032, 287_960_472, 11_994),
    ("condensenet86", {}, 10, 1_451_594, 173_858_624, 15_976),
    ("condensenet86", CONVERTED, 10, 516_202, 62_377_888, 15_976),
    ("condensenet86", CONVERTED, 100, 552_292, 62_413_888, 15_976),
    ("condensenet182", {}, 10, 13_792_906, 1_615_332_192, 94_524),
    ("condensenet182", CONVERTED, 10, 4_209_226, 493_916_592, 94_524),
    ("condensenet182", CONVERTED, 100, 4_323_796, 494_031_072, 94_524),
    ("c2f", {}, 10, 2_264_026, 6_406_528, 4_432),
    ("condensenet50", CONVERTED, 10, 214_186, 27_183_376, 6_256),
    ("condensenet74", CONVERTED, 10, 402_026, 49_204_592, 12_256),
    ("condensenet98", CONVERTED, 10, 643_882, 76_992_976, 20_176),
    ("condensenet110", CONVERTED, 10, 785_066, 93_049_856, 24_856),
    ("condensenet122", CONVERTED, 10, 939_754, 110_548_528, 30_016),
]
# Other images (spec B.4): name, options, classes, (channels, size), params, macs
OTHER_IMAGES = [
    ("densenet40", BOTTLENECK, 10, (1, 28), 211_546, 54_277_152),
    ("densenet100", BOTTLENECK, 10, (1, 28), 995_266, 218_967_792),
    ("preresnet164", POOLED, 10, (1, 28), 1_660_986, 182_956_800),
    ("preresnext29", {}, 10, (1, 28), 33_750_218, 3_751_218_176),
]
# How papers count operations (spec D): name, options, convention, printed or recomputed value
CONVENTIONS = [
    ("condensenet86", CONVERTED, "condensenet", 65_812_394),
    ("condensenet182", CONVERTED, "condensenet", 512_658_874),
    ("vgg16", PRIORITIZED, "conv_flops", 626_393_088),
    ("vgg19", {}, "flops", 796_272_640),
]
# In millions, to the digits that are printed: CondenseNet's README; Rethinking's counter
ROUNDED = [
    ("condensenet50", CONVERTED, "condensenet", "28.64"),
    ("condensenet74", CONVERTED, "condensenet", "51.89"),
    ("condensenet98", CONVERTED, "condensenet", "81.26"),
    ("condensenet110", CONVERTED, "condensenet", "98.23"),
    ("condensenet122", CONVERTED, "condensenet", "116.74"),
    ("resnext29", {"cardinality": 16}, "condensenet", "10703.74"),
    ("vgg19", {}, "rethinking", "797.31"),
    ("densenet40", {}, "rethinking", "536.67"),
]
# Li et al. 2017: shares of the first filters of a stage's blocks that go, convolutions left alone
LI = [
    (56, (0.1, 0.1, 0.1), (16, 20, 38, 54), 773_336, 112_435_840, 1_935),
    (56, (0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54), 735_712, 90_907_264, 1_843),
]
# Li et al. 2017: half the filters of conv 1 and 8 to 13.
HALVED = ["conv1_1", "conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3"]
PRUNED = [
    (FC512, 5_397_034, 206_279_680, 3_168),
    (BIASED, 5_399_690, 206_279_680, 3_168),
]
SHAPE = (3, 32, 32)


def meta(name: str, classes: int = 10, **options) -> nn.Module:
    return build_skeleton(name=name, num_classes=classes, in_channels=3, image_size=32, **options)


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


@pytest.mark.parametrize(("name", "options", "classes", "image", "params", "macs"), OTHER_IMAGES)
def test_published_counts_on_other_images(name, options, classes, image, params, macs):
    channels, size = image
    model = build_skeleton(
        name=name, num_classes=classes, in_channels=channels, image_size=size, **options
    )
    counts = count(model, (channels, size, size))
    assert (counts.params, counts.macs) == (params, macs)


def test_the_c2f_network_is_yolov8n_s_backbone_and_neck():
    """2 259 536 parameters are those of its layers 0 to 21, as Ultralytics' summary lists them."""
    pyramid = meta("c2f").pyramid.eval()
    assert count(pyramid, (3, 64, 64)).params == 2_259_536
    scales = pyramid(torch.empty(2, 3, 640, 320, device="meta"))
    assert [tuple(x.shape[1:]) for x in scales] == [(64, 80, 40), (128, 40, 20), (256, 20, 10)]


@pytest.mark.parametrize(("name", "options", "convention", "value"), CONVENTIONS)
def test_operations_by_the_papers_conventions(name, options, convention, value):
    assert count(meta(name, **options), SHAPE).conventions()[convention] == value


@pytest.mark.parametrize(("name", "options", "convention", "value"), ROUNDED)
def test_operations_to_the_printed_digits(name, options, convention, value):
    operations = count(meta(name, **options), SHAPE).conventions()[convention]
    assert f"{operations / 1e6:.2f}" == value


@pytest.mark.parametrize(("depth", "shares", "skipped", "params", "macs", "scales"), LI)
def test_published_counts_of_pruned_resnets(depth, shares, skipped, params, macs, scales):
    """Only the first convolution of a block loses filters; convolutions count from 1."""
    model = meta(f"resnet{depth}")
    graph = trace(model, SHAPE)
    blocks = (depth - 2) // 6
    kept = {}
    for stage, share in enumerate(shares):
        for block in range(blocks):
            number = 2 * (stage * blocks + block) + 2
            name = f"stages.{stage}.{block}.conv1"
            if number not in skipped:
                kept[name] = range(int(graph.groups[name].size * (1 - share)))
    plan = Plan(kept)
    assert count_plan(model, graph, plan) == count(
        compact(model, graph, plan, check=False).model, SHAPE
    )
    small = compact(model, graph, plan, check=False).model
    counts = count(small, SHAPE)
    assert (counts.params, counts.macs, num_scales(small)) == (params, macs, scales)


OF_IMAGES = [name for name in MODELS if name not in {"torchvision", "timm", "mlp784", "custom"}]
SMALLEST = {"preresnet50": 32, "c2f": 16}
SIZES = ((16, 0.1, 1, 3), (33, 0.07, 4, 7), (64, 0.05, 3, 2))


@pytest.mark.parametrize("name", OF_IMAGES)
def test_any_size_width_and_number_of_channels(name):
    sizes = [entry for entry in SIZES if entry[0] >= SMALLEST.get(name, 16)]
    for size, width, channels, classes in sizes:
        model = build_skeleton(
            name=name, num_classes=classes, in_channels=channels, image_size=size, width=width
        ).eval()
        images = torch.empty(2, channels, size, size, device="meta")
        assert model(images).shape == (2, classes)


@pytest.mark.parametrize("size", [16, 33, 64])
def test_vgg_with_a_hidden_layer_takes_any_size(size):
    model = build(
        "vgg11", num_classes=4, in_channels=1, image_size=size, width=0.05, head="fc512"
    ).eval()
    assert model(torch.randn(2, 1, size, size)).shape == (2, 4)


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


@pytest.mark.parametrize("name", OF_IMAGES)
def test_small_images_are_refused(name):
    smallest = SMALLEST.get(name, 16 if name.startswith("vgg") else 8)
    with pytest.raises(UserError, match=f"{smallest} x {smallest} pixels or more"):
        build(name, num_classes=10, in_channels=3, image_size=smallest - 1)


SELECTIVE = {
    ("densenet40", "cifar100"): (233_668, 71_355_840),
    ("densenet40", "fashion"): (211_546, 54_277_152),
    ("densenet40", "tiny"): (257_768, 71_379_840),
    ("densenet100", "cifar100"): (1_049_788, 286_493_280),
    ("densenet100", "fashion"): (995_266, 218_967_792),
    ("densenet100", "tiny"): (1_109_888, 286_553_280),
    ("preresnet164", "cifar100"): (1_684_404, 239_281_152),
    ("preresnet164", "fashion"): (1_660_986, 182_956_800),
    ("preresnet164", "tiny"): (1_710_104, 239_306_752),
    ("preresnext29", "cifar100"): (33_843_620, 4_900_818_944),
    ("preresnext29", "fashion"): (33_750_218, 3_751_218_176),
    ("preresnext29", "tiny"): (33_946_120, 4_900_921_344),
    ("preresnet50", "imagenet"): (22_780_456, 3_498_311_680),
}


@pytest.mark.parametrize("name, images", SELECTIVE)
def test_counts_of_the_selective_convolution_paper_s_networks(name, images):
    classes, channels, size, stride = {
        "cifar100": (100, 3, 32, 1),
        "fashion": (10, 1, 28, 1),
        "tiny": (200, 3, 64, 2),
        "imagenet": (1000, 3, 224, 0),
    }[images]
    options = POOLED if name == "preresnet164" else BOTTLENECK if "dense" in name else {}
    options = {**options, "stem_stride": stride} if stride else options
    with torch.device("meta"):
        model = build(
            name,
            num_classes=classes,
            in_channels=channels,
            image_size=size,
            **options,
        )
    counts = count(model, (channels, size, size))
    assert (counts.params, counts.macs) == SELECTIVE[name, images]
