"""Pruning layer by layer, by filters' norms or at random."""

import json

import pytest

from chanprune.channels import Plan, count_plan, trace
from chanprune.config import cli
from chanprune.methods import METHODS, PruneOptions, Setting
from chanprune.models import architecture, build
from chanprune.pipeline.prepare import prepare
from chanprune.processes.errors import UserError
from tests.networks import Chain
from tests.test_pipeline import changed, execute
from tests.test_reuse import execute_with

SHAPE = (3, 32, 32)
LI = {  # parameters and multiply-accumulates of Li et al., table 1, to the last digit
    "vgg16_a": (5_397_034, 206_279_680),
    "resnet56_a": (773_336, 112_435_840),
    "resnet56_b": (735_712, 90_907_264),
}


@pytest.mark.parametrize("name", LI)
def test_the_papers_plans(name):
    config = cli.composed("config", [f"experiment=l1norm/{name}_cifar10"])
    model = build(**architecture(config["model"], SHAPE, 10))
    graph = trace(model, SHAPE)
    method = METHODS["l1norm"](shares=config["method"]["shares"])
    options = PruneOptions(config["prune"]["ratio"])
    method.before_training(model, graph, Setting(1.0, prune=options))
    selection, scores = method.select_channels(model, graph, options)
    counts = count_plan(model, graph, graph.cut(Plan(selection.kept)).complete)
    assert (counts.params, counts.macs) == LI[name]
    for group, kept in selection.kept.items():
        dropped = sorted(set(range(len(scores[group]))) - set(kept))
        if dropped:
            assert scores[group][dropped].max() <= scores[group][list(kept)].min()


@pytest.mark.parametrize(("ratio", "round_to"), [(0.0, 1), (0.3, 1), (0.5, 4), (0.9, 1)])
@pytest.mark.parametrize("name", ["l1norm", "random"])
def test_every_group_loses_the_ratio(name, ratio, round_to):
    model = Chain()
    graph = trace(model, (3, 16, 16))
    method, options = METHODS[name](), PruneOptions(ratio, round_to=round_to)
    kept = {}
    for seed in (0, 1):
        method.before_training(model, graph, Setting(1.0, seed=seed, prune=options))
        selection, _ = method.select_channels(model, graph, options)
        kept[seed] = selection.kept
        for group in graph.prunable("keep"):
            width = max(1, int(group.size * (1 - ratio) + 1e-9), -(-group.size // 50))
            expected = min(group.size, -(-width // round_to) * round_to)
            assert len(selection.kept.get(group.name, range(group.size))) == expected
    assert (kept[0] == kept[1]) == (name == "l1norm" or ratio == 0)


@pytest.mark.parametrize("shares", [{"nothing": 0.5}, {"(": 0.5}])
def test_shares_that_match_nothing_are_refused(shares):
    with pytest.raises(UserError, match="method.shares"):
        prepare(changed(method={"name": "l1norm", "shares": shares}))


def test_a_control_has_the_widths_of_a_run_and_shares_its_baseline(tmp_path, capsys):
    execute(changed(), tmp_path / "slimming")
    control = {"prune": {"widths": str(tmp_path / "slimming")}}
    plans = {}
    for name in ("l1norm", "random"):
        config = changed(method={"name": name}, **control)
        config["method"] = {"name": name}
        execute_with(tmp_path / "cache", config, tmp_path / name)
        plans[name] = json.loads((tmp_path / name / "plan.json").read_text())["kept"]
    widths = json.loads((tmp_path / "slimming/plan.json").read_text())["kept"]
    for kept in plans.values():
        assert {g: len(c) for g, c in kept.items()} == {g: len(c) for g, c in widths.items()}
    assert plans["l1norm"] != plans["random"]
