"""Copies: shifts, what a slot reads, and rewiring a network in training."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chanprune.channels import (
    Bank,
    Plan,
    compact,
    count,
    count_plan,
    trace,
)
from chanprune.channels.gathered import pick
from chanprune.models import build
from chanprune.rewiring import (
    Copies,
    Copying,
    Rewiring,
    allow_copies,
    expand,
    expanded,
    rebuild,
    rewire,
    selective_units,
    wiring,
)
from chanprune.rewiring.allocation import copies_for
from chanprune.rewiring.shift import hat_kernels, radius_of, translate
from tests.networks import SMALL, SMALL_SHAPE, conv_norm, randomise

FORMATS = (torch.contiguous_format, torch.channels_last)


def random(*shape, seed=0, form=torch.contiguous_format):
    draws = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=draws, dtype=torch.float64)
    return values.contiguous(memory_format=form) if len(shape) == 4 else values


def four_taps(images, shift):
    """Move by interpolation between four clamped pixels."""
    height, width = images.shape[2:]
    moved = []
    for channel, (x, y) in enumerate(shift):
        left, top = x.floor(), y.floor()
        total = 0
        for column, by_x in ((left, left + 1 - x), (left + 1, x - left)):
            for row, by_y in ((top, top + 1 - y), (top + 1, y - top)):
                rows = (torch.arange(height) + int(row)).clamp(0, height - 1)
                columns = (torch.arange(width) + int(column)).clamp(0, width - 1)
                total = total + by_x * by_y * images[:, channel][:, rows][:, :, columns]
        moved.append(total)
    return torch.stack(moved, 1)


def sampled(images, shift, align_corners=False):
    """Move by PyTorch's grid sampling, in its units of half an image."""
    size = images.shape[-1]
    moved = []
    for channel, offset in enumerate(shift):
        still = torch.eye(2, 3, dtype=images.dtype).expand(len(images), 2, 3)
        grid = F.affine_grid(still, (len(images), 1, size, size), align_corners=align_corners)
        grid = grid + 2 * offset / size
        part = images[:, channel : channel + 1]
        moved.append(F.grid_sample(part, grid, padding_mode="border", align_corners=align_corners))
    return torch.cat(moved, 1)


@pytest.mark.parametrize("form", FORMATS)
def test_shifts_are_interpolation_with_their_gradients(form):
    images = random(2, 7, 6, 6, form=form).requires_grad_()
    shift = (2.5 * random(7, 2, seed=1)).requires_grad_()
    towards = random(2, 7, 6, 6, seed=2)
    moved = translate(images, shift)
    gradients = torch.autograd.grad((moved * towards).sum(), (images, shift))
    for other in (four_taps(images, shift), sampled(images, shift)):
        torch.testing.assert_close(moved, other, atol=1e-12, rtol=0)
        expected = torch.autograd.grad((other * towards).sum(), (images, shift))
        for mine, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=0)
    assert torch.autograd.gradcheck(translate, (images, shift))


def test_shifts_by_whole_pixels_crop_an_image_whose_edge_goes_on():
    images = random(1, 3, 5, 4)
    shift = torch.tensor([[0.0, 0], [2, -1], [-9, 0]], dtype=torch.float64)
    moved = translate(images, shift)
    assert torch.equal(moved[:, 0], images[:, 0])
    padded = F.pad(images[:, 1:2], (2, 2, 2, 2), mode="replicate")[:, 0]
    torch.testing.assert_close(moved[:, 1], padded[:, 1:6, 4:8], atol=1e-15, rtol=0)
    torch.testing.assert_close(moved[:, 2], images[:, 2, :, :1].expand(1, 5, 4))
    images.requires_grad_()
    still = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(translate(images, still)[:, 0, 2, 1].sum(), still)[0][0]
    right = images[0, 0, 2, 2] - images[0, 0, 2, 1], images[0, 0, 3, 1] - images[0, 0, 2, 1]
    torch.testing.assert_close(slope, torch.stack(right).detach())


