"""CUCB: the bandit, the saliencies, and what a training makes of them."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import chanprune
from chanprune.channels import Bank, count, trace
from chanprune.methods import METHODS, PruneOptions, Setting, Step
from chanprune.methods.cucb import Arms, Cucb, bonus, normalised
from chanprune.methods.random_channels import FixedRandom, RandomEveryStep
from chanprune.models import build_skeleton
from chanprune.pipeline.prepare import prepare
from chanprune.processes.errors import UserError
from tests.networks import SMALL, SMALL_SHAPE, randomise
from tests.test_pipeline import changed, execute

NORMED = ("chain", "residual", "dense", "preactivation")


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def moment(index, epoch=0, progress=0.0):
    return Step(index=index, epoch=epoch, lr=0.1, progress=progress)


class Training:
    """A small network trained by a dynamic method, as the loop does it."""

    def __init__(self, method, name="chain", ratio=0.5, steps=40, seed=0, **prune):
        torch.manual_seed(0)
        self.model = randomise(SMALL[name](), 0).double().train()
        self.graph = trace(self.model, SMALL_SHAPE)
        self.method = method
        self.optimiser = torch.optim.SGD(
            self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1
        )
        self.bank = Bank(self.model, self.graph, self.optimiser)
        options = PruneOptions(ratio, **{"min_channels": 1, **prune})
        self.options = options
        self.setting = Setting(1.0, steps, seed, options)
        method.before_training(self.model, self.graph, self.setting)
        self.plans = []
        self.index = 0

    def step(self):
        random = seeded(self.index)
        images = torch.randn(8, *SMALL_SHAPE, generator=random, dtype=torch.float64)
        labels = torch.randint(0, 5, (8,), generator=random)
        now = moment(self.index, progress=self.index / self.setting.num_steps)
        cut = self.method.active_channels(now)
        if cut is not None:
            self.bank.activate(cut)
        self.plans.append(self.bank.plan)
        self.optimiser.zero_grad(set_to_none=True)
        loss, _ = self.method.loss(self.model, images, labels, 0.0)
        loss.backward()
        self.method.after_backward(now)
        self.optimiser.step()
        self.index += 1
        return loss.item()


def test_the_bound_of_a_known_case():
    """Spec D, 5: mean .5, seen 100 times, step 1000."""
    arms = Arms(2, seeded())
    arms.means[0], arms.counts[0] = 0.5, 100
    bounds = arms.upper_bounds(1000, 1.0)
    assert bounds[0].item() == pytest.approx(0.8219, abs=1e-4)
    assert bounds[1] > 1e5, "an arm that was never seen comes first"


def test_the_bonus_falls_with_observations_and_rises_with_time():
    counts = torch.arange(1.0, 50)
    assert (bonus(counts, 100).diff() < 0).all()
    assert (bonus(counts, 1000) > bonus(counts, 100)).all()


def test_means_are_the_arithmetic_means_of_what_was_observed():
    """Spec D, 4."""
    random = np.random.default_rng(0)
    arms, logged = Arms(6, seeded()), [[] for _ in range(6)]
    for _ in range(200):
        active = torch.from_numpy(random.random(6) < 0.5)
        values = torch.from_numpy(random.random(int(active.sum())))
        arms.observe(active, values)
        for arm, value in zip(active.nonzero()[:, 0].tolist(), values.tolist(), strict=True):
            logged[arm].append(value)
    assert arms.means.tolist() == pytest.approx([float(np.mean(x)) for x in logged], rel=1e-12)
    assert arms.counts.tolist() == [len(x) for x in logged]


def simulate(steps, factor=1.0, scale=1.0):
    """Pull the best 5 of 20 Bernoulli arms (gap .2); return regret at each step, and the arms."""
    random = np.random.default_rng(0)
    chances = np.where(np.arange(20) < 5, 0.7, 0.5)
    arms, regret = Arms(20, seeded()), np.zeros(steps)
    for t in range(steps):
        chosen = arms.upper_bounds(t + 1, factor).topk(5).indices
        active = torch.zeros(20, dtype=torch.bool)
        active[chosen] = True
        gains = scale * (random.random(5) < chances[active.numpy()])
        arms.observe(active, torch.from_numpy(gains.astype(np.float64)))
        regret[t] = np.sort(chances)[-5:].sum() - chances[active.numpy()].sum()
    return regret.cumsum(), arms


def test_regret_grows_like_a_logarithm():
    """Spec D, 8: a random policy would pay .75 a step."""
    regret, _ = simulate(20_000)
    early, late = regret[2_000], regret[-1]
    assert late < 2000 and late < 0.15 * 0.75 * 20_000
    assert late - early < 1.5 * (early - regret[200])


def test_tiny_rewards_make_a_round_robin():
    """Spec D, 8, the negative control: why saliencies are normalised."""
    _, arms = simulate(4000, scale=1e-4)
    share = arms.counts / 4000
    assert (share - share.mean()).abs().max() < 0.05 * share.mean()


def test_the_random_phase_takes_what_was_seen_least():
    """Within a group no channel is ever seen twice more often than another."""
    training = Training(Cucb(explore=30), ratio=0.6, steps=31, min_share=0.0)
    for _ in range(30):
        training.step()
        for seen in training.method.by_group(training.method.arms.counts).values():
            assert seen.max() - seen.min() <= 1


def test_what_stays_has_the_largest_means_however_seldom_it_was_seen():
    training = Training(Cucb(explore=2), steps=40)
    for _ in range(20):
        training.step()
    method = training.method
    method.arms.counts[:] = torch.rand(len(method.arms.counts)).mul(1000).ceil()
    method.arms.means[:] = torch.rand(len(method.arms.means), dtype=torch.float64)
    selection, _ = method.select_channels(training.model, training.graph, training.options)
    means = method.by_group(method.arms.means)
    kept = torch.cat([means[name][own] for name, own in selection.kept.items()])
    every = torch.cat(list(means.values())).sort().values
    assert kept.sort().values.equal(every[selection.removed :])


@pytest.mark.parametrize("typical", [1e-3, 0.1, 1e6])
def test_a_scaled_bonus_is_a_tenth_of_a_typical_saliency_but_no_more_than_the_poster_s(typical):
    training = Training(Cucb(exploration=None, explore=10), steps=40)
    for _ in range(10):
        training.step()
    method = training.method
    method.arms.means[:] = typical
    counts = torch.cat(list(method.by_group(method.arms.counts).values()))
    last = bonus(4 * counts.mean(), 40).item()
    assert method._scaled_exploration() == pytest.approx(min(1.0, 0.1 * typical / last))


@pytest.mark.parametrize("by", ["l2", "max", "rms", "none"])
def test_normalisation(by):
    raw = torch.tensor([3.0, 4.0, 0.0, 0.0, 2.0, 2.0]).double()
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    values = normalised(raw, groups, by)
    assert values.isfinite().all() and values[2:4].tolist() == [0, 0]
    if by == "none":
        assert torch.equal(values, raw)
        return
    torch.testing.assert_close(normalised(1000 * raw, groups, by), values)
    expected = {
        "l2": [0.6, 0.8],
        "max": [0.75, 1.0],
        "rms": [3 / (4 * math.sqrt(12.5)), 4 / (4 * math.sqrt(12.5))],
    }
    assert values[:2].tolist() == pytest.approx(expected[by])


class Towers(nn.Module):
    """Convolution, batch norm, ReLU, pooling, convolution: where the saliency can be read."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, 3, bias=False)

    def forward(self, x):
        self.maps = {"conv": self.first(x)}
        self.maps["norm"] = self.norm(self.maps["conv"])
        self.maps["relu"] = self.maps["norm"].relu()
        self.maps["pool"] = F.max_pool2d(self.maps["relu"], 2)
        for maps in self.maps.values():
            maps.retain_grad()
        return self.second(self.maps["pool"]).flatten(1)


