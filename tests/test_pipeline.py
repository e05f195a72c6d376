"""Runs end to end: every file, the same bits, resume-ready checkpoints, and failures."""

import copy
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import chanprune
from chanprune import data
from chanprune.channels import count, find_cliff
from chanprune.files.writing import write_json, write_text
from chanprune.pipeline.prepare import prepare
from chanprune.pipeline.run import run
from chanprune.processes.errors import RunError, UserError
from chanprune.records.retired import without_retired

STAGE = {
    "epochs": 2,
    "batch_size": 32,
    "lr": 0.05,
    "optimiser": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
    "weight_decay_norm": 1e-4,
    "weight_decay_bias": 1e-4,
    "schedule": "cosine",
    "milestones": [0.5, 0.75],
    "lr_factor": 0.1,
    "warmup": 0.0,
    "label_smoothing": 0.0,
    "precision": "fp32",
    "compile": False,
    "save_every_minutes": 10.0,
}
PRUNE = {
    "rule": "ratio",
    "threshold": 0.05,
    "ratio": 0.5,
    "absorb": "bias",
    "coupled": "keep",
    "order": False,
    "min_channels": 1,
    "min_share": 0.02,
    "max_share": 1.0,
    "round_to": 1,
    "widths": None,
    "least_squares": 0,
    "recalibrate": 0,
}
TINY: dict[str, Any] = {
    "seed": 0,
    "device": "cpu",
    "model": {"name": "vgg11", "width": 0.0625},
    "dataset": {"name": "digits", "image_size": 16, "pad": 1, "flip": False},
    "method": {"name": "slimming"},
    "prune": PRUNE,
    "train": STAGE,
    "finetune": {**STAGE, "epochs": 1},
}
TINY = without_retired(TINY)


def changed(**sections):
    config = copy.deepcopy(TINY)
    for key, values in sections.items():
        config[key] = {**config[key], **values} if isinstance(values, dict) else values
    return config


