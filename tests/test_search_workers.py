"""One search by several processes: nothing is lost, nothing is done twice."""

import csv
import json
import multiprocessing
import os
import signal
import time

import pytest

from chanprune import search
from chanprune.searching.storage import JOURNAL, mend
from chanprune.searching.workplace import Workplace
from tests.commands import TINY, call, call_afresh, start
from tests.networks import but_slow

pytest.importorskip("optuna")  # once, before processes are forked
_fork = multiprocessing.get_context("fork")
SPACE = ("method=l1norm", "prune.ratio=interval(0.3,0.9)")


def rows(folder):
    with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def work(folder, space, trials, dies_in, storage):
    """Search with a formula in place of training; each call leaves a line and takes its time.

    Args:
        folder: Where all is written.
        space: What varies.
        trials: Of all processes.
        dies_in: The number of the own trial in which the process dies, as the last of all.
        storage: The address of a database, if any.
    """
    calls = 0

    def formula(composed, watch=None):
        nonlocal calls
        calls += 1
        ratio, run = composed["prune"]["ratio"], folder / "runs" / f"{composed['prune']['ratio']}"
        run.mkdir(parents=True, exist_ok=True)
        if calls == dies_in:
            (folder / "dying").touch()
            while len((folder / "log").read_text().splitlines()) < trials - 1:
                time.sleep(0.05)  # until all others wait for this one
            os.kill(os.getpid(), signal.SIGKILL)
        while calls == 2 and (folder / "doomed").exists() and not (folder / "dying").exists():
            time.sleep(0.01)  # else slow starters find nothing left to die in
        if not (run / "summary.json").exists():
            with (folder / "log").open("a", encoding="utf-8") as log:
                log.write(f"{os.getpid()} {ratio}\n")
            time.sleep(0.03)
            row = {"test_accuracy": 1 - ratio, "macs": int(1e6 * (1 - ratio)), "fidelity": 1.0}
            stages = [{**row, "val_accuracy": 0.0}, {**row, "val_accuracy": 1 - abs(ratio - 0.7)}]
            summary = {"accuracy": 1 - ratio, "params": 1, "macs": 1, "cost": {}, "stages": stages}
            (run / "summary.json").write_text(json.dumps(summary))
        return {"run": str(run)}

    search.train = formula
    search.search(space, trials, folder / "found", storage=storage)


def worked(folder, deaths, space=SPACE, trials=10, storage=None):
    """Let processes search, of which some die in their trial of a number; return what they did."""
    folder.mkdir()
    if any(deaths):
        (folder / "doomed").touch()
    processes = [
        _fork.Process(target=work, args=(folder, space, trials, dies_in, storage))
        for dies_in in deaths
    ]
    for process in processes:
        process.start()
    for process, dies_in in zip(processes, deaths, strict=True):
        process.join()
        assert process.exitcode == (-signal.SIGKILL if dies_in else 0)
    return [line.split() for line in (folder / "log").read_text().splitlines()]


@pytest.mark.parametrize("kept", but_slow(["journal", "database"], "database"))
def test_so_many_trials_are_done_as_were_asked_for_whoever_dies(kept, tmp_path):
    database = None if kept == "journal" else f"sqlite:///{tmp_path / 'own.db'}"
    done = worked(tmp_path / "x", (None, 2, None), storage=database)
    assert len(done) == len({ratio for _, ratio in done}) == 10
    assert len({process for process, _ in done}) == 3
    found = rows(tmp_path / "x/found")
    assert [row["state"] for row in found].count("complete") == 10
    left = [row for row in found if row["state"] == "fail"]
    again = [row for row in found if left and row["prune.ratio"] == left[0]["prune.ratio"]]
    assert len(left) == 1 and [row["state"] for row in again] == ["fail", "complete"]


def test_a_run_that_two_trials_are_is_done_once(tmp_path):
    space = ("method=l1norm", "prune.ratio=0.3,0.6")
    done = worked(tmp_path / "x", (None, None), space, trials=5)
    assert sorted(ratio for _, ratio in done) == ["0.3", "0.6"]
    assert [row["state"] for row in rows(tmp_path / "x/found")] == ["complete"] * 5


def test_more_trials_can_be_asked_for_and_other_ones_not(tmp_path):
    worked(tmp_path / "x", (None,), trials=3)
    work(tmp_path / "x", SPACE, 5, None, None)
    assert len(rows(tmp_path / "x/found")) == 5
    for space, storage, message in (
        (("method=l1norm", "prune.ratio=interval(0.3,0.8)"), None, "holds a search for something"),
        (SPACE, f"sqlite:///{tmp_path / 'own.db'}", "is kept there; give no --storage"),
    ):
        with pytest.raises(search.UserError, match=message):
            work(tmp_path / "x", space, 5, None, storage)
    assert len(rows(tmp_path / "x/found")) == 5


