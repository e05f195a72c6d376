"""Directories of runs that nobody should trust: every command ends well, or in one line."""

import contextlib
import io
import os
import random
import re
import shutil
import time
from pathlib import Path

import pytest
import yaml

from chanprune.config import cli
from chanprune.config.control import CONTROLS, control
from chanprune.evaluate import evaluate
from chanprune.processes.errors import RunError, UserError
from chanprune.report import report
from chanprune.show.report_runs import gather, group
from chanprune.train import train
from tests.commands import in_child
from tests.commands import train as start_train
from tests.mutations import mutate_bytes, mutate_json, mutate_tensors, mutated_values
from tests.networks import but_slow
from tests.test_hostile_models import MOST_MEMORY, MOST_SECONDS, peak
from tests.test_kills import METHODS, SHORT

ARGUMENTS = [*METHODS["slimming"], *SHORT, "cache.enabled=false"]


def mutate_yaml(path, chance):
    """Change a YAML file's values, seldom its bytes."""
    if chance.random() < 0.2:
        return mutate_bytes(path, chance)
    values = mutated_values(yaml.safe_load(path.read_text()), chance)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return None


def remove(path, chance):
    path.unlink()


def make_odd(path, chance):
    """Put something there that is no file."""
    path.unlink()
    make = [os.mkfifo, os.mkdir, lambda place: place.symlink_to("/dev/zero")]
    chance.choice(make)(path)


KINDS = {
    "config.yaml": mutate_yaml,
    "manifest.json": mutate_json,
    "model.json": mutate_json,
    "model.safetensors": mutate_tensors,
    "plan.json": mutate_json,
    "summary.json": mutate_json,
}
OTHERS = ["metrics.jsonl", "table.md", "table.csv", "train/state.safetensors", "scales.png"]
OTHERS += ["finetune/state.safetensors", "train/previous.safetensors"]


def damage(folder, chance):
    """Change one to three files of a run; of half of the runs also take the manifest away."""
    for name in chance.sample([*KINDS, *OTHERS], chance.choice([1, 1, 2, 3])):
        how = chance.choice([KINDS.get(name, mutate_bytes)] * 5 + [remove, make_odd])
        how(folder / name, chance)
    if chance.random() < 0.5 and (folder / "manifest.json").is_file():
        (folder / "manifest.json").unlink()


def goes_well(function, *arguments):
    """Call a function; tell whether it ended without one line that says what is wrong."""
    began = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            function(*arguments)
    except (UserError, RunError) as error:
        assert str(error) and "allocate" not in str(error)
        return False
    finally:
        assert time.perf_counter() - began < MOST_SECONDS
    return True


def try_all(source, scratch, number):
    """Try every command on so many damaged runs; return how often each one went well."""
    scratch.mkdir()
    os.chdir(scratch)
    done = {"evaluate": 0, "control": 0, "train": 0, "reported": 0}
    names = sorted(CONTROLS)
    before = peak()
    asked = cli.composed("evaluate", ["run=run", "device=cpu"])
    again = cli.composed("config", cli.checked(ARGUMENTS, sweeps=False))
    for seed in range(number):
        folder = shutil.copytree(source, scratch / f"{seed}")
        damage(folder, random.Random(seed))
        done["evaluate"] += goes_well(evaluate, {**asked, "run": f"{seed}"})
        done["control"] += goes_well(control, names[seed % len(names)], Path(f"{seed}"))
    found, notes = gather([scratch])
    done["reported"] = len(found)
    rows, doubles = group(found)
    for form in ("table", "html"):
        report(rows, [*notes, *doubles], form)
    for seed in range(number):
        here = {**again, "run": {"dir": f"{seed}", "overwrite": False}}
        done["train"] += goes_well(train, here)
        shutil.rmtree(scratch / f"{seed}")
    assert peak() - before < MOST_MEMORY
    return done


@pytest.mark.parametrize("number", but_slow([6, 100], 100))
def test_commands_on_damaged_runs_end_well_or_in_one_line(number, tmp_path):
    """Most runs are mended by the command that made them."""
    begun = start_train(*ARGUMENTS, "run.dir=out", cwd=tmp_path)
    assert begun.returncode == 0, begun.stderr
    done = in_child(try_all, tmp_path / "out", tmp_path / "scratch", number)
    assert all(0 < well <= number for well in done.values()), done
    assert done["train"] > number / 2 and done["reported"] > number / 4, done
    assert not re.search("Traceback", begun.stdout)
