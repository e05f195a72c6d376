"""A search by Optuna: trials are runs, the hopeless end early, and nothing is done twice."""

import csv
import signal

import pytest

from tests.commands import TINY, call, start

SPACE = ("method.sparsity_weight=1e-3,1e-2", "prune.ratio=interval(0.3,0.6)")


def rows(folder):
    with (folder / "found/trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on(tmp_path):
    command = ("chanprune.search", "--trials", "3", "--dir", "found", *TINY, *SPACE)
    killed = start(*command, "train.epochs=4", cwd=tmp_path)
    for line in killed.stdout:
        if line.startswith("  train 2/4"):
            killed.send_signal(signal.SIGKILL)
    killed.communicate()
    done = call(*command, "train.epochs=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "goes on where it was saved" in done.stdout
    found = rows(tmp_path)
    assert [row["state"] for row in found] == ["fail", "complete", "complete", "complete"]
    assert found[0]["run"] == found[1]["run"]
    best = [row for row in found[1:] if row["run"] in done.stdout.split("beaten by no other")[1]]
    for row in best:
        for other in found[1:]:
            more = float(other["val_accuracy"]) > float(row["val_accuracy"])
            assert not (more and float(other["macs"]) < float(row["macs"]))
    assert (tmp_path / "found/pareto.png").stat().st_size > 1000
    again = call(*command, "train.epochs=4", cwd=tmp_path)
    assert again.returncode == 0 and "trial 4" not in again.stdout


@pytest.mark.slow
def test_the_hopeless_end_early(tmp_path):
    steps = ("finetune.lr=0.05,1e-6,1e-7,1e-8,1e-9,1e-10", "finetune.epochs=4", "train.epochs=2")
    arguments = ("--trials", "9", "--dir", "found", *TINY, "prune.ratio=0.5", *steps)
    done = call("chanprune.search", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path)
    first = [row["finetune.lr"] for row in found].index("0.05")
    assert all(row["state"] == "complete" for row in found if row["finetune.lr"] == "0.05")
    assert "pruned" in [row["state"] for row in found[first:]]
    assert done.stdout.count("given up: trial") == [row["state"] for row in found].count("pruned")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune.ratio=0.5",), "nothing varies; give"),
        (("prune.ratio=interval(0.3,1.5)",), "prune.ratio=1.5: must be a number in [0, 1)"),
        (("method=slimming,slimmin",), "method=slimmin: no such choice"),
        (("ratio",), "ratio: must be KEY=VALUE"),
    ],
)
def test_mistakes_are_told_before_the_first_trial(arguments, message, tmp_path):
    refused = call("chanprune.search", *TINY, *arguments, cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert message in refused.stderr and refused.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())