def test_the_free_saliency_is_the_taylor_expansion_at_four_places():
    """Spec D, 6; and it says nothing before the batch norm."""
    torch.manual_seed(0)
    model = randomise(Towers(), 0).double().train()
    images = torch.randn(5, *SMALL_SHAPE, dtype=torch.float64)
    model(images).square().mean().backward()
    norm, weight = model.norm, model.second.weight
    free = (norm.weight * norm.weight.grad + norm.bias * norm.bias.grad).abs()
    for place in ("norm", "relu", "pool"):
        maps = model.maps[place]
        torch.testing.assert_close((maps * maps.grad).sum((0, 2, 3)).abs(), free)
    torch.testing.assert_close((weight * weight.grad).sum((0, 2, 3)).abs(), free)
    before = model.maps["conv"]
    assert (before * before.grad).sum((0, 2, 3)).abs().max() < 1e-4 * free.max()


def test_a_layer_without_batch_norm_gives_the_same_from_its_filters():
    training = Training(Cucb(explore=2, normalise="none"), "biased", ratio=0.0)
    maps = {}
    groups = training.graph.prunable()
    for group in groups:
        module = training.model.get_submodule(group.producers[0])

        def keep(module, inputs, output, name=group.name):
            output.retain_grad()
            maps[name] = output

        module.register_forward_hook(keep)
    training.step()
    for name, means in training.method.by_group(training.method.arms.means).items():
        expansion = (maps[name] * maps[name].grad).sum((0, 2, 3)).abs()
        torch.testing.assert_close(means, expansion)


