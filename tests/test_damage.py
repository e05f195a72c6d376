"""Expected channel damage: its closed form, what is released for it, and what that does."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chanprune.rewiring import expected_damage
from chanprune.rewiring.allocation import released
from chanprune.rewiring.damage import mean_activity, shares

THRESHOLDS = (0.0, 0.001, 0.02, 0.1, 0.3)


def unit(inputs, outputs, kernel=1, seed=0, **options):
    """A batch norm and a convolution with random parameters, in float64."""
    random = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(inputs, outputs, kernel, bias=False, **options).double()
    norm = nn.BatchNorm2d(inputs).double()
    with torch.no_grad():
        conv.weight.normal_(generator=random)
        norm.weight.normal_(generator=random)
        norm.bias.normal_(0, 0.7, generator=random)
    return norm, conv


def activated(norm, size, images, seed):
    """What batch norm and ReLU would emit under the assumption: independent normal pixels."""
    random = torch.Generator().manual_seed(seed)
    shape = (images, norm.num_features, *size)
    noise = torch.randn(shape, generator=random, dtype=torch.float64)
    columns = (1, -1, 1, 1)
    return torch.relu(noise * norm.weight.view(columns) + norm.bias.view(columns)).detach()


def measured(conv, images):
    """Mean of each output's change, over images and positions, without an input: (I, O)."""
    single = [
        conv._conv_forward(images[:, i : i + 1], conv.weight[:, i : i + 1], None)
        for i in range(conv.in_channels)
    ]
    return torch.stack([each.mean((0, 2, 3)) for each in single]).detach()


def test_mean_activity_is_that_of_a_rectified_normal():
    shift, scale = torch.meshgrid(torch.linspace(-3, 3, 7), torch.linspace(-2, 2, 5), indexing="ij")
    random = torch.Generator().manual_seed(0)
    draws = torch.randn(400_000, 1, generator=random, dtype=torch.float64)
    values = (draws * scale.flatten() + shift.flatten()).clamp(min=0)
    closed = mean_activity(shift.flatten(), scale.flatten())
    torch.testing.assert_close(closed, values.mean(0), atol=2e-2, rtol=0)
    assert torch.equal(closed, mean_activity(shift.flatten(), -scale.flatten()))
    assert (closed >= shift.flatten().clamp(min=0)).all()
    assert (mean_activity(shift, scale).diff(dim=0) >= 0).all(), "it rises with the shift"


def test_mean_activity_at_its_limits():
    zero = torch.zeros(1)
    assert mean_activity(zero, zero) == 0
    assert mean_activity(zero + 2, zero) == 2 and mean_activity(zero - 2, zero) == 0
    assert mean_activity(zero, zero + 1).item() == pytest.approx(1 / math.sqrt(2 * math.pi))
    tail = mean_activity(torch.linspace(-30, -4, 100), torch.ones(100))
    assert (tail > 0).all() and (tail.diff() > 0).all()
    assert mean_activity(zero - 5, zero + 1).item() == pytest.approx(5.346e-8, rel=1e-3)
    assert mean_activity(zero - 6, zero + 1).item() == pytest.approx(1.564e-10, rel=1e-3)


@pytest.mark.parametrize(
    "kernel, padding, options",
    [
        (1, 0, {}),
        (3, 0, {}),
        (3, 1, {}),
        (5, 2, {}),
        ((3, 2), (0, 1), {}),
        (3, 1, {"stride": 2}),
        (3, 2, {"dilation": 2}),
        (3, (1, 2), {"dilation": (1, 2), "stride": (2, 1)}),
        (3, "same", {"dilation": 2}),
        (4, "same", {"dilation": 2}),
        (3, "valid", {}),
    ],
)
def test_damage_is_what_is_measured_on_normal_pixels(kernel, padding, options):
    size = (8, 6)
    norm, conv = unit(5, 4, kernel, padding=padding, **options)
    truth = measured(conv, activated(norm, size, 4000, 1))
    closed = expected_damage(conv, norm, size, counts_padding=True)
    torch.testing.assert_close(closed, truth, atol=3e-2, rtol=0)
    ignored = expected_damage(conv, norm, size)
    if padding not in (0, "valid"):
        assert (ignored - truth).abs().max() > 0.05, "padding matters"
    else:
        torch.testing.assert_close(ignored, closed)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_by_pixels_is_not_padding_by_zeros(mode):
    norm, conv = unit(5, 4, 3, padding=1, padding_mode=mode)
    truth = measured(conv, activated(norm, (8, 6), 4000, 1))
    for counts in (True, False):
        closed = expected_damage(conv, norm, (8, 6), counts_padding=counts)
        torch.testing.assert_close(closed, truth, atol=3e-2, rtol=0)


