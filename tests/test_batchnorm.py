"""Batch norms that go through rows of pixels give what PyTorch's give."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from chanprune.channels import batchnorm, rowwise_batch_norms
from chanprune.channels.gathered import read
from chanprune.channels.rowwise_norm import batch_norm, is_faster
from chanprune.rewiring import Copies, allow_copies
from tests.networks import randomise
from tests.test_pipeline import STAGE, changed, execute


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def random(*shape, seed):
    draws = torch.Generator().manual_seed(seed)
    images = torch.randn(shape, generator=draws, dtype=torch.float64)
    return images.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else images


class Threads(TorchDispatchMode):
    """Notes in how many threads PyTorch's batch norm runs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "batch_norm" in str(func):
            self.seen.append(torch.get_num_threads())
        return func(*args, **(kwargs or {}))


def trained(norm, images, towards):
    """Return what a training step gives: output, gradients and running statistics."""
    norm, images = copy.deepcopy(norm).train(), images.clone().requires_grad_()
    output = norm(images)
    inputs = images, *norm.parameters()
    found = torch.autograd.grad((output * towards).sum(), inputs, materialize_grads=True)
    return output, *found, *norm.buffers()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("channels", "gathers"), [(3, False), (13, False), (40, True)])
def test_rowwise_batch_norm_is_batch_norm(channels, gathers, momentum):
    norm = randomise(nn.BatchNorm2d(channels, momentum=momentum), 0).double()
    images = random(4, channels + 5 * gathers, 6, 5, seed=1)
    if gathers:
        read(norm, torch.randperm(channels + 5)[:channels])
    towards = random(4, channels, 6, 5, seed=2)
    expected = trained(norm, images, towards)
    model = nn.Sequential(norm)
    with rowwise_batch_norms(model):
        assert norm.forward.func.__module__ == "chanprune.channels.batchnorm"
        found = trained(norm, images, towards)
        torch.testing.assert_close(model.eval()(images), norm.eval()(images), atol=0, rtol=0)
    assert "forward" not in vars(norm), "it is over"
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("gathers", [False, True])
def test_bfloat16_is_normalised_in_one_thread_and_as_in_two(gathers):
    norm = randomise(nn.BatchNorm2d(13), 0)
    images = random(4, 13 + 5 * gathers, 6, 5, seed=1).bfloat16()
    if gathers:
        read(norm, torch.randperm(18)[:13])
    towards = random(4, 13, 6, 5, seed=2).bfloat16()
    expected = trained(norm, images, towards)
    with rowwise_batch_norms(nn.Sequential(norm)), Threads() as threads:
        found = trained(norm, images, towards)
    assert threads.seen == [1, 1], "forward and backward"
    assert torch.get_num_threads() == 2
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-2)


def test_its_gradients_are_those_of_finite_differences():
    images, weight, bias = random(2, 3, 4, 3, seed=0), random(3, seed=1), random(3, seed=2)
    assert is_faster(images, weight)
    assert not is_faster(images.contiguous(), weight)

    def normalise(images, weight, bias):
        return batch_norm(
            images, weight, bias, (weight.new_zeros(3), weight.new_ones(3)), 0.1, 1e-5
        )

    inputs = [tensor.requires_grad_() for tensor in (images, weight, bias)]
    assert torch.autograd.gradcheck(normalise, inputs)


@pytest.mark.parametrize("channels", [16, 20])
def test_copies_are_normalised_alike_in_both_ways(channels):
    norm = randomise(nn.BatchNorm2d(channels), 0).double()
    copying = allow_copies(norm)
    copying.copy(Copies([1, 4, 5], [0, 0, 2], [0, 0, 2], random(3, 2, seed=3)))
    images, towards = random(4, channels, 6, 5, seed=1), random(4, channels, 6, 5, seed=2)
    found = trained(copying, images, towards)
    images.requires_grad_()
    slots = copying.gathered(images)
    of_slots = F.batch_norm(slots, None, None, norm.weight, norm.bias, True)
    inputs = images, *copying.parameters()
    expected = of_slots, *torch.autograd.grad((of_slots * towards).sum(), inputs)
    for mine, theirs in zip(found[: len(expected)], expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=0)


@pytest.mark.parametrize("channels", [16, 20])
def test_an_activation_may_write_over_what_it_normalised(channels):
    norm = allow_copies(randomise(nn.BatchNorm2d(channels), 0).double())
    images, towards = random(4, channels, 6, 5, seed=1), random(4, channels, 6, 5, seed=2)
    for copies in ([], [1, 4]):
        norm.copy(Copies(copies, copies, copies, random(len(copies), 2, seed=3)))
        found = []
        for inplace in (False, True):
            model = nn.Sequential(norm, nn.ReLU(inplace))
            with rowwise_batch_norms(model):
                found.append(trained(model, images, towards))
        for left, right in zip(*found, strict=True):
            assert torch.equal(left, right)


def test_only_pytorchs_own_batch_norms_with_statistics_are_touched():
    class WithActivation(nn.BatchNorm2d):
        def forward(self, images):
            return torch.relu(super().forward(images))

    others = WithActivation(5), nn.BatchNorm2d(5, affine=False), nn.BatchNorm1d(5)
    others = (*others, nn.BatchNorm2d(5, track_running_stats=False))
    with rowwise_batch_norms(nn.Sequential(*others, own := nn.BatchNorm2d(5))):
        assert "forward" in vars(own)
        assert not any("forward" in vars(norm) for norm in others)


@pytest.mark.slow
def test_training_has_them_and_gives_what_it_gives_without(tmp_path, monkeypatch):
    config = changed(
        model={"name": "preresnet29", "width": 0.125},
        prune={"ratio": 0.4, "recalibrate": 256},
        train={"epochs": 1, "batch_size": 256},
        finetune={**STAGE, "epochs": 1, "batch_size": 256, "lr": 1e-3},
    )
    calls = []
    own = batchnorm.batch_norm
    monkeypatch.setattr(batchnorm, "batch_norm", lambda *args: calls.append(1) or own(*args))
    with_them = execute(config, tmp_path / "rows")["stages"]
    assert calls
    monkeypatch.setattr(batchnorm, "is_slow", lambda *_: False)
    without = execute(config, tmp_path / "pixels")["stages"]
    for mine, theirs in zip(with_them, without, strict=True):
        assert mine["test_accuracy"] == pytest.approx(theirs["test_accuracy"], abs=0.02)