def test_shifts_keep_constants_and_commute_with_what_is_affine():
    shift = 1.5 * random(4, 2)
    constant = torch.full((1, 4, 6, 5), 3.0, dtype=torch.float64)
    torch.testing.assert_close(translate(constant, shift), constant)
    images = random(2, 4, 6, 5, seed=1)
    norm = randomise(nn.Sequential(nn.BatchNorm2d(4)), 0).double().eval()
    torch.testing.assert_close(translate(norm(images), shift), norm(translate(images, shift)))
    before, behind = translate(torch.relu(images), shift), torch.relu(translate(images, shift))
    assert (before >= behind - 1e-12).all() and (before - behind).max() > 0.1
    whole = shift.round()
    torch.testing.assert_close(
        translate(torch.relu(images), whole), torch.relu(translate(images, whole))
    )


def test_shifts_with_aligned_corners_mean_less_than_a_pixel():
    images, shift = random(1, 2, 8, 8), torch.tensor([[1.2, -0.4], [0.3, 0.9]]).double()
    aligned = sampled(images, shift, align_corners=True)
    torch.testing.assert_close(aligned, translate(images, shift * 7 / 8), atol=1e-10, rtol=0)


def test_the_kernels_reach_as_far_as_the_shifts():
    for length in (0.0, 0.4, 1.0, 1.99, 2.0, 3.7):
        shift = torch.tensor([[length, -length]], dtype=torch.float64)
        kernel = hat_kernels(shift, radius_of(shift))
        torch.testing.assert_close(kernel.sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("index", [[3, 1, 4], [0], [5, 4, 3, 2, 1, 0]])
def test_picking_is_indexing_with_its_gradient(index, form):
    images, index = random(2, 6, 3, 4, form=form).requires_grad_(), torch.tensor(index)
    assert torch.equal(pick(images, index), images[:, index])
    assert torch.autograd.gradcheck(lambda x: pick(x, index), images)


def read_by_hand(norm, images):
    """What the slots of a batch norm read, one by one."""
    read = []
    for slot in range(len(norm.index)):
        channel = images[:, norm.index[slot]][:, None]
        if norm.is_copy[slot]:
            channel = four_taps(channel, norm.shift[slot][None])
        read.append(channel)
    return torch.cat(read, 1)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_norm_with_copies_normalises_what_its_slots_read(training, form):
    plain = randomise(nn.Sequential(nn.BatchNorm2d(6)), 0)[0].double()
    norm = allow_copies(copy.deepcopy(plain))
    images = random(3, 6, 5, 4, form=form).requires_grad_()
    assert torch.equal(norm.train(training)(images), plain.train(training)(images))
    norm.copy(Copies([1, 4], [0, 2], [0, 5], random(2, 2, seed=1)))
    assert norm.weight[4] == norm.weight[2] and norm.running_var[1] == norm.running_var[0]
    with torch.no_grad():
        plain.load_state_dict(
            {k: v for k, v in norm.state_dict().items() if k in plain.state_dict()}
        )
    towards = random(3, 6, 5, 4, seed=2)
    mine, theirs = norm(images), plain(read_by_hand(norm, images))
    torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var)
    torch.testing.assert_close(norm.gathered(images), read_by_hand(norm, images))
    gradients = torch.autograd.grad(
        (mine * towards).sum(), (images, norm.shift, norm.weight, norm.bias)
    )
    expected = torch.autograd.grad(
        (theirs * towards).sum(), (images, norm.shift, plain.weight, plain.bias)
    )
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=0)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", ["norm", "conv"])
@pytest.mark.parametrize(
    ("own", "width"),
    [([0, 1, 2, 3, 4], 5), ([0, 1, 2, 3, 4], 8), ([2, 7, 0, 3, 5], 8), ([7, 6, 5, 4, 3], 8)],
)
def test_slots_read_what_they_are_told_to_of_a_stream(layer, training, own, width, form):
    """A layer reads some channels of a stream: its own ones, and shifted copies of any."""
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(5) if layer == "norm" else nn.Conv2d(5, 4, 1)
    plain = randomise(nn.Sequential(plain), 0)[0].double()
    copying = allow_copies(copy.deepcopy(plain)).train(training)
    copying.gather_channels(torch.tensor(own))
    copying.copy(Copies([1, 3], [1, 3], [width - 2, 0], random(2, 2, seed=1)))
    assert copying.index.tolist() == [own[0], width - 2, own[2], 0, own[4]]
    plain.train(training)
    images = random(3, width, 5, 4, form=form).requires_grad_()
    mine, theirs = copying(images), plain(read_by_hand(copying, images))
    torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)
    towards = random(*mine.shape, seed=2)
    gradients = torch.autograd.grad((mine * towards).sum(), (images, copying.shift))
    expected = torch.autograd.grad((theirs * towards).sum(), (images, copying.shift))
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=0)
    copying.compacted(width)
    torch.testing.assert_close(copying.eval()(images), plain.eval()(read_kept(copying, images)))