def test_the_damage_of_a_copy_behind_the_activation_is_that_of_its_source():
    """A column that reads a copy is worth what the source's batch norm emits, not its own."""
    norm, _ = unit(5, 4)
    _, conv = unit(7, 4)
    index = torch.tensor([3, 0, 0, 4, 2, 2, 3])
    images = activated(norm, (8, 6), 4000, 1)[:, index]
    closed = expected_damage(conv, norm, (8, 6), index)
    truth = measured(conv, images)
    torch.testing.assert_close(closed, truth, atol=3e-2, rtol=0)


def test_taps_of_different_sign_cancel():
    norm, conv = unit(1, 1, 3, padding=1)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[[1, 0, -1], [2, 0, -2], [1, 0, -1.0]]]]))
    assert expected_damage(conv, norm, (8, 8)).abs().item() < 1e-15


def test_shares_are_invariant_as_they_must_be():
    norm, conv = unit(7, 5)
    share = shares(expected_damage(conv, norm, (4, 4)))
    torch.testing.assert_close(share.sum(0), torch.ones(5, dtype=torch.float64))
    with torch.no_grad():
        conv.weight[2] *= 3.5
        torch.testing.assert_close(shares(expected_damage(conv, norm, (4, 4))), share)
        before = expected_damage(conv, norm, (4, 4))
        norm.weight[4] *= 2.5
        norm.bias[4] *= 2.5
        after = expected_damage(conv, norm, (4, 4))
        torch.testing.assert_close(after[4], 2.5 * before[4])
        conv.weight[3] = 0
    dead = shares(expected_damage(conv, norm, (4, 4)))
    assert dead[:, 3].eq(0).all() and not dead.isnan().any()


def one_by_one(damage, threshold):
    """The rule as the paper's code spells it: channel after channel."""
    share = shares(damage)
    gone = torch.zeros(share.shape[1], dtype=torch.float64)
    taken = []
    for channel in share.amax(1).argsort(stable=True).tolist():
        if (gone + share[channel]).max() > threshold:
            break
        gone = gone + share[channel]
        taken.append(channel)
    return sorted(taken)


@pytest.mark.parametrize("seed", range(20))
def test_released_is_the_longest_prefix_within_the_threshold(seed):
    norm, conv = unit(60, 9, seed=seed)
    damage = expected_damage(conv, norm, (4, 4))
    share = shares(damage)
    before: set[int] = set()
    for threshold in THRESHOLDS:
        gone = released(damage, threshold)
        assert gone == one_by_one(damage, threshold)
        assert share[gone].sum(0).max() <= threshold
        left = share.amax(1).clone()
        left[gone] = math.inf
        assert (share[gone].sum(0) + share[left.argmin()]).max() > threshold
        assert before <= set(gone)
        before = set(gone)


def test_released_at_the_edges():
    norm, conv = unit(6, 3)
    with torch.no_grad():
        norm.weight[2] = norm.bias[2] = 0
    damage = expected_damage(conv, norm, (4, 4))
    assert released(damage, 0.0) == [2], "without a budget only what does nothing goes"
    assert len(released(damage, 1.0)) == 5, "one stays"
    assert len(released(torch.zeros(6, 3), 0.1)) == 5, "also where all would go"
    assert released(torch.zeros(6, 0), 0.1) == []
    gone = released(damage, 0.3)
    assert 2 in gone and shares(damage)[gone].sum(0).max() <= 0.3


@pytest.mark.parametrize("threshold", [0.02, 0.1])
def test_what_is_released_changes_a_pointwise_output_by_no_more_than_it_may(threshold):
    norm, conv = unit(80, 6)
    damage = expected_damage(conv, norm, (8, 8))
    gone = released(damage, threshold)
    assert gone
    images = activated(norm, (8, 8), 500, 1)
    change = F.conv2d(images[:, gone], conv.weight[:, gone]).abs().mean((0, 2, 3))
    allowed = threshold * damage.abs().sum(0)
    assert (change <= 1.02 * allowed).all() and (change > 0.1 * allowed).any()


def test_a_channel_that_never_fires_changes_nothing():
    norm, conv = unit(5, 4)
    with torch.no_grad():
        norm.bias[3] = -8 * norm.weight[3].abs()
    assert 3 in released(expected_damage(conv, norm, (8, 8)), 1e-3)
    images = activated(norm, (8, 8), 50, 1)
    images[:, 3] = torch.relu(norm.bias[3] + norm.weight[3].abs() * 7)
    assert F.conv2d(images[:, 3:4], conv.weight[:, 3:4]).abs().max() == 0


def test_calls_after_each_other_keep_what_they_promise():
    norm, conv = unit(200, 8)
    damage, threshold = expected_damage(conv, norm, (4, 4)), 0.005
    total = damage.abs().sum(0)
    for call in range(1, 30):
        damage[released(damage, threshold)] = 0
        assert (damage.abs().sum(0) >= (1 - threshold) ** call * total).all()