def execute(config, folder):
    folder.mkdir(exist_ok=True)
    return run(config, prepare(config), folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, execute(TINY, folder)


def test_a_run_leaves_every_file(finished):
    folder, summary = finished
    names = {path.name for path in folder.iterdir()}
    assert {
        *("train", "finetune", "tensorboard", "metrics.jsonl", "plan.json", "model.safetensors"),
        *("model.json", "table.md", "table.csv", "summary.json", "channels.png", "scales.png"),
    } <= names
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [
        ("train", 1),
        ("train", 2),
        ("finetune", 1),
    ]
    stages = [stage["stage"] for stage in summary["stages"]]
    assert stages[:3] == ["trained", "pruned", "pruned, constants absorbed"]
    assert stages[3].startswith("fine-tuned (epoch 1")
    assert json.loads((folder / "summary.json").read_text()) == summary
    for picture in ("channels.png", "scales.png"):
        pixels = np.asarray(Image.open(folder / picture).convert("RGB"))
        assert pixels.shape[0] > 300 and pixels.std() > 5
    table = (folder / "table.md").read_text()
    assert all(stage in table for stage in stages) and "FLOPs = 2 x MACs" in table


def test_counts_of_table_model_file_and_tensors_agree(finished):
    folder, summary = finished
    model = chanprune.load(folder)
    counts = count(model, model.input_shape)
    assert (counts.params, counts.macs) == (summary["params"], summary["macs"])
    assert summary["stages"][1]["channels"] * 2 == summary["stages"][0]["channels"]
    tensors = load_file(folder / "model.safetensors")
    learnt = [t for key, t in tensors.items() if "running_" not in key and "num_b" not in key]
    assert sum(tensor.numel() for tensor in learnt) == counts.params
    description = json.loads((folder / "model.json").read_text())
    assert description["counts"] == {"params": counts.params, "macs": counts.macs}
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["kept"] == description["plan"]
    assert plan["passes"][0]["self_check_error"] <= 1e-9


def test_a_model_loads_in_another_process_without_pickle(finished):
    folder, summary = finished
    program = f"""
import pickle, torch, torchvision.transforms.v2, chanprune
load = chanprune.load
def refuse(*args, **kwargs):
    raise RuntimeError("pickle was used")
pickle.load = pickle.loads = pickle.Unpickler = refuse
torch.load = torch.serialization.load = refuse
from PIL import Image
model = load({str(folder)!r})
image = torch.linspace(0, 255, 3 * 20 * 24).byte().view(3, 20, 24)
print(model.training, model.input_shape, model.class_names[3])
print(tuple(model.preprocess(image).shape), tuple(model.preprocess(Image.new("L", (9, 9))).shape))
print(model(model.preprocess(image)[None]).double().sum().item().hex())
"""
    asked = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    model = chanprune.load(folder)
    image = torch.linspace(0, 255, 3 * 20 * 24).byte().view(3, 20, 24)
    expected = model(model.preprocess(image)[None]).double().sum().item().hex()
    assert asked.stdout.splitlines() == [
        "False (1, 16, 16) 3",
        "(1, 16, 16) (1, 16, 16)",
        expected,
    ]


def test_the_loaded_model_has_the_tables_accuracy(finished):
    folder, summary = finished
    model = chanprune.load(folder / "model.json")
    dataset = data.load(seed=0, **TINY["dataset"])
    hits = sum(
        (model(images).argmax(1) == labels).sum().item()
        for images, labels in data.eval_batches(
            dataset, "test", batch_size=100, device="cpu"
        ).epoch(0)
    )
    assert hits / len(dataset.splits["test"].labels) == pytest.approx(summary["accuracy"])


def test_the_same_configuration_gives_the_same_bits(finished, tmp_path):
    folder, _ = finished
    execute(TINY, tmp_path / "again")
    for name in ("model.safetensors", "plan.json", "model.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    states = [load_file(f / "train/state.safetensors") for f in (folder, tmp_path / "again")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    execute(changed(seed=1), tmp_path / "other")
    assert (tmp_path / "other/plan.json").read_bytes() != (folder / "plan.json").read_bytes()


def test_checkpoints_hold_parameters_momentum_and_position(finished):
    folder, _ = finished
    state = load_file(folder / "train/state.safetensors")
    parameters = {key for key in state if key.startswith("model.")}
    momenta = {key for key in state if key.startswith("optimiser.momentum_buffer.")}
    assert "model.features.conv1_1.weight" in parameters
    assert "optimiser.momentum_buffer.features.conv1_1.weight" in momenta
    with safe_open(folder / "train/state.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    assert (facts["epoch"], facts["batch"]) == (2, 0)


def test_the_dense_baseline_has_one_row_and_no_plan(tmp_path):
    summary = execute(changed(method={"name": "none"}), tmp_path / "dense")
    assert [row["stage"][:7] for row in summary["stages"]] == ["trained"]
    assert not (tmp_path / "dense/plan.json").exists()
    assert chanprune.load(tmp_path / "dense")(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


@pytest.mark.parametrize("criterion", ["scale", "taylor"])
def test_passes_compose(tmp_path, criterion):
    config = changed(
        method={"name": "slimming", "passes": 2, "criterion": criterion},
        prune={"ratio": 0.3, "max_share": 0.5, "recalibrate": 200},
    )
    summary = execute(config, tmp_path / "passes")
    channels = [row["channels"] for row in summary["stages"]]
    first = channels[0]
    once = first - int(0.3 * first)
    assert channels[1] == once and channels[-1] == once - int(0.3 * once)
    assert {"train-1", "finetune-1", "train-2", "finetune-2"} <= {
        path.name for path in (tmp_path / "passes").iterdir()
    }
    assert "pruned, statistics anew-2" in [row["stage"] for row in summary["stages"]]
    model = chanprune.load(tmp_path / "passes")
    assert count(model, model.input_shape).params == summary["params"]


def test_a_run_in_bfloat16_learns_and_without_absorbing_goes_on_from_the_plain_cut(tmp_path):
    stage = {**STAGE, "epochs": 1, "precision": "bf16", "label_smoothing": 0.1, "warmup": 0.2}
    summary = execute(changed(train=stage, prune={"absorb": "none"}), tmp_path / "options")
    trained, *_, tuned = (row["test_accuracy"] for row in summary["stages"])
    assert min(trained, tuned) > 0.2, "of ten classes"
    stages = [row["stage"] for row in summary["stages"]]
    assert stages[1:3] == ["pruned, constants absorbed", "pruned"]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_epoch(tmp_path):
    """Epoch 1 is sane; the learning rate then rises beyond all bounds."""
    stage = {**STAGE, "epochs": 3, "lr": 1e30, "schedule": "cosine", "warmup": 0.99}
    prepared = prepare(changed(train=stage))
    good = execute_first_epoch(tmp_path / "nan")
    with pytest.raises(RunError, match=r"stage train .* at step \d+ \(epoch \d\)") as stopped:
        run(changed(train=stage), prepared, tmp_path / "nan")
    assert "last good checkpoint is" in str(stopped.value)
    assert load_file(good).keys()
    assert not (tmp_path / "nan/summary.json").exists()


def execute_first_epoch(folder):
    execute(changed(train={**STAGE, "epochs": 1}, method={"name": "none"}), folder)
    (folder / "summary.json").unlink()
    return folder / "train/state.safetensors"


def test_ratios_that_the_floors_forbid_are_refused(tmp_path):
    config = changed(train={**STAGE, "epochs": 1}, prune={"ratio": 0.9, "min_share": 0.5})
    with pytest.raises(UserError, match="at their floor"):
        execute(config, tmp_path / "refused")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"abc"), "cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "it is missing"),
        (lambda f: (f / "model.json").write_text("{"), "it is not JSON"),
        (lambda f: (f / "model.json").write_text('{"format": 99}'), "reads format 1"),
        (lambda f: (f / "model.json").unlink(), "there is no model"),
    ],
)
def test_damaged_models_are_refused(finished, tmp_path, damage, message):
    folder, _ = finished
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        chanprune.load(tmp_path)


def test_a_plan_that_does_not_fit_the_tensors_is_refused(finished, tmp_path):
    folder, _ = finished
    description = json.loads((folder / "model.json").read_text())
    description["plan"]["features.conv1_1"] = [0]
    write_json(tmp_path / "model.json", description)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="is damaged"):
        chanprune.load(tmp_path)