def read_kept(copying, images):
    """What the slots read where the shifts of copies alone are left."""
    shift = torch.zeros(len(copying.index), 2, dtype=copying.shift.dtype)
    shift[copying.copies] = copying.shift.detach()
    return read_by_hand(SimpleNamespace(**vars(copying), **copying._buffers, shift=shift), images)


@pytest.mark.parametrize("own", [[0, 1, 2, 3], [2, 7, 0, 3], [7, 6, 5, 4]])
def test_a_norm_without_copies_goes_on_reading_its_own_channels(own):
    norm = allow_copies(randomise(nn.Sequential(nn.BatchNorm2d(4)), 0)[0].double().eval())
    norm.gather_channels(torch.tensor(own))
    images = random(2, 8, 5, 4)
    before = norm(images)
    norm.compacted(8)
    assert not isinstance(norm, Copying)
    assert torch.equal(norm(images), before)


def test_a_norm_that_got_no_copies_reads_its_part_of_a_stream():
    """Its slots may go; those that are left are the first channels of a stream that is wider."""
    model, graph = network()
    unit, norm = first_unit(model, graph)
    skeleton = NETWORKS["preactivation"]()
    rewire(skeleton, wiring(model))
    rewired = trace(skeleton, SMALL_SHAPE)
    result = compact(model, rewired, Plan({unit.group: range(6)}))
    left = result.model.get_submodule(unit.norm)
    assert result.max_error < 1e-9 and not isinstance(left, Copying)
    assert left.index.tolist() == list(range(6))


def test_sources_are_the_best_and_no_channel_is_copied_too_often():
    damage = torch.rand(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    index, is_copy = torch.arange(40), torch.zeros(40, dtype=torch.bool)
    index[5], is_copy[5] = 7, True
    free = list(range(10, 30))

    def choose(**options):
        draws = torch.Generator().manual_seed(1)
        return copies_for(damage, free, index, is_copy, generator=draws, **options)

    chosen = choose(top=3, max_copies=None)
    assert list(chosen.slots) == free and chosen.shifts.abs().max() <= 1.5
    left = damage.clone()
    left[free] = 0
    best = (left / left.sum(0)).norm(dim=1).argsort(descending=True)[:3].tolist()
    assert set(chosen.like) <= set(best)
    assert [index[i].item() for i in chosen.like] == list(chosen.sources)
    assert choose(top=3, max_copies=None).shifts.equal(chosen.shifts), "it is a pure function"
    limited = choose(top=3, max_copies=2)
    counts = torch.bincount(torch.tensor([*limited.sources, 7]), minlength=40)
    assert counts.max() <= 2 and len(limited.slots) == 20
    damage[[i for i in range(40) if i not in free and i != 5]] = 0
    assert choose(top=3, max_copies=None).sources == [7] * 20, "fewer than three are alive"
    assert len(choose(top=3, max_copies=4).slots) == 3, "and of one channel there are enough"
    damage[5] = 0
    assert not choose(top=3, max_copies=None).slots


def test_shifts_reach_one_and_a_half_pixels_to_every_side():
    damage = torch.ones(2000, 2)
    chosen = copies_for(
        damage,
        range(1000),
        torch.arange(2000),
        torch.zeros(2000, dtype=torch.bool),
        top=1000,
        max_copies=None,
        generator=torch.Generator().manual_seed(0),
    )
    low, high = chosen.shifts.min(0).values, chosen.shifts.max(0).values
    assert (low >= -1.5).all() and (low < -1.49).all()
    assert (high <= 1.5).all() and (high > 1.49).all()
    assert (chosen.shifts.mean(0).abs() < 0.1).all()


class Straight(nn.Sequential):
    """Convolution, batch norm and ReLU, three times."""

    def __init__(self):
        ends = [(3, 8, 3), (8, 6, 1), (6, 7, 3)]
        blocks = [conv_norm(i, o, k) for i, o, k in ends]
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 5))


