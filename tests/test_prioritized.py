"""Channel-prioritized CNNs: the penalties, the selection, and fine-tuning at several levels."""

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

import chanprune
from chanprune.channels import (
    compact,
    count,
    count_plan,
    narrow,
    prefix_plan,
    select_above,
    trace,
)
from chanprune.channels.operations import BATCH_NORMS
from chanprune.methods import PruneOptions, Setting, Step
from chanprune.methods.multi_fidelity import MultiFidelity
from chanprune.methods.prioritized import (
    Prioritized,
    decreasing_scales,
    monotonicity_gradient,
    monotonicity_penalty,
    order_of,
)
from chanprune.models import build_skeleton
from tests.networks import SMALL, SMALL_SHAPE, randomise
from tests.test_pipeline import changed, execute

NOW = Step(index=0, epoch=0, lr=0.1, progress=0.0)
LEVELS = (0.25, 0.5, 0.75, 1.0)


def test_scales_start_in_decreasing_order():
    """E.1, 13: first 2, last 2 / N, in perfect order, without penalty."""
    scales = decreasing_scales(64)
    assert (scales[0].item(), scales[-1].item()) == (2.0, 2 / 64)
    assert order_of(scales) == pytest.approx(-1.0)
    assert monotonicity_penalty(scales) == 0
    assert monotonicity_penalty(scales.flip(0)).item() == pytest.approx(2 - 2 / 64)


@given(st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=12, unique=True))
def test_the_gradient_of_the_order_is_that_of_its_penalty(values):
    scale = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    monotonicity_penalty(scale).backward()
    assert torch.equal(monotonicity_gradient(scale.detach()), scale.grad)


def test_a_rise_is_penalised_at_its_ends_alone():
    rise = torch.tensor([0.1, 0.4, 0.9, 1.3])
    assert monotonicity_penalty(rise).item() == pytest.approx(1.2)
    assert monotonicity_gradient(rise).tolist() == [-1.0, 0.0, 0.0, 1.0]


@given(st.lists(st.floats(0, 2, width=32), min_size=1, max_size=5), st.integers(2, 6))
def test_channels_that_are_equal_are_not_pushed_apart(values, number):
    """A tail of zeros above all: its first channel would be brought to life at every step."""
    scale = torch.tensor([value for value in values for _ in range(number)]).sort().values.flip(0)
    assert not monotonicity_gradient(scale).any()


@given(st.permutations(range(6)))
@settings(deadline=None)
def test_scales_that_are_nearly_zero_count_as_equal(places):
    head = torch.tensor([0.9, 0.5, 0.3])
    tail = torch.tensor([0.04 - 0.006 * place for place in places])
    expected = order_of(torch.cat([head, torch.zeros(6)]))
    assert order_of(torch.cat([head, tail])) == pytest.approx(expected)


def test_shifts_start_at_zero_where_scales_start_in_order():
    for decreasing in (True, False):
        model = SMALL["chain"]()
        norms = [m for m in model.modules() if isinstance(m, BATCH_NORMS)]
        for norm in norms:
            nn.init.constant_(norm.bias, 0.3)
        method = Prioritized(decreasing=decreasing)
        method.before_training(model, trace(model, SMALL_SHAPE), Setting(lr_travel=1.0))
        expected = 0.0 if decreasing else 0.3
        assert all(torch.all(norm.bias == expected) for norm in norms)


