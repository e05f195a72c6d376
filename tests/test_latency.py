"""prune.target_latency_ms: widths by measured time, and what is proven of the choice."""

import json
from itertools import product

import numpy as np
import pytest
import torch
import torch._dynamo
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from chanprune.channels import Offer, Plan, trace
from chanprune.channels.shrunk import shrunk
from chanprune.config.schema import _milliseconds
from chanprune.criteria import CRITERIA, Subject
from chanprune.latency import Terms, Trial, in_steps, meet
from chanprune.latency.choice import between, most_worth
from chanprune.latency.estimate import Estimate
from chanprune.latency.layers import Width, Workload, workload
from chanprune.latency.tables import Bench, Table, is_step, tables_of
from chanprune.methods import PruneOptions, select
from chanprune.models import build
from chanprune.pipeline.latency import Latency
from chanprune.runtimes import Timing, prepared
from chanprune.runtimes.ort_layers import profiled
from tests.commands import call
from tests.networks import SMALL, SMALL_SHAPE, randomise

CPU, SHAPE = torch.device("cpu"), (3, 32, 32)


class Stairs:
    """A network of a chain of layers: the time of each is that of the vectors that it fills."""

    def __init__(self, factors, stair):
        self.factors, self.stair = factors, stair

    def times(self, widths):
        filled = np.ceil(widths / self.stair) * self.stair
        ends = np.ones((*filled.shape[:-1], 1))
        chain = np.concatenate([ends, filled, ends], axis=-1)
        return (chain[..., :-1] * chain[..., 1:]) @ self.factors + 1

    def seconds(self, widths):
        return float(self.times(widths))

    def row(self, widths, group, others):
        tried = np.repeat(widths[None], len(others), axis=0)
        tried[:, group] = others
        return self.times(tried)


@st.composite
def problems(draw):
    groups = draw(st.integers(1, 4))
    numbers = st.floats(0.1, 10)
    offers = []
    for _ in range(groups):
        scores = sorted(draw(st.lists(numbers, min_size=5, max_size=5)), reverse=True)
        offers.append(Offer(np.arange(1.0, 6.0), np.cumsum(scores)))
    factors = np.array(draw(st.lists(numbers, min_size=groups + 1, max_size=groups + 1)))
    return offers, Stairs(factors, draw(st.integers(1, 3))), draw(st.floats(0.05, 1.1))


@given(problems())
def test_what_is_chosen_is_in_time_and_cannot_be_widened(problem):
    offers, clock, share = problem
    whole = clock.seconds(np.array([offer.widths[-1] for offer in offers]))
    limit = share * whole
    chosen = most_worth(offers, clock, limit)
    narrowest = clock.seconds(np.array([offer.widths[0] for offer in offers]))
    if chosen is None:
        assert narrowest > limit
        return
    assert narrowest <= limit
    widths = np.array([offer.widths[place] for offer, place in zip(offers, chosen, strict=True)])
    assert clock.seconds(widths) <= limit
    for group, offer in enumerate(offers):
        for wider in offer.widths[chosen[group] + 1 :]:
            other = widths.copy()
            other[group] = wider
            assert clock.seconds(other) > limit * (1 - 1e-9)


def test_what_is_chosen_is_nearly_the_best_there_is():
    shares = []
    for seed in range(40):
        draw = np.random.default_rng(seed)
        offers = [
            Offer(np.arange(1.0, 7.0), np.cumsum(np.sort(draw.exponential(size=6))[::-1]))
            for _ in range(4)
        ]
        clock = Stairs(draw.uniform(0.1, 3, 5), 2)
        limit = draw.uniform(0.2, 0.9) * clock.seconds(np.full(4, 6.0))
        every = [np.array(places) for places in product(range(6), repeat=4)]
        best = max(
            sum(o.worth[p] for o, p in zip(offers, places, strict=True))
            for places in every
            if clock.seconds(places + 1.0) <= limit
        )
        chosen = most_worth(offers, clock, limit)
        shares.append(sum(o.worth[p] for o, p in zip(offers, chosen, strict=True)) / best)
    assert min(shares) > 0.85
    assert np.mean(shares) > 0.99