NETWORKS = {**SMALL, "straight": Straight}


def network(kind="preactivation", seed=0):
    torch.manual_seed(seed)
    model = randomise(NETWORKS[kind](), seed).double()
    return model, trace(model, SMALL_SHAPE)


def first_unit(model, graph):
    units, _ = selective_units(model, graph)
    norm = model.get_submodule(units[0].norm)
    return units[0], norm if isinstance(norm, Copying) else allow_copies(norm)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["preactivation", "dense", "straight"])
def test_re_allocating_changes_nothing_when_it_happens(kind, training):
    model, graph = network(kind)
    unit, norm = first_unit(model, graph)
    bank = Bank(model, graph, torch.optim.SGD(model.parameters(), lr=0.1))
    images = random(4, *SMALL_SHAPE)
    slots = [1, 3]
    Rewiring(unit.conv, unit.norm, slots).apply(bank)
    reference = copy.deepcopy(model).train(training)
    copies = Copies(slots, [0, 2], [0, 2], random(2, 2, seed=1))
    Rewiring(unit.conv, unit.norm, slots, copies).apply(bank)
    assert torch.equal(model.train(training)(images), reference(images))
    loss = model.train()(images).square().sum()
    loss.backward()
    conv = model.get_submodule(unit.conv)
    assert norm.shift.grad.abs().max() == 0
    assert norm.weight.grad[slots].abs().max() == 0 and norm.bias.grad[slots].abs().max() == 0
    assert conv.weight.grad[:, slots].abs().amax((0, 2, 3)).min() > 0
    bank.optimiser.step()
    bank.optimiser.zero_grad()
    model(images).square().sum().backward()
    assert norm.shift.grad[slots].abs().amax(1).min() > 0


@pytest.mark.parametrize("adam", [False, True])
def test_new_columns_begin_without_momentum_and_norms_with_that_of_their_source(adam):
    model, graph = network()
    unit, norm = first_unit(model, graph)
    optimiser = (
        torch.optim.Adam(model.parameters(), lr=0.01)
        if adam
        else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    )
    bank = Bank(model, graph, optimiser)
    for seed in range(3):
        optimiser.zero_grad()
        model(random(4, *SMALL_SHAPE, seed=seed)).square().mean().backward()
        optimiser.step()
    conv = model.get_submodule(unit.conv)
    keys = ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",)
    before = {key: optimiser.state[conv.weight][key].clone() for key in keys}
    Rewiring(unit.conv, unit.norm, [1], Copies([1], [0], [0], torch.ones(1, 2))).apply(bank)
    for key in keys:
        moment = optimiser.state[conv.weight][key]
        assert moment[:, 1].eq(0).all() and torch.equal(moment[:, 2:], before[key][:, 2:])
        for parameter in (norm.weight, norm.bias):
            own = optimiser.state[parameter][key]
            assert own[1] == own[0] != 0
        assert key not in optimiser.state[norm.shift], "shifts have not moved yet"
    if not adam:
        optimiser.zero_grad()
        model(random(4, *SMALL_SHAPE)).square().mean().backward()
        gradient = conv.weight.grad[:, 1].clone()
        optimiser.step()
        torch.testing.assert_close(conv.weight[:, 1], -0.1 * 1.9 * gradient, atol=1e-12, rtol=0)


