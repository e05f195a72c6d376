"""Incomplete dot products: the profiles, where they stand, and what a run makes of them."""

import json

import pytest
import torch
from torch import nn

import chanprune
from chanprune.channels import fidelity_groups, trace
from chanprune.methods import Setting, Step
from chanprune.methods.idp import IncompleteDotProducts, coefficients_of
from chanprune.methods.multi_fidelity import MultiFidelity
from chanprune.models import build
from chanprune.pipeline.evaluation import evaluate_run
from chanprune.processes.errors import UserError
from tests.networks import SMALL, SMALL_SHAPE, randomise
from tests.test_pipeline import changed, execute

NOW = Step(index=0, epoch=0, lr=0.1, progress=0.0)
PROFILES = ("all_one", "linear", "harmonic", "half_exponential")
NETWORKS = ("chain", "biased", "grouped", "residual")


def prepared(name, profile, **options):
    torch.manual_seed(0)
    model = randomise(SMALL[name](), 0).double()
    graph = trace(model, SMALL_SHAPE)
    method = IncompleteDotProducts(profile, **options)
    method.before_training(model, graph, Setting(lr_travel=1.0))
    return model, graph, method


def test_the_profiles_fall_from_one():
    e = torch.tensor(1.0, dtype=torch.float64).exp()
    expected = {
        "all_one": [1, 1, 1, 1],
        "linear": [1, 0.75, 0.5, 0.25],
        "harmonic": [1, 1 / 2, 1 / 3, 1 / 4],
        "half_exponential": [1, 1, 1, 1 / e.item()],
    }
    for profile, values in expected.items():
        assert coefficients_of(profile, 4).tolist() == pytest.approx(values)
        many = coefficients_of(profile, 33)
        assert many[0] == 1 and (many[1:] <= many[:-1]).all() and (many >= 0).all()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("profile", PROFILES)
def test_the_product_computes_what_was_trained(name, profile):
    model, _, method = prepared(name, profile)
    images, labels = torch.randn(4, *SMALL_SHAPE, dtype=torch.float64), torch.randint(5, (4,))
    model.eval()
    _, logits = method.loss(model, images, labels, 0.0)
    torch.testing.assert_close(method.product(model)(images), logits)
    if profile == "all_one":
        torch.testing.assert_close(model(images), logits)


def test_coefficients_on_outputs_equal_coefficients_on_inputs():
    """E.1, 18: a dot product over coefficient x weight x input, as the paper writes it."""
    model, graph, method = prepared("biased", "linear")
    product = method.product(model).eval()
    images = torch.randn(3, *SMALL_SHAPE, dtype=torch.float64)
    first = torch.relu(model.first(images))
    falling = coefficients_of("linear", first.shape[1])
    second = torch.relu(model.second(first * falling[:, None, None]))
    falling = coefficients_of("linear", second.shape[1])
    logits = model.head((second * falling[:, None, None]).flatten(1))
    torch.testing.assert_close(product(images), logits)
    assert fidelity_groups(graph) == ["first", "second"]


def test_coefficients_stand_behind_a_batch_norm():
    model, _, method = prepared("chain", "linear")
    assert {name.rpartition(".")[0] for name in method.coefficients.factors} == {
        "first.1",
        "second.1",
    }


def test_the_coefficients_are_not_trained_and_the_start_keeps_the_signal():
    model, _, method = prepared("biased", "harmonic")
    factors = {name: factor.clone() for name, factor in method.coefficients.factors.items()}
    images, labels = torch.randn(4, *SMALL_SHAPE, dtype=torch.float64), torch.randint(5, (4,))
    loss, _ = method.loss(model, images, labels, 0.0)
    loss.backward()
    effective = method.product(model)
    expected = nn.functional.cross_entropy(effective(images), labels)
    expected.backward()
    for (name, raw), folded in zip(model.named_parameters(), effective.parameters(), strict=True):
        factor = factors.get(name, torch.ones(())).double()
        torch.testing.assert_close(raw.grad, folded.grad * factor)
    for name, factor in factors.items():
        assert torch.equal(method.coefficients.factors[name], factor)
    torch.manual_seed(0)
    plain = randomise(SMALL["biased"](), 0).double()
    for name, factor in factors.items():
        tensor, size = plain.get_parameter(name), factor.double().square().mean().sqrt()
        torch.testing.assert_close(model.get_parameter(name), tensor / size)