def test_saliencies_do_not_depend_on_the_size_of_the_loss():
    def means(scale, shift):
        training = Training(Cucb(explore=2))
        original = training.method.loss

        def loss(*arguments):
            value, logits = original(*arguments)
            return scale * value + shift, logits

        training.method.loss = loss
        training.step()
        return training.method.arms.means

    torch.testing.assert_close(means(3.0, 0.0), means(1.0, 5.0))
    assert means(1.0, 0.0).count_nonzero() > 0


def test_a_channel_without_scale_and_shift_has_no_saliency():
    training = Training(Cucb(explore=2), ratio=0.0)
    group = training.graph.prunable()[0]
    norm = training.model.get_submodule(group.norms[0])
    with torch.no_grad():
        norm.weight[1] = norm.bias[1] = 0
    training.step()
    means = training.method.by_group(training.method.arms.means)[group.name]
    assert means[1] == 0 and (means != 0).sum() >= len(means) - 1


@pytest.mark.parametrize("place", [1, 5])
def test_saliency_tells_what_removal_costs(place):
    """Spec D, 7: over five untrained networks, behind the first and the second batch norm."""
    changes, costs = [], []
    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)),
        ).double()
        images, labels = torch.randn(64, *SMALL_SHAPE).double(), torch.randint(0, 10, (64,))
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        norm = model[place]
        change = norm.weight * norm.weight.grad + norm.bias * norm.bias.grad
        for channel in range(norm.num_features):
            kept = norm.weight[channel].item(), norm.bias[channel].item()
            with torch.no_grad():
                norm.weight[channel] = norm.bias[channel] = 0
                costs.append((F.cross_entropy(model(images), labels) - loss).item())
                norm.weight[channel], norm.bias[channel] = kept
        changes += change.tolist()
    assert np.corrcoef(changes, costs)[0, 1] < -0.8
    assert np.corrcoef(np.abs(changes), np.abs(costs))[0, 1] > 0.5


@pytest.mark.parametrize("name", NORMED)
def test_counts_add_up_to_the_active_channels(name):
    """Spec D, 4."""
    training = Training(Cucb(explore=6), name)
    for _ in range(30):
        training.step()
    arms = training.method.arms
    total = sum(len(kept) for plan in training.plans for kept in plan.kept.values())
    number = sum(len(kept) for kept in training.plans[0].kept.values())
    assert arms.counts.sum() == total == 30 * number
    assert arms.counts.max() <= 30
    arm_counts = arms.counts[training.method.group_of >= 0]
    assert arm_counts.min() >= 1, "the random phase saw every channel"