@pytest.mark.parametrize("adam", [False, True])
def test_a_slot_that_is_used_again_begins_to_move_anew(adam):
    """Its shift has no momentum; those of the other copies keep theirs, and so does the rest."""
    model, graph = network()
    unit, norm = first_unit(model, graph)
    make = torch.optim.Adam if adam else torch.optim.SGD
    options = {} if adam else {"momentum": 0.9, "nesterov": True}
    bank = Bank(model, graph, make(model.parameters(), lr=0.01, **options))
    begin = Copies([1, 3, 4], [0, 2, 2], [0, 2, 2], random(3, 2, seed=1))
    Rewiring(unit.conv, unit.norm, [1, 3, 4], begin).apply(bank)
    for seed in range(3):
        bank.optimiser.zero_grad()
        model(random(4, *SMALL_SHAPE, seed=seed)).square().mean().backward()
        bank.optimiser.step()
    state = bank.optimiser.state[norm.shift]
    before = {key: value.clone() for key, value in state.items() if value.dim()}
    assert all(value[[1, 3, 4]].abs().min() > 0 for value in before.values())
    again = Copies([1, 4], [5, 6], [5, 6], random(2, 2, seed=2))
    Rewiring(unit.conv, unit.norm, [1, 4], again).apply(bank)
    for key, value in before.items():
        value[[1, 4]] = 0
        assert torch.equal(state[key], value), key
    assert norm.index[[1, 3, 4]].tolist() == [5, 2, 6]
    assert torch.equal(norm.shift[[1, 4]], again.shifts)


def test_a_copy_without_a_shift_and_with_its_source_s_scale_is_no_gain():
    model, graph = network()
    unit, norm = first_unit(model, graph)
    images = random(4, *SMALL_SHAPE)
    norm.copy(Copies([1], [0], [0], torch.zeros(1, 2)))
    conv = model.get_submodule(unit.conv)
    expected = model.eval()(images)
    with torch.no_grad():
        conv.weight[:, 0] += conv.weight[:, 1]
        conv.weight[:, 1] = 0
    torch.testing.assert_close(model(images), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["preactivation", "dense", "straight", "residual"])
def test_rewired_networks_are_traced_compacted_and_counted(kind):
    """Dead filters go, shifts of copies alone stay, and the function is the same."""
    model, graph = network(kind)
    for unit in selective_units(model, graph)[0]:
        norm = allow_copies(model.get_submodule(unit.norm))
        norm.copy(Copies([1, 3], [0, 2], [0, 2], random(2, 2, seed=1)))
    model.eval()
    images = random(2, *SMALL_SHAPE)
    described = wiring(model)
    skeleton = NETWORKS[kind]()
    rewire(skeleton, described)
    rewired = trace(skeleton, SMALL_SHAPE)
    plan = Plan(rewired.cut(Plan({})).still_read)
    small = compact(model, rewired, plan)
    torch.testing.assert_close(small.model(images), model(images), atol=1e-10, rtol=0)
    counts = count(small.model, SMALL_SHAPE)
    assert counts.params == sum(p.numel() for p in small.model.parameters())
    assert counts.params < count(model, SMALL_SHAPE).params
    planned = count_plan(model, rewired, plan)
    assert (planned.params, planned.macs) == (counts.params, counts.macs)
    moved = [m for m in small.model.modules() if isinstance(m, Copying)]
    assert moved and all(m.shift.shape == (2, 2) for m in moved)
    if kind in ("straight", "residual"):
        assert all(len(kept) == graph.groups[name].size - 2 for name, kept in plan.kept.items())
        assert plan.kept, "filters that only fed what copies replaced are gone"
    tensors = small.model.state_dict()
    again = compact(skeleton, rewired, plan, check=False).model.double().eval()
    again.load_state_dict(tensors)
    assert torch.equal(again(images), small.model(images))


def test_a_stream_keeps_what_something_reads():
    model, graph = network("straight")
    unit, norm = first_unit(model, graph)
    norm.copy(Copies([1], [0], [0], torch.zeros(1, 2)))
    rewired = trace(model, SMALL_SHAPE)
    ((name, kept),) = rewired.cut(Plan({})).still_read.items()
    with pytest.raises(ValueError, match="must stay whole"):
        rewired.cut(Plan({name: kept[1:]}))