def test_the_way_between_two_networks_changes_one_group_at_a_time():
    offers = [Offer(np.arange(1.0, 6.0), np.arange(1.0, 6.0)) for _ in range(4)]
    low, high = np.array([0, 2, 1, 3]), np.array([4, 2, 3, 0])
    path = between(offers, Stairs(np.ones(5), 1), low, high)
    assert np.array_equal(path[0], low)
    assert np.array_equal(path[-1], high)
    assert [(a != b).sum() for a, b in zip(path, path[1:], strict=False)] == [1, 1, 1]


@given(st.integers(1, 3), st.floats(0, 5), st.floats(0.1, 5))
def test_a_table_is_exact_for_products_and_sums_of_steps(stair, constant, factor):
    reads, writes = np.array([2.0, 4, 5, 9]), np.array([1.0, 3, 8])

    def seconds(a, b):
        steps = np.ceil(a / stair) * stair, np.ceil(b / stair)
        return constant + factor * steps[0] * steps[1] + steps[0] + 2 * steps[1]

    sides = (seconds(reads, writes[-1]), seconds(reads, writes[0]))
    sides += (seconds(reads[-1], writes), seconds(reads[0], writes))
    table = Table(reads, writes, sides)
    for a, b in product(reads, writes):
        found = table.seconds(np.array(a), np.array(b))
        smooth = _through_corners(seconds, reads, writes, a, b)
        assert found == pytest.approx(smooth, rel=1e-9, abs=1e-9)
        if a in reads[[0, -1]] or b in writes[[0, -1]]:
            assert found == pytest.approx(seconds(a, b), rel=1e-9)


def _through_corners(seconds, reads, writes, a, b):
    """What a Coons patch is, written down a second time."""
    s = (a - reads[0]) / (reads[-1] - reads[0])
    t = (b - writes[0]) / (writes[-1] - writes[0])
    (a0, a1), (b0, b1) = reads[[0, -1]], writes[[0, -1]]
    corners = (1 - s) * ((1 - t) * seconds(a0, b0) + t * seconds(a0, b1))
    corners += s * ((1 - t) * seconds(a1, b0) + t * seconds(a1, b1))
    sides = (1 - t) * seconds(a, b0) + t * seconds(a, b1)
    return sides + (1 - s) * seconds(a0, b) + s * seconds(a1, b) - corners


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_widths_of_layers_are_those_of_the_compact_network(name):
    model = randomise(SMALL[name](), 0).eval()
    graph = trace(model, SMALL_SHAPE)
    groups = graph.prunable("together")
    if not groups:
        pytest.skip("nothing may go")
    names = [group.name for group in groups]
    images = torch.randn(2, *SMALL_SHAPE)
    work = workload(model, graph, names, images)
    draw = np.random.default_rng(0)
    kept = {g.name: _some(draw, g) for g in groups}
    cut = graph.cut(Plan(kept))
    if any(len(cut.complete.kept[n]) != len(kept[n]) for n in names):
        kept = {g.name: list(range(g.size)) for g in groups}
        cut = graph.cut(Plan(kept))
    small = shrunk(model, cut)
    widths = np.array([float(len(kept[n])) for n in names])
    elements = []
    for layer in cut.after.layers.values():
        if layer.kind in ("conv", "linear", "norm"):
            module = small.get_submodule(layer.name)
            module.register_forward_hook(lambda m, x, out: elements.append(out.numel()))
    small(images)
    for layer in work.layers:
        module = small.get_submodule(layer.name)
        read, wrote = (
            (module.in_features, module.out_features)
            if isinstance(module, nn.Linear)
            else (module.in_channels, module.out_channels)
        )
        assert (layer.reads.of(widths), layer.writes.of(widths)) == (read, wrote)
    assert work.elements.of(widths) == pytest.approx(sum(elements))