@pytest.mark.parametrize("method", ["cucb", "final_random", "random_every_step", "fixed_random"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.9])
def test_exactly_as_many_channels_are_active_as_asked(method, ratio):
    """Spec D, 11; no group falls below its floor."""
    options = {"explore": 3} if method in ("cucb", "final_random") else {}
    training = Training(METHODS[method](**options), ratio=ratio)
    total = sum(training.method.sizes.values())
    for _ in range(12):
        training.step()
        kept = training.bank.plan.kept
        assert sum(len(x) for x in kept.values()) == total - math.floor(ratio * total + 1e-9)
        for name, size in training.method.sizes.items():
            assert len(kept[name]) >= max(1, math.ceil(0.5 * (1 - ratio) * size - 1e-9))
    training.bank.activate(None)
    selection, _ = training.method.select_channels(training.model, training.graph, training.options)
    assert selection.removed == math.floor(ratio * total + 1e-9)
    if method == "fixed_random":
        assert {n: tuple(k) for n, k in selection.kept.items()} == kept


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_layers_compete_or_keep_equal_shares(scope):
    training = Training(Cucb(explore=2, scope=scope, floor=0.0), "residual", ratio=0.5)
    for _ in range(20):
        training.step()
    method = training.method
    favourite = next(iter(method.sizes))
    method.by_group(method.arms.means)[favourite].add_(1)
    kept = method.select_channels(training.model, training.graph, training.options)[0].kept
    shares = {name: len(kept[name]) / size for name, size in method.sizes.items()}
    if scope == "global":
        assert shares[favourite] == 1
    else:
        assert max(shares.values()) - min(shares.values()) < 0.2


def test_the_same_seed_gives_the_same_choices_and_the_data_do_not_matter():
    """Spec D, 10."""

    def plans(seed):
        training = Training(Cucb(explore=5), seed=seed)
        for _ in range(15):
            torch.rand(7)
            training.step()
        return training.plans

    assert plans(0) == plans(0)
    assert plans(0)[:5] != plans(1)[:5]


def test_a_run_from_its_state_goes_on_as_if_it_had_not_stopped():
    """Spec D, 10."""
    first = Training(Cucb(explore=5))
    for _ in range(9):
        first.step()
    again = Training(Cucb(explore=5))
    with first.bank.whole():
        again.model.load_state_dict(first.model.state_dict())
        for old, new in zip(first.model.parameters(), again.model.parameters(), strict=True):
            again.optimiser.state[new] = {
                key: value.clone() for key, value in first.optimiser.state[old].items()
            }
    again.method.load_state_dict(
        {key: value.clone() for key, value in first.method.state_dict().items()}
    )
    again.index = first.index
    for _ in range(6):
        assert again.step() == first.step()
        assert again.plans[-1] == first.plans[-1]
    for (name, mine), theirs in zip(
        first.model.named_parameters(), again.model.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name


def test_choices_are_made_when_they_are_due():
    training = Training(Cucb(explore=5, every=4), steps=40)
    for _ in range(12):
        training.step()
    changes = [a != b for a, b in zip(training.plans, training.plans[1:], strict=False)]
    assert [i + 1 for i, changed in enumerate(changes) if changed] == [4, 8]
    frozen = Training(RandomEveryStep(freeze=0.5), steps=20)
    for _ in range(20):
        frozen.step()
    assert len({id(plan) for plan in frozen.plans[:10]}) == 10
    assert len({id(plan) for plan in frozen.plans[10:]}) == 1
    fixed = Training(FixedRandom(), steps=20)
    for _ in range(5):
        fixed.step()
    assert len({id(plan) for plan in fixed.plans}) == 1


def test_an_epoch_is_a_period_too():
    training = Training(Cucb(explore=1, every=0))
    method = training.method
    assert method.active_channels(moment(0, epoch=0)) is not None
    assert method.active_channels(moment(1, epoch=0)) is None
    assert method.active_channels(moment(2, epoch=1)) is not None


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="must be shorter than the training, which has 40 steps"):
        Training(Cucb(explore=40))
    with pytest.raises(UserError, match="the floors leave"):
        Training(Cucb(explore=1), ratio=0.9, min_channels=8)
    short = Training(Cucb(explore=1)).method
    assert "the choice will not settle" in short.advice
    assert not Training(Cucb(explore=1, exploration=None)).method.advice