def test_without_copies_a_norm_becomes_what_it_was():
    norm = allow_copies(nn.BatchNorm2d(4))
    norm.compacted(4)
    assert type(norm) is nn.BatchNorm2d
    assert norm.state_dict().keys() == nn.BatchNorm2d(4).state_dict().keys()


@pytest.mark.parametrize(
    "name, options, units, with_shifts",
    [
        ("densenet40", {"stem": 24, "bottleneck": True, "transition": "pool"}, 36, 216_514),
        ("densenet100", {"stem": 24, "bottleneck": True, "transition": "pool"}, 96, 1_025_074),
        ("preresnet164", {"shortcut": "zero_pad", "downsample": "pool"}, 162, 1_680_954),
        ("preresnext29", {}, 18, 33_781_706),
    ],
)
def test_counts_with_all_shifts_are_the_paper_s_code_s(name, options, units, with_shifts):
    with torch.device("meta"):
        model = build(name, num_classes=10, in_channels=3, image_size=32, **options)
    found, others = selective_units(model, trace(model, (3, 32, 32)))
    assert len(found) == units
    assert set(others) & {"conv"}, "the first convolution is left alone"
    shifts = 2 * sum(
        model.get_submodule(unit.conv).in_channels for unit in found if unit.is_pointwise
    )
    assert sum(p.numel() for p in model.parameters()) + shifts == with_shifts


@pytest.mark.parametrize("stride", [1, 2])
def test_copies_behind_the_activation_are_larger_kernels(stride):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 5, 1, stride, bias=False).double()
    copying = allow_copies(copy.deepcopy(conv))
    images = torch.relu(random(2, 8, 7, 6))
    assert torch.equal(copying(images), conv(images))
    copying.copy(Copies([1, 3, 5, 6], [0, 0, 2, 0], [0, 0, 2, 0], 1.4 * random(4, 2, seed=1)))
    module, description = expanded(copying)
    torch.testing.assert_close(module(images), copying(images), atol=1e-12, rtol=0)
    assert description["own"] == [4, 7] and description["copied"] == [0, 2]
    model, skeleton = nn.Sequential(copying), nn.Sequential(copy.deepcopy(conv))
    rebuild(skeleton, expand(model))
    skeleton.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(skeleton(images), module(images))


def test_copies_in_front_of_the_activation_are_not():
    """No kernel on the activated source gives what a copy with a scale and shift of its own is."""
    images, shift = random(4, 1, 12, 12), torch.tensor([[0.6, -0.7]], dtype=torch.float64)
    source, copied = torch.relu(0.8 * images + 0.3), translate(images, shift)
    target = torch.relu(-1.1 * copied - 0.2).flatten()
    padded = F.pad(source, (2, 2, 2, 2), mode="replicate")
    neighbours = F.unfold(padded, 5).transpose(1, 2).reshape(-1, 25)
    best = torch.linalg.lstsq(neighbours, target[:, None]).solution
    residual = (neighbours @ best)[:, 0] - target
    assert residual.norm() > 0.1 * target.norm()


def test_the_slides_size_of_condensenet_takes_four_fifths_of_the_inputs():
    """CondenseNet-182 with selective convolutions, 3.24M parameters in the end (slides)."""
    with torch.device("meta"):
        model = build("condensenet182", num_classes=10, in_channels=3, image_size=32)
    graph = trace(model, (3, 32, 32))
    units = [u for u in selective_units(model, graph)[0] if u.is_pointwise]
    assert len(units) == 90

    def plan(share):
        sizes = {unit.group: graph.groups[unit.group].size for unit in units}
        return Plan({name: range(round(share * size)) for name, size in sizes.items()})

    low, high = 0.0, 1.0
    for _ in range(12):
        share = (low + high) / 2
        above = count_plan(model, graph, plan(share)).params > 3_240_000
        low, high = (low, share) if above else (share, high)
    counts = count_plan(model, graph, plan(low))
    assert count_plan(model, graph, Plan({})).params == 13_792_906
    assert counts.params == pytest.approx(3_240_000, rel=0.002)
    assert 0.17 < low < 0.19
    assert 370e6 < counts.macs < 440e6, "the slides say 422M, in a convention of their own"