def _some(draw, group):
    """Keep a part of each block of a group."""
    width = group.size // group.blocks
    number = int(draw.integers(1, width + 1))
    return [b * width + c for b in range(group.blocks) for c in range(number)]


def test_an_estimate_finds_the_factors_of_the_networks_it_is_fitted_to():
    width = Width(2.0, np.array([1.0, 0.0]), 10)
    elements = Width(5.0, np.array([3.0, 7.0]), 85)
    table = Table(np.array([1.0, 8]), np.array([1.0, 8]), (np.array([1.0, 8]),) * 4)
    work = Workload(("a", "b"), (_Layer(width, Width(0, np.array([0.0, 1.0]), 8)),), elements)
    true = Estimate(work, [table], 1.5, 1e-3, 0.25)
    networks = [np.array(w) for w in ((8.0, 8.0), (4.0, 8.0), (2.0, 1.0), (1.0, 5.0))]
    fitted = Estimate(work, [table]).fitted([(w, true.seconds(w)) for w in networks])
    assert (fitted.layer, fitted.element, fitted.constant) == pytest.approx((1.5, 1e-3, 0.25))
    row = fitted.row(networks[0], 0, np.array([2.0, 8.0]))
    ends = [fitted.seconds(np.array([w, 8.0])) for w in (2.0, 8.0)]
    assert np.diff(row)[0] == pytest.approx(np.diff(ends)[0])


class _Layer:
    def __init__(self, reads, writes):
        self.reads, self.writes = reads, writes


def test_layers_are_measured_once_for_a_machine(tmp_path):
    model = randomise(SMALL["residual"](), 0).eval()
    graph = trace(model, SMALL_SHAPE)
    names = [group.name for group in graph.prunable("together")]
    layers = workload(model, graph, names, torch.randn(1, *SMALL_SHAPE)).layers
    first = tables_of(layers, Bench("eager", 1, CPU, tmp_path))
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    again = tables_of(layers, Bench("eager", 1, CPU, tmp_path))
    assert file.read_bytes() == content
    for one, other in zip(first, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.sides, other.sides, strict=True))
    for damage in (b"", b"[1]", b'{"seconds": {"a": -1, "b": "x"}}', content[:100]):
        file.write_bytes(damage)
        assert len(tables_of(layers, Bench("eager", 1, CPU, tmp_path))) == len(first)
        assert json.loads(file.read_bytes())["about"]["threads"] == 1


@pytest.fixture
def network(monkeypatch):
    """A network that takes no longer to call than to compute, and short measurements."""
    monkeypatch.setattr("chanprune.latency.trial.SECONDS", 0.1)
    torch.manual_seed(0)
    model = build("vgg11", num_classes=10, in_channels=3, image_size=32, width=0.5).eval()
    return model, trace(model, SHAPE)


def target_of(network, asked, path, say=lambda line: None):
    return Latency(*network, SHAPE, Terms(asked, "eager", 1, 1), None, path, say)


def test_the_widths_that_a_target_chooses_are_kept_to_the_channel(tmp_path, network):
    said, path = [], tmp_path / "latency.json"
    target = target_of(network, "70%", path, said.append)
    groups = network[1].prunable("together")
    scores = CRITERIA["l1"]().scores(Subject(*network), groups)
    selection = select(scores, network[1], PruneOptions(ratio=0.0, budget=target))
    certificate = json.loads(path.read_text())
    assert {n: len(k) for n, k in selection.kept.items()} == certificate["widths"]
    assert certificate["measured"] <= certificate["limit"] < certificate["whole"]
    for name, kept in selection.kept.items():
        left = sorted(scores[name].tolist(), reverse=True)[: len(kept)]
        assert sorted(scores[name][kept].tolist(), reverse=True) == left
    assert len(said) == 1


