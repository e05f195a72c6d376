"""A run that is killed at any file operation goes on with the same command, to the same bits.

A kill leaves on the disk what was there when the operation was to begin, or a file that was opened
and not yet written. So one run that copies its folder at every operation shows what each kill
leaves, and a command that goes on from each of these copies shows all that can follow. Copies that
are alike are tried once. That a copy is what a kill leaves is shown by real kills.
"""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.commands import call, train
from tests.faults import Fault, fingerprint
from tests.networks import but_slow

SHORT = ["dataset.image_size=16", "dataset.share=0.05", "train.epochs=2", "finetune.epochs=1"]
SHORT += ["train.batch_size=32", "device=cpu", "cache.dir=cache"]
VGG = ["model=vgg11", "model.width=0.0625"]
PREACTIVATION = ["model=preresnet29", "model.width=0.125", "model.shortcut=zero_pad"]
METHODS = {
    "slimming": VGG,
    "slimming in passes": [*VGG, "method.passes=2", "prune.ratio=0.2"],
    "prioritized": [*VGG, "method=prioritized", "method.levels=[0.5,1.0]", "prune.threshold=0.5"],
    "idp": [*VGG, "method=idp", "method.levels=[0.5,1.0]"],
    "cucb": [*VGG, "method=cucb", "method.explore=1"],
    "final_random": [*VGG, "method=final_random", "method.explore=1"],
    "random_every_step": [*VGG, "method=random_every_step"],
    "fixed_random": [*VGG, "method=fixed_random"],
    "selectconv": [*PREACTIVATION, "method=selectconv", "method.threshold=0.3", "method.until=1.0"],
    "lgc": ["model=condensenet50", "model.width=0.25", "model.groups=2", "method=lgc"],
    "l1norm": [*VGG, "method=l1norm"],
    "random": [*VGG, "method=random"],
    "none": [*VGG, "method=none"],
}
TIMES = re.compile(r'"(seconds|train_seconds)": [\d.e-]+')
LEFTOVERS = re.compile(r"\.owner|\.tmp.*|\..*\.part")


def timeless(path):
    """The content of a file without what time makes different."""
    if path.name == "table.md":
        rows = [line for line in path.read_text().splitlines() if line.startswith("|")]
        return [row.split("|")[:-2] for row in rows]
    if path.name == "table.csv":
        rows = csv.DictReader(path.read_text().splitlines())
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    if path.suffix in {".json", ".jsonl"}:
        return TIMES.sub("", path.read_text())
    return path.read_bytes()


def assert_same_run(folder, expected):
    """Compare two runs, file by file, to the bit."""
    names = [sorted(p.name for p in run.iterdir() if p.is_file()) for run in (folder, expected)]
    assert names[0] == names[1], folder
    for name in names[0]:
        if name not in {".lock", "manifest.json", "config.yaml"}:  # digests and commits of the rest
            assert timeless(folder / name) == timeless(expected / name), folder / name
    assert not [path for path in folder.rglob("*") if LEFTOVERS.fullmatch(path.name)]


def runs_in(folder):
    return [path.parent.relative_to(folder) for path in sorted(folder.rglob("manifest.json"))]


def assert_same_runs(folder, expected):
    assert runs_in(folder) == runs_in(expected) != [], folder
    for run in runs_in(expected):
        assert_same_run(folder / run, expected / run)


def kill_everywhere(
    arguments, folder, places=slice(None), prepare=lambda folder: None, compare=assert_same_runs
):
    """Go on with a command from what a kill at each of its file operations leaves.

    Args:
        arguments: What follows `python -m`; "out" and "cache" are below its folder.
        folder: An empty one.
        places: Which of the distinct states are tried.
        prepare: Puts into a folder what the command finds there.
        compare: Compares the folder where a command went on with that of one that nobody killed.

    Returns:
        The number of operations, and that of the distinct states that were tried.
    """
    whole, states = folder / "whole", folder / "states"
    whole.mkdir()
    prepare(whole)
    done = call(*arguments, cwd=whole, fault=Fault(whole, states, "copy"))
    assert done.returncode == 0, done.stderr
    number = len(json.loads((states / "operations.json").read_text()))
    distinct: dict[str, Path] = {}
    for state in sorted(states.glob("*-*")):
        distinct.setdefault(fingerprint(state), state)
    tried = list(distinct.values())[places]
    for state in tried:
        again = call(*arguments, cwd=state)
        assert again.returncode == 0, f"{state.name}: {again.stderr}"
        compare(state, whole)
        shutil.rmtree(state)
    return number, len(tried)


def names_in(folder):
    """What a folder holds, but for TensorBoard's files, whose names hold the time."""
    files = (path for path in folder.rglob("*") if "tfevents" not in path.name)
    return {path.relative_to(folder).as_posix() for path in files}


def of_run(name):
    return ["chanprune.train", *METHODS[name], *SHORT, "run.dir=out"]


