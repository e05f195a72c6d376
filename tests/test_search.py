"""A search by Optuna: trials are runs, the hopeless end early, and nothing is done twice."""

import csv
import itertools
import json
import multiprocessing
import os
import signal

import pytest

from chanprune import search
from tests.commands import TINY, call, start

SPACE = ("method.sparsity_weight=1e-3,1e-2", "prune.ratio=interval(0.3,0.6)")


def rows(folder):
    with (folder / "found/trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


pytest.importorskip("optuna")  # once, before processes are forked


def search_by_formula(folder, dies_in):
    """Search with a formula in place of training; die in the trial of this number."""
    calls = itertools.count(1)

    def formula(composed, watch=None):
        if next(calls) == dies_in:
            os.kill(os.getpid(), signal.SIGKILL)
        ratio = composed["prune"]["ratio"]
        row = {"test_accuracy": 1 - ratio, "macs": int(1e6 * (1 - ratio)), "fidelity": 1.0}
        stages = [{**row, "val_accuracy": 0.0}, {**row, "val_accuracy": 1 - abs(ratio - 0.7)}]
        folder.mkdir(exist_ok=True)
        summary = {"accuracy": 1 - ratio, "params": 1, "macs": 1, "cost": {}, "stages": stages}
        (folder / "summary.json").write_text(json.dumps(summary))
        return {"run": str(folder)}

    search.train = formula
    search.search(["method=l1norm", "prune.ratio=interval(0.3,0.9)"], 12, folder / "found")


def searched(folder, deaths=()):
    for dies_in in (*deaths, None):
        child = multiprocessing.get_context("fork").Process(
            target=search_by_formula, args=(folder, dies_in)
        )
        child.start()
        child.join()
        assert child.exitcode == (-signal.SIGKILL if dies_in else 0)
    return [row for row in rows(folder) if row["state"] == "complete"]


@pytest.mark.slow
def test_a_search_that_is_stopped_again_and_again_tries_what_one_that_is_not_tries(tmp_path):
    whole = searched(tmp_path / "whole")
    stopped = searched(tmp_path / "stopped", (3, 1, 4))
    ratios = [row["prune.ratio"] for row in whole]
    assert ratios == [row["prune.ratio"] for row in stopped]
    assert len(set(ratios)) == len(ratios) == 12


def test_the_best_are_those_that_no_other_beats_on_validation_images(tmp_path):
    """Where the test images say otherwise: there, fewer channels are always worse."""
    found = searched(tmp_path / "run")
    table = (tmp_path / "run/found/table.md").read_text()
    shown = {line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")}
    for row in found:
        ratio, accuracy = float(row["prune.ratio"]), float(row["val_accuracy"])
        assert accuracy == pytest.approx(1 - abs(ratio - 0.7))
        assert float(row["test_accuracy"]) == pytest.approx(1 - ratio)
        is_beaten = any(
            float(other["val_accuracy"]) >= accuracy
            and float(other["prune.ratio"]) > ratio
            and float(other["macs"]) < float(row["macs"])
            for other in found
        )
        assert is_beaten == (row["trial"] not in shown)
    assert 1 < len(shown - {"trial", ":---", "---", ""}) < len(found)


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
