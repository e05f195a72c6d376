"""Several processes train what one process trains with the same batch."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from chanprune.processes.parallel import whole_batch_norms
from tests.test_pipeline import changed, execute
from tests.test_resume import PREACTIVATION, TINY, lines, wait_for

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
STAGE = {"epochs": 1, "batch_size": 128, "lr": 0.002}  # in ten small steps no rounding error grows
SHORT = {"train": STAGE, "finetune": STAGE}
RUNS = {
    "slimming": {"method": {"name": "slimming", "sparsity_weight": 0.01}},
    "prioritized": {
        "method": {"name": "prioritized", "levels": [0.5, 1.0]},
        "finetune": {**STAGE, "optimiser": "adam", "lr": 0.001},
    },
    "cucb": {"method": {"name": "cucb", "explore": 3}},
    "random_every_step": {"method": {"name": "random_every_step", "every": 3}},
    "selectconv": {
        "model": PREACTIVATION,
        "method": {"name": "selectconv", "threshold": 0.1, "until": 1.0},
        "train": {**STAGE, "epochs": 2, "lr": 2e-4},
        "finetune": {**STAGE, "epochs": 0},
    },
    "selectconv, compression": {
        "model": PREACTIVATION,
        "method": {"name": "selectconv", "threshold": 0.1, "realloc": False, "until": 1.0},
        "train": {**STAGE, "epochs": 2, "lr": 2e-4},
        "finetune": {**STAGE, "epochs": 0},
    },
}
CONFIGS = {name: changed(**{**SHORT, **sections}) for name, sections in RUNS.items()}


def torchrun(*arguments, cwd, **options):
    return subprocess.Popen(
        [sys.executable, *TORCHRUN, *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder of all runs, each done by two processes."""
    folder = tmp_path_factory.mktemp("together")
    done = torchrun("-m", "tests.processes", json.dumps(CONFIGS), str(folder), cwd=Path.cwd())
    _, error = done.communicate(timeout=400)
    assert done.returncode == 0, error
    return folder


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.slow
def test_two_processes_decide_and_learn_what_one_does(name, together, tmp_path):
    expected = execute(CONFIGS[name], tmp_path / "alone")
    folder, alone = together / name, tmp_path / "alone"
    kept, own = (json.loads((f / "plan.json").read_text())["kept"] for f in (folder, alone))
    assert kept == own
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["cost"]["train"]["macs"] == expected["cost"]["train"]["macs"]
    for line, reference in zip(lines(folder), lines(alone), strict=True):
        assert line["loss"] == pytest.approx(reference["loss"], rel=1e-4)
    states = [load_file(f / "train/state.safetensors") for f in (folder, alone)]
    assert states[0].keys() == states[1].keys()
    for tensor in states[1]:
        if tensor.startswith("model."):
            torch.testing.assert_close(states[0][tensor], states[1][tensor], rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_and_it_goes_on_to_the_same_end(tmp_path):
    def train(folder):
        arguments = ("-m", "chanprune.train", *TINY, "train.epochs=3", f"run.dir={folder}")
        return torchrun(*arguments, "cache.enabled=false", cwd=tmp_path)

    whole = train("whole")
    _, error = whole.communicate(timeout=300)
    assert whole.returncode == 0, error
    broken = train("broken")
    metrics = tmp_path / "broken/metrics.jsonl"
    wait_for(metrics, '"epoch": 2,')
    asked = ["pgrep", "-f", f"-P{broken.pid}", "chanprune.train"]
    workers = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    began = time.monotonic()
    _, error = broken.communicate(timeout=60)
    assert broken.returncode != 0 and time.monotonic() - began < 60
    again = train("broken")
    output, error = again.communicate(timeout=300)
    assert again.returncode == 0, error
    assert output.count("goes on where it was saved") == 1
    assert lines(tmp_path / "broken") == lines(tmp_path / "whole")
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("broken", "whole")]
    assert models[0] == models[1]


def test_a_librarys_batch_norm_keeps_its_activation():
    norm = pytest.importorskip("timm").layers.BatchNormAct2d(6)
    images = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    for mode in (True, False):
        norm.train(mode)
        expected = copy.deepcopy(norm)(images)
        with whole_batch_norms(nn.Sequential(norm)):
            torch.testing.assert_close(norm(images), expected)


@pytest.mark.slow
def test_a_batch_must_have_equal_shares(tmp_path):
    refused = torchrun("-m", "chanprune.train", *TINY, "train.batch_size=31", cwd=tmp_path)
    _, error = refused.communicate(timeout=100)
    assert refused.returncode != 0
    said = "train.batch_size=31 must be a multiple of the number of processes, 2"
    assert error.count(said) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("seed=$RANK", "seed is 0 in process 0 and 1 in process 1"),
        ("run.dir=/dev/null", "run.dir=/dev/null is a file; give a directory"),
        ("train.lr=0.0$((RANK + 1))", "train.lr is 0.01 in process 0 and 0.02 in process 1"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_is_refused_by_all_processes_in_one_line(option, told, tmp_path):
    command = " ".join(["exec", sys.executable, "-m", "chanprune.train", *TINY, option])
    refused = torchrun("--no-python", "bash", "-c", command, cwd=tmp_path)
    _, error = refused.communicate(timeout=100)
    assert refused.returncode != 0
    ours = [line for line in error.splitlines() if line.startswith("chanprune: ")]
    assert len(ours) == 1 and told in ours[0]
    assert "chanprune/train.py" not in error, "torchrun's traceback is the only one"
    assert not (tmp_path / "out").exists()