def test_one_level_has_no_finetune_stage_and_several_share_the_coefficients():
    model, graph, method = prepared("chain", "linear", levels=[1.0])
    assert method.finetune_hooks(graph) is None
    model, graph, method = prepared("chain", "linear", levels=[0.5, 1.0])
    hooks = method.finetune_hooks(graph)
    assert isinstance(hooks, MultiFidelity)
    hooks.before_training(model, graph, Setting(lr_travel=1.0))
    hooks.before_step(NOW)
    images, labels = torch.randn(4, *SMALL_SHAPE, dtype=torch.float64), torch.randint(5, (4,))
    loss, logits = hooks.loss(model, images, labels, 0.0)
    product = method.product(model).eval()
    torch.testing.assert_close(logits, hooks.product(model).eval()(images))
    again, same = MultiFidelity(graph, [0.5, 1.0]).loss(product, images, labels, 0.0)
    torch.testing.assert_close(logits, same)
    torch.testing.assert_close(loss, again)


def test_a_network_without_channels_to_leave_out_is_refused():
    model = build(
        "densenet40",
        num_classes=10,
        in_channels=3,
        image_size=16,
        width=0.5,
        growth=12,
        stem=16,
        bottleneck=False,
        transition="conv",
        compression=1.0,
    )
    with pytest.raises(UserError, match="need channels that may be left out"):
        graph = trace(model, (3, 16, 16))
        IncompleteDotProducts().before_training(model, graph, Setting(lr_travel=1.0))


@pytest.mark.parametrize("norm", [True, False])
def test_a_run_trains_whole_then_at_several_levels(tmp_path, norm):
    config = changed(
        model={"norm": norm, "conv_bias": not norm},
        method={"name": "idp", "levels": [0.25, 1.0], "level_statistics": 64},
        train={"lr": 0.01},
        finetune={"lr": 0.001},
    )
    summary = execute(config, tmp_path / "run")
    rows = [(row["stage"].partition(" (")[0], row["fidelity"]) for row in summary["stages"]]
    assert rows == [("trained", 1), ("trained", 0.25), ("fine-tuned", 1), ("fine-tuned", 0.25)]
    assert summary["stages"][0]["params"] == summary["params"] > summary["stages"][3]["params"]
    assert summary["accuracy"] == summary["stages"][2]["test_accuracy"]
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert summary["stages"][2]["val_accuracy"] == lines[-1]["val_accuracy"]
    table = (tmp_path / "run" / "table.md").read_text()
    assert table.count("at level 0.25") == 2 and "(--" not in table
    assert not (tmp_path / "run" / "plan.json").exists()
    net = chanprune.load(tmp_path / "run")
    images = torch.randn(2, *net.input_shape)
    small = chanprune.extract(net, 0.25)
    net.set_fidelity(0.25)
    assert torch.equal(net(images), small(images))
    assert (tmp_path / "run" / "levels.png").exists()


def test_levels_are_measured_as_they_were_validated_and_as_they_are_loaded(tmp_path):
    config = changed(
        model={"width": 0.25},
        method={"name": "idp", "levels": [0.5, 1.0]},
        train={"lr": 0.1, "epochs": 4},
        finetune={"lr": 0.005, "epochs": 1},
    )
    summary = execute(config, tmp_path)
    whole, half = summary["stages"][-2:]
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (line["val_accuracy"], line["val_accuracy_at_0.5"]) == (
        whole["val_accuracy"],
        half["val_accuracy"],
    )
    assert half["val_accuracy"] > 0.8, "far from chance, or this would show nothing"
    levels = evaluate_run(tmp_path, config, "cpu", [0.5, 1.0])
    assert [level["accuracy"] for level in levels] == [
        half["test_accuracy"],
        whole["test_accuracy"],
    ]