def test_the_scaled_exploration_makes_the_last_bonus_a_tenth_of_a_mean():
    training = Training(Cucb(explore=6, exploration=None), steps=1000)
    for _ in range(7):
        training.step()
    method = training.method
    number = sum(len(kept) for kept in training.plans[0].kept.values())
    active = 1000 * number / sum(method.sizes.values())
    last = method.factor * bonus(torch.tensor(active), 1000).item()
    means = method.arms.means[method.group_of >= 0]
    assert last == pytest.approx(0.1 * means.median().item(), rel=0.3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cucb")
    config = changed(
        method={"name": "cucb", "explore": 10, "scope": "layer"},
        prune={"absorb": "none", "recalibrate": 256, "ratio": 0.5},
    )
    return folder, execute(config, folder)


def test_a_run_costs_what_its_active_channels_cost(finished):
    """Equal shares of all groups at every step: the compact network's count, at every image."""
    _, summary = finished
    cost = summary["cost"]
    whole, train = cost["whole_network_step"], cost["train"]
    assert whole["macs"] == 3 * whole["images"] * summary["stages"][0]["macs"]
    assert train["macs"] == 3 * train["images"] * summary["macs"]
    assert cost["finetune"]["macs"] == 3 * cost["finetune"]["images"] * summary["macs"]
    assert train["images"] == 2 * (1295 // 32) * 32
    assert 0.3 < train["activation_bytes"] / whole["activation_bytes"] < 0.7


def test_a_run_ends_with_the_salient_channels_and_says_what_it_cost(finished):
    folder, summary = finished
    stages = [row["stage"].partition(" (")[0] for row in summary["stages"]]
    assert stages[0] == "trained" and stages[-2:] == ["pruned, statistics anew", "fine-tuned"]
    table = (folder / "table.md").read_text()
    assert "% of the whole network's) in" in table and "MiB for its backward pass" in table
    kept = json.loads((folder / "plan.json").read_text())["kept"]
    model = chanprune.load(folder)
    assert count(model, model.input_shape).params == summary["params"]
    saved = load_file(folder / "train" / "state.safetensors")
    whole = build_skeleton(name="vgg11", num_classes=10, in_channels=1, image_size=16, width=0.0625)
    graph = trace(whole, (1, 16, 16))
    means = saved["method.arms.means"]
    for group in graph.prunable():
        own = means[group.start : group.start + group.size]
        best = own.argsort(descending=True, stable=True)[: group.size - group.size // 2]
        assert kept[group.name] == sorted(best.tolist()), "the largest means that training left"
    names = {f"model.{name}": t.shape for name, t in whole.state_dict().items()}
    assert {name: saved[name].shape for name in names} == names, "the bank is saved whole"
    assert saved["method.arms.counts"].sum() > 0


def test_a_control_takes_the_widths_of_another_run(finished, tmp_path):
    folder, summary = finished
    prune = {"absorb": "none", "recalibrate": 256, "widths": str(folder)}
    control = execute(changed(method={"name": "fixed_random"}, prune=prune), tmp_path / "control")
    ours, theirs = (
        json.loads((f / "plan.json").read_text())["kept"] for f in (tmp_path / "control", folder)
    )
    assert {n: len(k) for n, k in ours.items()} == {n: len(k) for n, k in theirs.items()}
    assert ours != theirs and control["macs"] == summary["macs"]
    with pytest.raises(UserError, match="there is no plan.json of a finished run"):
        prepare(changed(prune={"widths": str(tmp_path)}))
    model = {"name": "resnet20", "width": 0.25, "shortcut": "A"}
    other = changed(model=model, prune={"widths": str(folder)})
    with pytest.raises(UserError, match="not here"):
        prepare(other)