def test_a_kill_at_some_file_operations_costs_nothing(tmp_path):
    """Real kills, all over the run; a copy at the same place is the same.

    Whether an epoch is saved that is not the last depends on the time; so there is one.
    """
    arguments, whole = [*of_run("slimming"), "train.epochs=1"], tmp_path / "whole"
    whole.mkdir()
    states = tmp_path / "states"
    assert call(*arguments, cwd=whole, fault=Fault(whole, states, "copy")).returncode == 0
    number = len(json.loads((states / "operations.json").read_text()))
    for position in range(3, number, number // 4):
        folder = tmp_path / f"{position}"
        folder.mkdir()
        killed = call(*arguments, cwd=folder, fault=Fault(folder, tmp_path, "kill", position))
        assert killed.returncode == -9
        assert names_in(folder) == names_in(states / f"{position:04}-kill")
        assert call(*arguments, cwd=folder).returncode == 0
        assert_same_runs(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_kill_at_any_file_operation_costs_nothing(name, tmp_path):
    """Every eighth state of one method; of each other every 48th, and of the next one the next."""
    places = slice(list(METHODS).index(name), None, 8 if name == "slimming" else 48)
    number, _ = kill_everywhere(of_run(name), tmp_path, places)
    assert number > 50


def old_run(folder):
    """Put a finished run with another seed there."""
    assert train(*METHODS["slimming"], *SHORT, "run.dir=out", "seed=1", cwd=folder).returncode == 0


def unfinished_run(folder):
    """Put a run there that was killed in the middle of its training."""
    watched = Fault(folder, folder.with_name(f"{folder.name}-unfinished"), "kill", 70)
    assert call(*of_run("slimming"), cwd=folder, fault=watched).returncode == -9


def run_to_control(folder):
    """Put a run there whose compact network a control trains."""
    assert train(*METHODS["slimming"], *SHORT, "run.dir=out", cwd=folder).returncode == 0


COMMANDS = {
    "overwrite": ([*of_run("slimming"), "run.overwrite=true"], old_run),
    "resume": (["chanprune.train", "resume=out", "cache.dir=cache"], unfinished_run),
    "control": (
        ["chanprune.train", "control=scratch_e", "control_of=out", "cache.dir=cache"],
        run_to_control,
    ),
    "prune": (
        ["chanprune.prune", *VGG, "dataset=digits", *SHORT, "train.epochs=0", "run.dir=out"],
        lambda folder: None,
    ),
    "sweep": (
        ["chanprune.train", "-m", *METHODS["slimming"], *SHORT, "prune.ratio=0.3,0.5"],
        lambda folder: None,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_of_any_command_costs_nothing(name, tmp_path):
    arguments, prepare = COMMANDS[name]
    kill_everywhere(arguments, tmp_path, slice(0, None, 16), prepare)


def assert_all_trials_done(folder, whole):
    """Both trials are there."""
    with (folder / "search/trials.csv").open(encoding="utf-8") as file:
        states = [row["state"] for row in csv.DictReader(file)]
    assert states.count("complete") == 2, folder


@pytest.mark.slow
def test_a_kill_of_a_search_costs_nothing(tmp_path):
    varies = ["--dir", "search", "--trials", "2", "prune.ratio=0.3,0.5"]
    arguments = ["chanprune.search", *varies, *METHODS["slimming"], *SHORT]
    kill_everywhere(arguments, tmp_path, slice(0, None, 32), compare=assert_all_trials_done)


def fill_the_disk(arguments, folder, positions):
    """Run a command that finds the disk full from some operation on, and again when there is room.

    Args:
        arguments: What follows `python -m`.
        folder: An empty one.
        positions: Takes the number of operations; returns those to try.

    Returns:
        The number of positions that were tried, and how many of them ended the command.
    """
    whole = folder / "whole"
    whole.mkdir()
    assert call(*arguments, cwd=whole, fault=Fault(whole, folder / "seen")).returncode == 0
    tried = positions(len(json.loads((folder / "seen/operations.json").read_text())))
    ended = 0
    for position in tried:
        cwd = folder / f"{position}"
        cwd.mkdir()
        full = call(*arguments, cwd=cwd, fault=Fault(cwd, folder / "seen", "full", position))
        if full.returncode:
            ended += 1
            assert full.returncode in {2, 3}, full.stderr
            assert full.stderr.count("\n") == 1 and "No space left" in full.stderr, full.stderr
        again = call(*arguments, cwd=cwd)
        assert again.returncode == 0, f"{position}: {again.stderr}"
        assert_same_runs(cwd, whole)
        shutil.rmtree(cwd)
    return len(tried), ended


@pytest.mark.parametrize("name", but_slow(METHODS, *(set(METHODS) - {"slimming"})))
def test_a_full_disk_costs_nothing(name, tmp_path):
    first = 3 + list(METHODS).index(name)
    tried, ended = fill_the_disk(of_run(name), tmp_path, lambda number: range(first, number, 45))
    assert ended >= tried - 1
