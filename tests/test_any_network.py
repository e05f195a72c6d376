"""Networks of torchvision that are no classifiers, and the parts of detectors."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

from chanprune.channels import (
    Plan,
    UnsupportedNetwork,
    compact,
    count,
    count_plan,
    example_of,
    filter_scores,
    masked,
    select_global,
    trace,
)
from tests.networks import conv_norm

NO_WEIGHTS = {"weights": None, "weights_backbone": None}
PARTS = [
    ("ssdlite320_mobilenet_v3_large", "backbone", 320),
    ("ssd300_vgg16", "backbone", 300),
    ("retinanet_resnet50_fpn", "backbone", 128),
    ("retinanet_resnet50_fpn", "head", 128),
    ("fasterrcnn_mobilenet_v3_large_fpn", "backbone", 128),
    ("fasterrcnn_mobilenet_v3_large_fpn", "rpn.head", 128),
    ("fasterrcnn_mobilenet_v3_large_fpn", "roi_heads.box_head", 128),
]


def pruned(model: nn.Module, example) -> tuple:
    graph = trace(model, example)
    groups = graph.prunable("together")
    plan = Plan(select_global(filter_scores(model, graph, groups), 0.3).kept)
    return compact(model, graph, plan), masked(model, graph.cut(plan)), graph, plan


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"]
)
def test_segmentation_networks_are_pruned_whole(name):
    torch.manual_seed(0)
    model = tv.get_model(name, **NO_WEIGHTS).double().eval()
    result, reference, graph, plan = pruned(model, (3, 64, 64))
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    got, expected = result.model.eval()(images)["out"], reference(images)["out"]
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert count(result.model, (3, 64, 64)) == count_plan(model, graph, plan)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "part", "size"), PARTS)
def test_a_detector_with_a_smaller_part_finds_what_the_masked_one_finds(name, part, size):
    torch.manual_seed(0)
    detector = tv.get_model(name, num_classes=5, **NO_WEIGHTS).eval()
    images = [torch.rand(3, size, size)]
    module = detector.get_submodule(part)
    result, reference, _, _ = pruned(module, example_of(detector, part, images))
    assert result.max_error <= 1e-9
    outputs = []
    for other in (result.model, reference):
        changed = copy.deepcopy(detector)
        changed.set_submodule(part, other.eval())
        with torch.no_grad():
            outputs.append(changed(images)[0])
    for key, found in outputs[0].items():
        torch.testing.assert_close(found, outputs[1][key], rtol=1e-3, atol=1e-3)


def test_an_example_of_a_part_is_what_the_network_calls_it_with():
    model = nn.Sequential(conv_norm(3, 8), conv_norm(8, 6))
    example = example_of(model, "1", torch.zeros(1, 3, 9, 7))
    assert example.shape == (8, 9, 7)
    assert trace(model[1], example).groups["input"].size == 8
    with pytest.raises(ValueError, match="no part 'neck'"):
        example_of(model, "neck", torch.zeros(1, 3, 9, 7))
    model.unused = nn.Identity()
    model.forward = lambda x: x
    with pytest.raises(ValueError, match="does not call '1'"):
        example_of(model, "1", torch.zeros(1, 3, 9, 7))


class Half(nn.Module):
    """The two halves of one convolution lose unequally; sizes are asked for, or written."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.body, self.left, self.right = conv_norm(3, 8), conv_norm(4, 5), conv_norm(4, 5)
        self.head, self.written = nn.Linear(5, 4), written

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        left, right = x.split([4, 4], 1) if self.written else x.chunk(2, 1)
        return self.head((self.left(left) + self.right(right)).mean((2, 3)))


@pytest.mark.parametrize("written", [False, True])
def test_a_network_keeps_its_class_where_its_own_code_runs(written):
    model = Half(written).double().eval()
    graph = trace(model, (3, 8, 8))
    evenly = compact(model, graph, Plan({"body.0": [0, 2, 5, 7]}))
    assert isinstance(evenly.model, Half) != written
    unevenly = compact(model, graph, Plan({"body.0": [0, 1, 2, 7]}))
    assert unevenly.model.get_submodule("left.0").in_channels == 3
    assert unevenly.model.get_submodule("right.0").in_channels == 1
    of_one = compact(model, graph, Plan({"body.0": [0, 1]}))
    for result in (evenly, unevenly, of_one):
        assert result.max_error <= 1e-9
        again = trace(result.model, (3, 8, 8))
        names = [g.name for g in again.prunable("together") if g.size > 1]
        kept = {name: range(again.groups[name].size - 1) for name in names}
        assert compact(result.model, again, Plan(kept)).max_error <= 1e-9
    twice = compact(evenly.model, evenly.graph, Plan({"body.0": [0, 1, 2]}))
    assert twice.max_error <= 1e-9 and twice.model.get_submodule("right.0").in_channels == 1


def test_a_network_that_cannot_run_in_float64_is_refused():
    class Single(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            single = torch.from_numpy(np.ones((128, 4), np.float32))
            return torch.mm(super().forward(x).flatten(1), single)

    model = Single(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1))
    graph = trace(model, (3, 8, 8))
    with pytest.raises(UnsupportedNetwork, match="cannot be run in float64"):
        compact(model, graph, Plan({"0": [0, 1]}))


@pytest.mark.slow
def test_the_page_s_example_runs():
    page = Path(__file__).parents[1] / "docs" / "any_network.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    names: dict = {}
    exec(code, names)
    assert names["graph"].prunable("together")