def test_levels_learn_from_the_highest_and_teach_it_nothing():
    """In a sandwich the highest level has the gradient of its own loss and of levels as given."""
    torch.manual_seed(0)
    model = randomise(SMALL["chain"](), 0).double().eval()
    graph = trace(model, SMALL_SHAPE)
    method = MultiFidelity(graph, (0.25, 1.0), sandwich=True)
    images, labels = torch.randn(6, *SMALL_SHAPE, dtype=torch.float64), torch.arange(6) % 5
    torch.manual_seed(1)
    method.loss(model, images, labels, 0.1)[0].backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(1)
    *lower, highest = method._sampled()
    assert highest == 1.0 and lower[0] == 0.25 and len(lower) == 3
    with torch.no_grad():
        targets = model(images).softmax(1)
    loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for level in lower:
        small = narrow(state, graph.cut(prefix_plan(graph, level)))
        loss = loss + F.cross_entropy(functional_call(model, small, (images,)), targets)
    loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_ties_decide_the_order_coefficient():
    """E.1, 20: an ordered head and 78 % zeros."""
    head = torch.linspace(2, 0.1, 44)
    assert order_of(torch.cat([head, torch.zeros(156)])) == pytest.approx(-0.6264, abs=1e-4)
    assert order_of(torch.zeros(5)) == 0.0


def test_scales_never_become_negative_and_get_both_gradients():
    model = SMALL["chain"]()
    method = Prioritized(sparsity_weight=0.1, monotonicity_weight=1.0)
    method.before_training(model, trace(model, SMALL_SHAPE), Setting(lr_travel=1.0))
    for scale in method.scales:
        scale.grad = torch.zeros_like(scale)
        scale.data[3] = scale.data[2] + 1
    method.after_backward(NOW)
    gradient = method.scales[0].grad
    assert gradient[2].item() == pytest.approx(0.1 - 1) and gradient[3].item() == pytest.approx(1.1)
    assert gradient[5].item() == pytest.approx(0.1)
    method.scales[0].data[0] = -0.3
    method.after_step(NOW)
    assert min(scale.min() for scale in method.scales) == 0


def test_elementwise_and_prefix_rules():
    scores = {"a": torch.tensor([0.9, 0.01, 0.4, 0.02, 0.0]), "b": torch.tensor([0.01, 0.03])}
    elementwise = select_above(scores, 0.05)
    assert elementwise.kept == {"a": [0, 2], "b": [1]}
    assert elementwise.at_floor == ["b"] and elementwise.removed == 4
    prefix = select_above(scores, 0.05, prefix=True, min_channels=2)
    assert prefix.kept == {"a": [0, 1, 2], "b": [0, 1]}


