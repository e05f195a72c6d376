"""Controls of a finished run: its widths with other channels, and its network from the start."""

import json
import math

import pytest
import torch
import yaml

import chanprune
from chanprune.channels import Plan, count, trace
from chanprune.config.control import CONTROLS, control
from chanprune.models import build
from chanprune.pipeline.model_file import compact_afresh
from chanprune.processes.errors import UserError
from tests.commands import TINY, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run in `run`, and a sweep of all its controls."""
    path = tmp_path_factory.mktemp("controls")
    assert train(*TINY, "run.dir=run", cwd=path).returncode == 0
    names = ",".join(CONTROLS)
    swept = train("-m", f"control={names}", "control_of=run", cwd=path)
    assert swept.returncode == 0, swept.stderr
    assert swept.stdout.count("has trained the same; its result is taken") == 2
    return path


def summary(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def recorded(run_dir):
    return yaml.safe_load((run_dir / "config.yaml").read_text())["config"]


def test_every_control_has_the_run_s_cost_and_options(folder):
    whole = summary(folder / "run")
    runs = list((folder / "outputs/digits").iterdir())
    assert len(runs) == len(CONTROLS)
    for path in runs:
        found, config = summary(path), recorded(path)
        control = yaml.safe_load((path / "config.yaml").read_text())["environment"]["control"]
        assert control["name"] in CONTROLS and control["of"] == "run"
        assert config["seed"] == 0 and config["dataset"] == recorded(folder / "run")["dataset"]
        if config["prune"]["widths"] or config["model"]["name"] == "compact":
            assert (found["params"], found["macs"]) == (whole["params"], whole["macs"])
        else:
            assert abs(found["macs"] / whole["macs"] - 1) < 0.1


@pytest.mark.slow
def test_networks_that_gather_channels_have_controls_by_norms(tmp_path):
    """Their channels have no filters of their own; the columns that read them count."""
    tiny = ("model=densenet40", "model.width=0.25", "dataset.image_size=16", "device=cpu")
    options = ("train.epochs=1", "finetune.epochs=0", "prune.ratio=0.4", "dataset.share=0.3")
    assert train(*tiny, *options, "run.dir=run", cwd=tmp_path).returncode == 0
    swept = train("-m", "control=l1norm,uniform", "control_of=run", cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    whole = summary(tmp_path / "run")
    for path in (tmp_path / "outputs/digits").iterdir():
        is_same = recorded(path)["prune"]["widths"] is not None
        assert abs(summary(path)["macs"] / whole["macs"] - 1) < (1e-9 if is_same else 0.1)


def test_scratch_trains_the_compact_network_alone_and_loads(folder):
    whole = summary(folder / "run")
    for path in (folder / "outputs/digits").glob("compact-*"):
        assert [row["stage"].split()[0] for row in summary(path)["stages"]] == ["trained"]
        model = chanprune.load(path)
        assert count(model, model.input_shape).params == whole["params"]


def test_scratch_trains_for_the_epochs_or_the_compute_of_the_run(folder):
    """As it was executed; the run's own compute lies within the last epoch of scratch_b."""
    whole = summary(folder / "run")["cost"]["train"]
    one, many = sorted(
        (summary(path)["cost"]["train"] for path in (folder / "outputs/digits").glob("compact-*")),
        key=lambda cost: cost["images"],
    )
    assert one["images"] == whole["images"]
    assert many["images"] > 5 * one["images"]
    assert many["macs"] <= whole["macs"] < many["macs"] + one["macs"]


def test_what_cannot_be_a_control_is_refused(folder):
    with pytest.raises(UserError, match="no finished run is there"):
        control("random", folder / "nowhere")
    scratch = next((folder / "outputs/digits").glob("compact-*"))
    assert train(*TINY, "method=none", "run.dir=dense", cwd=folder).returncode == 0
    with pytest.raises(UserError, match="took no channels out"):
        control("random", folder / "dense")
    assert control("scratch_e", scratch)["model"]["run"] == str(scratch)
    refused = train("control=random", "control_of=run", "train.lr=1", cwd=folder)
    assert refused.returncode == 2 and "leave out" in refused.stderr
    refused = train("control=random", cwd=folder)
    assert refused.returncode == 2 and "go together" in refused.stderr


def test_the_compact_network_starts_like_one_that_was_built_narrow():
    torch.manual_seed(0)
    model = build("vgg11", num_classes=10, in_channels=3, image_size=32)
    graph = trace(model, (3, 32, 32))
    plan = Plan({group.name: range(group.size // 4) for group in graph.prunable("keep")})
    small, _ = compact_afresh(model, graph, plan)
    conv = small.features.conv4_2
    assert conv.out_channels == 128
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    assert small.features.bn4_2.weight.unique().tolist() == [0.5]