def test_a_run_that_goes_on_keeps_the_widths_that_were_chosen(tmp_path, network):
    model, graph = network
    path = tmp_path / "latency.json"
    scores = {g.name: torch.arange(float(g.size)) for g in graph.prunable("together")}

    def chosen(model):
        target = target_of((model, graph), "70%", path)
        return select(scores, graph, PruneOptions(ratio=0.0, budget=target))

    first, before = chosen(model), path.read_bytes()
    cannot_be_measured = nn.Identity()
    assert chosen(cannot_be_measured).kept == first.kept
    assert path.read_bytes() == before
    path.write_text('{"key": 3}')
    assert chosen(model).removed >= 0
    assert json.loads(path.read_text())["key"] == json.loads(before)["key"]


def test_rounding_blocks_and_floors_hold():
    model = randomise(SMALL["residual"](), 0).eval()
    graph = trace(model, SMALL_SHAPE)
    groups = graph.prunable("together")
    scores = {
        g.name: torch.rand(g.size, generator=torch.Generator().manual_seed(0)) for g in groups
    }
    seen = {}

    class Narrowest(Latency):
        def meet(self, offers, kept):
            seen.update(offers)
            return {name: int(offer.widths[0]) for name, offer in offers.items()}

    target = Narrowest(model, graph, SMALL_SHAPE, Terms(1.0, "eager", 1, 1), None, None, print)
    options = PruneOptions(
        ratio=0.0, coupled="together", budget=target, round_to=2, min_share=0.3, min_channels=2
    )
    kept = select(scores, graph, options).kept
    for group in groups:
        widths, worth = seen[group.name].widths, seen[group.name].worth
        assert widths[0] == len(kept[group.name]) >= max(2, 0.3 * group.size)
        assert widths[-1] == group.size
        assert (np.diff(widths) > 0).all()
        assert all(width % 2 == 0 or width == group.size for width in widths)
        for width, value in zip(widths, worth, strict=True):
            best = scores[group.name].sort(descending=True).values[: int(width)].sum()
            assert value == pytest.approx(float(best), rel=1e-5)


@pytest.mark.parametrize("runtime", ["eager", "ort"])
@pytest.mark.parametrize("width", [1, 7, 16, 24, 31, 32, 64, 100, 512])
def test_steps_leave_the_whole_width_and_one_to_go_to(width, runtime):
    offer = Offer(np.arange(1.0, width + 1), np.arange(1.0, width + 1))
    left = in_steps({"a": offer}, runtime)["a"].widths
    assert left[-1] == width
    assert len(left) > 1 or width == 1
    assert all(is_step(int(value), width, runtime) for value in left)
    assert runtime == "eager" or width < 16 or all(v % 8 == 0 or v <= 4 for v in left[:-1])


def test_a_time_that_is_met_already_takes_nothing(network):
    groups = network[1].prunable()
    offers = {g.name: Offer(np.arange(1.0, g.size + 1), np.ones(g.size)) for g in groups}
    trial = Trial(*network, SHAPE, Terms(1e6, "eager", 1, 1), offers, lambda widths: {})
    certificate = meet(trial)
    assert certificate.widths == {g.name: g.size for g in groups}
    assert "nothing has to go" in certificate.line()
    assert 0 < certificate.quartiles[0] <= certificate.measured <= certificate.quartiles[1]


def test_a_share_may_have_a_space():
    assert _milliseconds(" 50 %") == "50%"
    with pytest.raises(ValueError, match="below 100%"):
        Terms("100%", "eager", 1, 1)


PRUNE = ("model=vgg11", "model.width=0.5", "dataset.image_size=32", "dataset.num_classes=10")


def prune(*arguments, folder, command="prune"):
    return call(f"chanprune.{command}", *PRUNE, *arguments, cwd=folder)


