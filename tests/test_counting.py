"""Counts agree with PyTorch's own counter, for whole and for compact networks."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from chanprune.channels import compact, count, recalibrate, trace
from tests.networks import (
    SMALL,
    SMALL_SHAPE,
    TORCHVISION,
    TORCHVISION_SHAPE,
    but_slow,
    random_plan,
    randomise,
)


def oracle_macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", but_slow([*SMALL, *TORCHVISION], "vgg16_bn"))
def test_macs_equal_half_the_flops_of_pytorchs_counter(name):
    small = name in SMALL
    model = (SMALL if small else TORCHVISION)[name]()
    shape = SMALL_SHAPE if small else TORCHVISION_SHAPE
    counts = count(model, shape)
    assert counts.macs == oracle_macs(model, shape)
    assert counts.params == sum(p.numel() for p in model.parameters())
    graph = trace(model, shape)
    result = compact(model, graph, random_plan(graph, 0), check=False)
    assert count(result.model, shape).macs == oracle_macs(result.model, shape)


class Functional(nn.Module):
    """Convolutions and products that no layer does, and transposed ones."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.up = nn.ConvTranspose2d(8, 6, 3, 2, groups=2)
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(nn.functional.conv2d(x, self.filters, stride=2)).flatten(2).transpose(1, 2)
        x = self.attend(x, x, x)[0] @ torch.ones(6, 6)
        return self.head(
            nn.functional.linear(x, self.head.weight[:, :6]).mean(1) @ torch.ones(5, 6)
        )


def test_every_product_is_counted_where_it_is_done():
    """PyTorch's own counter knows them all, by module."""
    model = Functional().eval()
    counts = count(model, SMALL_SHAPE)
    with FlopCounterMode(display=False, depth=1) as counter, torch.no_grad():
        torch.backends.mha.set_fastpath_enabled(False)
        model(torch.zeros(1, *SMALL_SHAPE))
        torch.backends.mha.set_fastpath_enabled(True)
    assert counts.macs == counter.get_total_flops() // 2
    by_name = {layer.name: layer.macs for layer in counts.layers}
    assert by_name["up"] == sum(counter.get_flop_counts()["Functional.up"].values()) // 2
    assert by_name[""] > 7 * 7 * 8 * 27 and by_name["attend"] > 0
    assert counts.params == sum(p.numel() for p in model.parameters())
    assert counts.macs_of("conv") == by_name["up"]


def test_recalibration_gives_the_statistics_of_the_data():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).train()
    model[1].eval()
    images = torch.randn(8, 16, 3, 4, 4) * 2 + 1
    model[0].running_mean.fill_(9)
    recalibrate(model, ((batch, torch.zeros(16)) for batch in images), "cpu")
    flat = images.transpose(1, 2).transpose(0, 1).reshape(3, 8, -1)
    torch.testing.assert_close(model[0].running_mean, flat.mean((1, 2)), rtol=1e-4, atol=1e-5)
    expected = flat.var(dim=2).mean(dim=1)
    torch.testing.assert_close(model[0].running_var, expected, rtol=1e-4, atol=1e-5)
    assert model.training and model[0].training and not model[1].training
    assert model[0].momentum == 0.1


def test_recalibration_needs_images():
    with pytest.raises(ValueError, match="no images"):
        recalibrate(randomise(SMALL["chain"](), 0), [], "cpu")