def test_a_database_belongs_to_one_folder(tmp_path):
    database = f"sqlite:///{tmp_path / 'own.db'}"
    Workplace(tmp_path / "a", database, "asked")
    Workplace(tmp_path / "a", database, "asked")
    with pytest.raises(search.UserError, match="from another folder"):
        Workplace(tmp_path / "b", database, "asked")
    with pytest.raises(search.UserError, match=r"is kept in a database; give --storage"):
        Workplace(tmp_path / "a", None, "asked")


def test_a_database_that_fails_ends_the_search_with_one_line(tmp_path):
    workplace = Workplace(tmp_path / "a", f"sqlite:///{tmp_path / 'own.db'}", "asked")
    (tmp_path / "own.db").write_bytes(b"no database" * 1000)
    with pytest.raises(search.RunError, match="--storage failed, the same command goes on"):
        workplace.claim(3, lambda trial: [])


def test_a_line_that_a_kill_tore_does_no_harm(tmp_path):
    worked(tmp_path / "x", (None,), trials=3)
    journal = tmp_path / "x/found" / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:20])
    work(tmp_path / "x", SPACE, 5, None, None)
    assert journal.read_bytes().startswith(whole)
    assert [row["state"] for row in rows(tmp_path / "x/found")] == ["complete"] * 5
    journal.write_bytes(b"torn")
    mend(journal)
    assert journal.read_bytes() == b""


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_its_trial_to_another(tmp_path):
    options = ("train.epochs=4", "method.sparsity_weight=1e-3,1e-2,1e-4", "prune.ratio=0.3,0.6")
    command = ("chanprune.search", "--trials", "4", "--dir", "found", *TINY, *options)
    killed = start(*command, cwd=tmp_path)
    for line in killed.stdout:
        if line.startswith("  train 1/4"):
            break
    other = start(*command, cwd=tmp_path)
    for line in other.stdout:
        if line.startswith("trial "):
            break
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    output, error = other.communicate(timeout=120)
    assert other.returncode == 0, error
    assert output.count("goes on where it was saved") == 1
    found = rows(tmp_path / "found")
    assert [row["state"] for row in found].count("complete") == 4
    (left,) = [row for row in found if row["state"] != "complete"]
    lines = (tmp_path / left["run"] / "metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(line)["epoch"] for line in lines if '"train"' in line]
    assert left["state"] == "fail" and epochs == sorted(set(epochs))
    again = call(*command, cwd=tmp_path)
    assert again.returncode == 0 and "\ntrial" not in again.stdout


@pytest.mark.slow
def test_launchers_of_sweeps_start_workers(tmp_path):
    launched = ("--workers", "2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    command = ("chanprune.search", "--trials", "4", "--dir", "found", *TINY, "dataset.share=0.3")
    space = ("method.sparsity_weight=1e-3,1e-2,1e-4", "prune.ratio=interval(0.3,0.6)")
    done = call_afresh(*command, *space, *launched, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "found")
    assert [row["state"] for row in found] == ["complete"] * 4
    assert done.stdout.count("beaten by no other") == 1
    assert len({row["worker"] for row in found}) == 2


@pytest.mark.slow
def test_latency_may_be_the_cost(tmp_path):
    options = (*TINY, "dataset.share=0.3", "prune.target_latency_ms=1000,2000")
    command = ("chanprune.search", "--cost", "latency", "--trials", "2", "--dir", "found", *options)
    done = call(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "found")
    assert [row["state"] for row in found] == ["complete"] * 2
    for row in found:
        low, share, high = (float(row[f"latency{key}"]) for key in ("_low", "", "_high"))
        assert 0 < low <= share <= high and row["processor"] and int(row["macs"]) > 0
    table = (tmp_path / "found/table.md").read_text()
    assert "latency % of whole" in table and "accuracy and latency" in table
    again = call(*command, cwd=tmp_path)
    assert again.returncode == 0 and (tmp_path / "found/table.md").read_text() == table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cost=latency", "model.width=0.1,0.2"), "--cost=latency: model must be the same in"),
        (("--cost=latency", "prune.latency.batch=1,2"), "prune.latency must be the same in all"),
        (("prune.ratio=0.1,0.2", "hydra/launcher=joblib"), "--workers=1: must be at least 2"),
        (("prune.ratio=0.1,0.2", "--workers=2"), "--workers=2: what starts them? Give hydra/"),
        (("prune.ratio=0.1,0.2", "--workers=0"), "--workers=0: must be at least 1"),
        (
            ("prune.ratio=0.1,0.2", "--workers=2", "hydra/launcher=nowhere"),
            "Could not find 'hydra/launcher/nowhere'",
        ),
        (("prune.ratio=0.1,0.2", "--storage=odd"), "--storage=odd:... cannot be used: Could not"),
    ],
)
def test_mistakes_get_one_line(arguments, message, tmp_path):
    refused = call("chanprune.search", *TINY, *arguments, "--dir=found", cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert message in refused.stderr and refused.stderr.count("\n") == 1
