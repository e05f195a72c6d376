"""Max pooling for the compiler: the values and gradients of PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chanprune.pipeline.max_pool import fast_max_pools, halve

FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_is_max_pooling_also_of_equals(dtype, memory_format):
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(-2, 3, (4, 5, 6, 10), generator=draws).to(dtype)
    images = images.to(memory_format=memory_format).requires_grad_()
    towards = torch.randn(4, 5, 3, 5, generator=draws).to(dtype)
    found, expected = halve(images), F.max_pool2d(images, 2)
    assert torch.equal(found, expected)
    (gradient,) = torch.autograd.grad(found, images, towards)
    (of_torch,) = torch.autograd.grad(expected, images, towards)
    assert torch.equal(gradient, of_torch)


def test_what_is_not_a_number_stays_so():
    images = torch.zeros(1, 1, 4, 2)
    images[0, 0, 1, 0] = float("nan")
    assert torch.equal(halve(images).isnan(), F.max_pool2d(images, 2).isnan())


@pytest.mark.parametrize(
    ("pool", "is_fast"),
    [
        (nn.MaxPool2d(2), True),
        (nn.MaxPool2d((2, 2), stride=2, ceil_mode=True), True),
        (nn.MaxPool2d(3, stride=2, padding=1), False),
        (nn.MaxPool2d(2, stride=1), False),
        (nn.MaxPool2d((2, 1)), False),
        (nn.MaxPool2d(2, dilation=2), False),
        (nn.MaxPool2d(2, return_indices=True), False),
    ],
)
def test_other_windows_are_left_alone(pool, is_fast):
    with fast_max_pools(nn.Sequential(pool)):
        assert ("forward" in vars(pool)) == is_fast
    assert "forward" not in vars(pool), "it is over"


@pytest.mark.parametrize("shape", [(2, 3, 7, 8), (2, 3, 8, 5), (3, 8, 8)])
def test_images_of_other_shapes_are_pooled_as_by_torch(shape):
    images, pool = torch.randn(shape), nn.MaxPool2d(2)
    with fast_max_pools(nn.Sequential(pool)):
        assert torch.equal(pool(images), F.max_pool2d(images, 2))