def test_files_are_written_whole_or_not_at_all(tmp_path):
    write_text(tmp_path / "table.md", "old")
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_text(tmp_path / "taken" / "table.md", "new")
    with pytest.raises(RunError, match="cannot be written"):
        write_text(tmp_path / "table.md", "half \ud800")
    assert (tmp_path / "table.md").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.md", "taken"]


def test_a_cliff_is_found_where_there_is_one():
    values = np.sort(np.concatenate([np.full(60, 1e-4), np.linspace(0.1, 0.3, 40)]))
    assert find_cliff(values) == 59
    assert find_cliff(np.linspace(0.1, 0.3, 100)) is None
    assert find_cliff(np.array([1.0])) is None


@pytest.fixture(scope="module")
def emptied(tmp_path_factory):
    """A residual network of which blocks may go whole; the scales of one block are the smallest."""
    folder = tmp_path_factory.mktemp("emptied")
    config = changed(
        model={"name": "preresnet29", "width": 0.125},
        prune={"ratio": 0.7, "min_channels": 0, "min_share": 0.0},
        train={"epochs": 1},
    )
    config["model"].pop("head", None)
    prepared = prepare(config)
    with torch.no_grad():
        prepared.network.model.stages[1][1].bn3.weight.mul_(0.01)
    folder.mkdir(exist_ok=True)
    return folder, run(config, prepared, folder)


def test_blocks_that_lose_every_channel_are_gone_from_the_product(emptied, capsys):
    folder, summary = emptied
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["kept"]["stages.1.1.conv2"] == [] and plan["passes"][0]["implied"] > 0
    model = chanprune.load(folder)
    assert not any(key.startswith("stages.1.1") for key in model.state_dict())
    counts = count(model, model.input_shape)
    assert (counts.params, counts.macs) == (summary["params"], summary["macs"])
    assert counts.params == sum(p.numel() for p in model.parameters())


def test_a_chain_keeps_a_channel_of_each_group_whatever_the_floor(tmp_path):
    config = changed(prune={"min_channels": 0, "min_share": 0.0, "ratio": 0.95})
    execute(config, tmp_path)
    kept = json.loads((tmp_path / "plan.json").read_text())["kept"]
    assert min(len(channels) for channels in kept.values()) == 1
