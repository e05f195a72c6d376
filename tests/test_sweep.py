"""Sweeps as a user types them: every job checked first, all done, told in one table."""

import csv
import json
import signal

import pytest
import yaml

from tests.commands import TINY, call_afresh, start, train

RATIOS = "prune.ratio=0.3,0.97,0.5"  # of the second one, the floors leave too few to drop


def rows(folder, table="outputs/sweeps/*/table.csv"):
    (table,) = folder.glob(table)
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_job_that_fails_stops_no_other_and_what_is_done_stays_done(tmp_path):
    swept = train("-m", *TINY, RATIOS, cwd=tmp_path)
    assert swept.returncode == 3, swept.stderr
    assert swept.stderr.count("\n") == 1 and "1 of 3 jobs failed" in swept.stderr
    found = rows(tmp_path)
    assert [row["outcome"] for row in found] == ["done", "failed", "done"]
    assert [row["prune.ratio"] for row in found] == ["0.3", "0.97", "0.5"]
    assert "the floors leave only" in found[1]["reason"] and found[1]["reason"] in swept.stdout
    assert swept.stdout.count("has trained the same; its result is taken") == 1
    summary = json.loads((tmp_path / found[2]["run"] / "summary.json").read_text())
    last = [stage for stage in summary["stages"] if stage["fidelity"] == 1][-1]
    assert found[2]["val acc %"] == f"{100 * last['val_accuracy']:.2f}"
    assert found[2]["test acc %"] == f"{100 * summary['accuracy']:.2f}"
    assert list(found[2]).index("val acc %") < list(found[2]).index("test acc %")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("outputs/digits/*/*.json")}
    again = train("-m", *TINY, RATIOS, cwd=tmp_path)
    assert again.returncode == 3 and rows(tmp_path) == found
    assert again.stdout.count("holds this run, finished") == 2
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train.lr=0.1,-1",), "job 1 of the sweep: train.lr=-1"),
        (("method=slimming,slimmin",), "method=slimmin: no such choice"),
        (("seed=0,1", "run.dir=x"), "jobs 0 and 1 of the sweep both write to x"),
        (("seed=0,1", "hydra/launcher=nowhere"), "Could not find 'hydra/launcher/nowhere'"),
        (("resume=nowhere,elsewhere",), "job 0 of the sweep: resume=nowhere: no run is there"),
    ],
)
def test_a_mistake_in_any_job_is_told_before_the_first_begins(arguments, message, tmp_path):
    refused = train("-m", *TINY, *arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert message in refused.stderr and refused.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_experiments_of_a_users_own_are_swept_and_checked(tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    for name, lines in {"a": "train: {lr: 0.01}", "b": "train: {lr: 0.02}", "c": "odd: 1"}.items():
        text = f"# @package _global_\n{lines}\n"
        (tmp_path / f"mine/experiment/{name}.yaml").write_text(text)
    own = ("-m", *TINY, "method=none", "--config-dir", "mine")
    refused = train(*own, "experiment=a,c", cwd=tmp_path)
    assert refused.returncode == 2 and "job 1 of the sweep: odd: unknown key" in refused.stderr
    assert not (tmp_path / "outputs").exists()
    swept = train(*own, "experiment=a,b", "hydra.sweep.dir=a + b (new)", cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    found = rows(tmp_path, "a + b (new)/table.csv")
    assert [row["experiment"] for row in found] == ["a", "b"]
    rates = {
        yaml.safe_load((tmp_path / row["run"] / "config.yaml").read_text())["config"]["train"]["lr"]
        for row in found
    }
    assert rates == {0.01, 0.02}


@pytest.mark.slow
def test_a_signal_stops_the_sweep_and_it_goes_on(tmp_path):
    arguments = ("-m", *TINY, "train.epochs=6", "prune.ratio=0.3,0.5")
    swept = start("chanprune.train", *arguments, cwd=tmp_path)
    said = []
    for line in swept.stdout:
        said.append(line)
        if line.startswith("  train 2/6"):
            break
    swept.send_signal(signal.SIGTERM)
    output, error = swept.communicate(timeout=60)
    assert swept.returncode == 143 and error.count("\n") == 1, error
    assert "job 1" not in output
    again = train(*arguments, cwd=tmp_path)
    assert again.returncode == 0 and "goes on where it was saved" in again.stdout
    assert [row["outcome"] for row in rows(tmp_path)] == ["done", "done"]


@pytest.mark.slow
def test_two_processes_do_no_stage_twice(tmp_path):
    launched = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    arguments = ("chanprune.train", "-m", *TINY, "prune.ratio=0.3,0.5", *launched)
    swept = call_afresh(*arguments, cwd=tmp_path)  # in a fork, joblib's processes end after minutes
    assert swept.returncode == 0, swept.stderr
    assert swept.stdout.count("has trained the same; its result is taken") == 1
    assert [row["outcome"] for row in rows(tmp_path)] == ["done", "done"]


@pytest.mark.slow
def test_resume_takes_the_recorded_configuration(tmp_path):
    assert train(*TINY, "run.dir=first", cwd=tmp_path).returncode == 0
    for name in ("manifest.json", "summary.json", "finetune/state.safetensors"):
        (tmp_path / "first" / name).unlink()
    changed = train("resume=first", "prune.ratio=0.1", cwd=tmp_path)
    assert changed.returncode == 2 and "leave out" in changed.stderr
    resumed = train("resume=first", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "goes on where it was saved" in resumed.stdout
    assert (tmp_path / "first/summary.json").exists()
    nothing = train("resume=nowhere", cwd=tmp_path)
    assert nothing.returncode == 2
    assert "resume=nowhere: no run is there" in nothing.stderr