@pytest.mark.slow
def test_a_run_tells_what_was_measured(tmp_path):
    arguments = ("prune.target_latency_ms=70%", "run.dir=run")
    done = prune(*arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "latency (eager, batch 1" in done.stdout
    certificate = json.loads((tmp_path / "run/latency.json").read_text())
    assert certificate["measured"] <= certificate["limit"]
    kept = json.loads((tmp_path / "run/plan.json").read_text())["kept"]
    assert {n: len(k) for n, k in kept.items() if n in certificate["widths"]} == {
        name: width for name, width in certificate["widths"].items() if name in kept
    }
    assert "latency.json" in json.loads((tmp_path / "run/manifest.json").read_text())["files"]
    assert "finished" in prune(*arguments, folder=tmp_path).stdout


def test_every_kind_of_layer_is_found_in_a_profile():
    pytest.importorskip("onnxruntime")
    layers = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(3, 7, 3, padding="same", bias=False),
        nn.Conv2d(6, 6, 3, stride=2, groups=6),
        nn.Conv2d(8, 16, 1, groups=4),
        nn.ConvTranspose2d(4, 8, 2, stride=2),
        nn.Conv1d(4, 8, 3),
        nn.Linear(8, 4),
        nn.Linear(8, 4, bias=False),
    ]
    images = [
        torch.randn(2, getattr(layer, "in_channels", 8), *sizes)
        for layer, sizes in zip(layers, [(8, 8)] * 5 + [(9,), (), ()], strict=True)
    ]
    seconds = profiled([(layer, [x, x]) for layer, x in zip(layers, images, strict=True)], 1, 3)
    assert all(0 < each < 1 for each in seconds)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["ort", "compiled"])
def test_other_runtimes(tmp_path, runtime):
    pytest.importorskip("onnxruntime")
    options = f"prune.latency={{runtime: {runtime}, batch: 2, threads: 1}}"
    done = prune("prune.target_latency_ms=85%", options, "run.dir=run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"latency ({runtime}, batch 2, threads 1)" in done.stdout


WRONG = {
    "prune.target_latency_ms=0": "milliseconds > 0",
    "prune.target_latency_ms=-1": "milliseconds > 0",
    "prune.target_latency_ms=150%": "milliseconds > 0",
    "prune.target_latency_ms=0%": "milliseconds > 0",
    "prune.target_latency_ms=5ms": "milliseconds > 0",
    "prune.target_latency_ms=100%": "below 100%",
    "prune.target_latency_ms=5 prune.latency.threads=9999": "threads=9999: this machine has",
    "prune.target_latency_ms=5 prune.target_macs=0.5": "give one of them",
    "prune.target_latency_ms=5 prune.rule=prefix": "goes with prune.rule=ratio",
    "prune.target_latency_ms=5 prune.latency.runtime=tpu": "eager, compiled, ort",
    "prune.target_latency_ms=5 prune.latency.batch=0": "prune.latency.batch=0",
    "prune.target_latency_ms=5 prune.latency.threads=0": "prune.latency.threads=0",
    "prune.target_latency_ms=5 prune.latency.speed=1": "unknown key",
    "prune.target_latency_ms=1%": "cannot be met",
    "prune.target_latency_ms=0.000001": "cannot be met",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_mistakes_are_one_line(tmp_path, arguments):
    done = prune(*arguments.split(" "), "run.dir=run", folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert WRONG[arguments] in done.stderr
    assert not (tmp_path / "run").exists()


def test_summarize_measures_nothing(tmp_path):
    done = call("chanprune.summarize", "prune.target_latency_ms=5", cwd=tmp_path)
    assert done.returncode == 2
    assert "summarize does not" in done.stderr


def test_a_timing_in_units_of_another_is_taken_round_by_round():
    slow_rounds = np.array([1.0, 1, 5, 5, 1])
    small, whole = (Timing(tuple(seconds * slow_rounds)) for seconds in (2.0, 4.0))
    share = small.per(whole)
    assert (share.low, share.median, share.high, share.rounds) == (0.5, 0.5, 0.5, 5)
    assert small.times(3).median == 3 * small.median


@pytest.mark.slow
def test_every_network_of_a_class_is_compiled():
    counted = torch._dynamo.utils.counters["stats"]
    torch.compiler.reset()
    before = counted["unique_graphs"]
    for width in range(4, 14):
        network = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU()).eval()
        call = prepared("compiled", network, torch.randn(1, 3, 8, 8), 1)
        with torch.inference_mode():
            call()
    assert counted["unique_graphs"] - before == 10