@given(
    st.lists(st.floats(0, 1), min_size=12, max_size=12), st.floats(0, 1), st.sampled_from([1, 3])
)
def test_the_rules_agree_on_ordered_scores(values, threshold, blocks):
    parts = torch.tensor(values).view(blocks, -1).sort(dim=1, descending=True).values
    scores = {"a": parts.reshape(-1)}
    chosen = [
        select_above(scores, threshold, prefix=prefix, blocks={"a": blocks}).kept["a"]
        for prefix in (False, True)
    ]
    assert chosen[0] == chosen[1]
    width = 12 // blocks
    assert len({sum(c // width == b for c in chosen[0]) for b in range(blocks)}) == 1


def test_the_threshold_decides_what_goes():
    model = randomise(SMALL["chain"](), 0)
    graph = trace(model, SMALL_SHAPE)
    options = PruneOptions(ratio=0.0, rule="elementwise", threshold=1.0)
    selection, scores = Prioritized().select_channels(model, graph, options)
    for name, kept in selection.kept.items():
        assert kept == [i for i, s in enumerate(scores[name].tolist()) if s > 1.0]


def prepared(levels=LEVELS):
    torch.manual_seed(0)
    model = randomise(SMALL["chain"](), 0).double().train()
    graph = trace(model, SMALL_SHAPE)
    method = MultiFidelity(graph, levels)
    method.before_training(model, graph, Setting(lr_travel=1.0))
    images = torch.randn(6, *SMALL_SHAPE, dtype=torch.float64)
    return model, graph, method, images, torch.randint(5, (6,))


def gradients(model, method, images, labels):
    model.zero_grad()
    method.before_step(NOW)
    loss, logits = method.loss(model, images, labels, 0.0)
    loss.backward()
    method.after_backward(NOW)
    return loss, logits, {key: p.grad for key, p in model.named_parameters()}


def test_the_loss_and_its_gradient_are_the_sums_over_the_levels():
    """E.1, 17; and each level's loss is that of the extracted network."""
    model, graph, method, images, labels = prepared()
    loss, logits, summed = gradients(model, method, images, labels)
    losses, parts = [], []
    for level in LEVELS:
        one = MultiFidelity(graph, [level])
        one.before_training(model, graph, Setting(lr_travel=1.0))
        value, _, gradient = gradients(model, one, images, labels)
        small = compact(model, graph, prefix_plan(graph, level)).model.eval()
        expected = nn.functional.cross_entropy(small(images), labels)
        torch.testing.assert_close(value, expected)
        losses.append(value)
        parts.append({k: g.clone() for k, g in gradient.items() if g is not None})
    torch.testing.assert_close(loss, sum(losses))
    torch.testing.assert_close(logits, model.eval()(images))
    for key, gradient in summed.items():
        if gradient is not None:
            torch.testing.assert_close(gradient, sum(part[key] for part in parts))


def test_channels_beyond_a_level_get_no_gradient_from_it():
    model, graph, _, images, labels = prepared()
    method = MultiFidelity(graph, [0.75])
    method.before_training(model, graph, Setting(lr_travel=1.0))
    gradient = gradients(model, method, images, labels)[2]["first.0.weight"]
    assert gradient[:6].abs().max() > 0 and gradient[6:].abs().max() == 0


def test_the_sandwich_takes_both_ends_and_distils_from_the_highest():
    model, graph, _, images, labels = prepared()
    method = MultiFidelity(graph, LEVELS, sandwich=True)
    method.before_training(model, graph, Setting(lr_travel=1.0))
    method.before_step(NOW)
    torch.manual_seed(3)
    loss, logits = method.loss(model, images, labels, 0.1)
    torch.manual_seed(3)
    lowest, *between, highest = method._sampled()
    assert (lowest, highest) == (0.25, 1.0) and all(0.25 <= level <= 1 for level in between)
    assert len(set(between)) == 2
    model.eval()
    torch.testing.assert_close(logits, model(images))
    expected = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    for level in (lowest, *between):
        small = compact(model, graph, prefix_plan(graph, level)).model
        log_probabilities = small(images).log_softmax(1)
        expected = expected - (logits.softmax(1).detach() * log_probabilities).sum(1).mean()
    torch.testing.assert_close(loss, expected)
    levels = (lowest, *between, highest)
    macs = [count_plan(model, graph, prefix_plan(graph, level)).macs for level in levels]
    assert method.macs_per_image(0) == sum(macs)


def test_batch_norms_are_frozen():
    """E.1, 16: scales, shifts and statistics stay bit for bit."""
    model, _, method, images, labels = prepared()
    norms = {n: m for n, m in model.named_modules() if isinstance(m, BATCH_NORMS)}
    before = {n: {k: t.clone() for k, t in m.state_dict().items()} for n, m in norms.items()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    start = model.first[0].weight.clone()
    for _ in range(3):
        model.train()
        gradients(model, method, images, labels)
        optimiser.step()
    assert not torch.equal(model.first[0].weight, start)
    for name, norm in norms.items():
        assert all(torch.equal(t, before[name][k]) for k, t in norm.state_dict().items())


# Spec D.3: level -> (params, 2 x MACs of convolutions in millions), first convolution whole or not
SLICED = {0.75: (8_480_378, "353.0"), 0.5: (3_816_874, "157.5"), 0.25: (991_962, "39.8")}
FIRST_WHOLE = {0.75: (8_487_738, "368.1"), 0.5: (3_826_986, "178.1"), 0.25: (1_000_218, "56.6")}


@pytest.mark.parametrize("level", [0.75, 0.5, 0.25])
def test_published_counts_of_the_levels(level):
    model = build_skeleton(
        name="vgg16",
        num_classes=10,
        in_channels=3,
        image_size=32,
        head="fc512",
        norm=False,
        conv_bias=True,
    )
    graph = trace(model, (3, 32, 32))
    assert count(model, (3, 32, 32)).params == 14_982_474
    plan = prefix_plan(graph, level)
    for expected, kept in (
        (SLICED, plan.kept),
        (FIRST_WHOLE, {k: v for k, v in plan.kept.items() if k != "features.conv1_1"}),
    ):
        counts = count_plan(model, graph, type(plan)(kept))
        assert counts.params == expected[level][0]
        assert f"{2 * counts.macs_of('conv') / 1e6:.1f}" == expected[level][1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prioritized")
    config = changed(
        method={"name": "prioritized", "levels": [0.5, 1.0]},
        prune={"rule": "elementwise", "threshold": 0.5},
        finetune={"lr": 0.001},
    )
    return folder, execute(config, folder)


def test_any_slimmed_network_becomes_a_network_for_every_level(tmp_path):
    config = changed(
        method={"name": "slimming", "levels": [0.5, 1.0], "level_statistics": 128},
        prune={"order": True},
        finetune={"lr": 0.001},
    )
    summary = execute(config, tmp_path)
    assert [row["fidelity"] for row in summary["stages"][-4:]] == [1.0, 0.5, 1.0, 0.5]
    plan = json.loads((tmp_path / "plan.json").read_text())
    net = chanprune.load(tmp_path)
    for name, order in plan["order"].items():
        assert sorted(order) == plan["kept"][name]
    for norm in net.modules():
        if isinstance(norm, BATCH_NORMS):
            assert torch.equal(norm.weight.abs(), norm.weight.abs().sort(descending=True).values)
    level = summary["stages"][-1]
    small = chanprune.extract(net, 0.5)
    assert count(small, net.input_shape).macs == level["macs"]
    images = torch.randn(2, *net.input_shape)
    net.set_fidelity(0.5)
    assert torch.equal(net(images), small(images))
    plain = changed(method={"name": "slimming"}, prune={"order": True})
    before = execute(changed(method={"name": "slimming"}), tmp_path / "plain")
    after = execute(plain, tmp_path / "ordered")
    assert [row["val_accuracy"] for row in before["stages"][:3]] == [
        row["val_accuracy"] for row in after["stages"][:3]
    ]
    for norm in chanprune.load(tmp_path / "ordered").modules():
        if isinstance(norm, BATCH_NORMS):
            assert torch.equal(norm.weight.abs(), norm.weight.abs().sort(descending=True).values)


def test_a_run_gives_one_file_for_every_level(finished):
    folder, summary = finished
    rows = [(row["stage"].partition(" (")[0], row["fidelity"]) for row in summary["stages"]]
    assert rows == [
        ("trained", 1),
        ("pruned", 1),
        ("pruned, constants absorbed", 1),
        ("pruned, constants absorbed", 0.5),
        ("fine-tuned", 1),
        ("fine-tuned", 0.5),
    ]
    net = chanprune.load(folder)
    images = torch.randn(2, *net.input_shape)
    whole = net(images)
    for level in (0.5, 0.3):
        small = chanprune.extract(net, level)
        net.set_fidelity(level)
        assert torch.equal(net(images), small(images))
        net.set_fidelity(1.0)
    assert torch.equal(net(images), whole)
    level = summary["stages"][5]
    assert count(chanprune.extract(net, 0.5), net.input_shape).macs == level["macs"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"scales_below_0.05", "order", "violation"} <= lines[0].keys()
    tuned = [line for line in lines if line["stage"] == "finetune"]
    means = [(line["val_accuracy"] + line["val_accuracy_at_0.5"]) / 2 for line in tuned]
    chosen = max(range(len(tuned)), key=lambda epoch: (means[epoch], epoch))
    for row, key in zip(summary["stages"][4:], ("", "_at_0.5"), strict=True):
        assert row["val_accuracy"] == tuned[chosen][f"val_accuracy{key}"]
    with pytest.raises(ValueError, match="must be in"):
        net.set_fidelity(1.5)
    with pytest.raises(ValueError, match="chanprune.load returned"):
        chanprune.extract(nn.Linear(2, 2), 0.5)
