"""One short run of every kind that takes long elsewhere: files, table and network agree."""

import json

import pytest
import torch
from safetensors.torch import load_file

import chanprune
from chanprune.channels import count
from chanprune.pipeline.evaluation import evaluate_run
from tests.commands import TINY, call
from tests.test_parallel import torchrun
from tests.test_pipeline import changed, execute
from tests.test_selectconv import PLENTY, SMALL

FEW = {"share": 0.1}
KINDS = {
    "selectconv": {"model": SMALL, "method": PLENTY, "train": {"epochs": 2}},
    "lgc": {
        "model": {"name": "condensenet50", "width": 0.25},
        "method": {"name": "lgc", "group_lasso": 1e-5},
        "train": {"epochs": 1},
    },
}
KINDS = {name: {**kind, "finetune": {"epochs": 0}, "dataset": FEW} for name, kind in KINDS.items()}
IN_SEARCH = ("--trials", "2", "--dir", "found", "method=l1norm", "prune.ratio=interval(0.3,0.6)")


@pytest.mark.parametrize("name", KINDS)
def test_what_a_run_leaves_is_what_its_table_says(name, tmp_path):
    config = changed(**KINDS[name])
    summary = execute(config, tmp_path)
    first, last = summary["stages"][0], summary["stages"][-1]
    assert last["params"] < first["params"] and last["macs"] < first["macs"]
    model = chanprune.load(tmp_path)
    counts = count(model, model.input_shape)
    stored = load_file(tmp_path / "model.safetensors")
    assert counts.params == sum(stored[key].numel() for key, _ in model.named_parameters())
    (found,) = evaluate_run(tmp_path, config, "cpu", [1.0])
    for key in ("accuracy", "params", "macs"):
        assert found[key] == summary[key] == last[key.replace("accuracy", "test_accuracy")]


def test_two_processes_end_at_one_network(tmp_path):
    process = torchrun(
        *("-m", "chanprune.train", *TINY, "dataset.share=0.2", "run.dir=run"), cwd=tmp_path
    )
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    model = chanprune.load(tmp_path / "run")
    assert count(model, model.input_shape).params == summary["params"]


def test_a_search_does_its_trials_and_shows_the_best(tmp_path):
    command = ("chanprune.search", *IN_SEARCH, *TINY, "dataset.share=0.1")
    done = call(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = list((tmp_path / "outputs/digits").iterdir())
    assert len(runs) == 2 and "Of 2 trials that were done" in done.stdout
    for run in runs:
        model = chanprune.load(run)
        assert model(torch.zeros(1, *model.input_shape)).isfinite().all()
