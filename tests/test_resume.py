"""A run that is stopped goes on and ends bit for bit where an uninterrupted one ends."""

import json
import os
import shutil
import signal
import time

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from chanprune.pipeline.prepare import prepare
from chanprune.pipeline.run import run
from chanprune.pipeline.updates import Updates
from chanprune.processes.errors import Interrupted
from tests.commands import start
from tests.networks import but_slow
from tests.test_pipeline import changed, execute

PREACTIVATION = {"name": "preresnet29", "width": 0.125, "shortcut": "zero_pad"}
RUNS = {
    "slimming": {"method": {"name": "slimming"}},
    "adam": {"train": {"optimiser": "adam", "lr": 0.001}, "finetune": {"optimiser": "adam"}},
    "cucb": {
        "method": {"name": "cucb", "explore": 7},
        "prune": {"absorb": "none", "recalibrate": 64},
    },
    "cucb by the epoch": {
        "method": {"name": "cucb", "explore": 7, "every": 0, "exploration": None}
    },
    "random_every_step": {"method": {"name": "random_every_step", "every": 3}},
    "prioritized": {
        "method": {"name": "prioritized", "levels": [0.5, 1.0]},
        "prune": {"rule": "elementwise", "threshold": 0.5},
        "finetune": {"lr": 0.001},
    },
    "sandwich": {
        "method": {"name": "idp", "levels": [0.5, 1.0], "sandwich": True},
        "finetune": {"lr": 0.001},
    },
    "selectconv": {
        "model": PREACTIVATION,
        "method": {"name": "selectconv", "threshold": 0.3, "until": 1.0},
        "train": {"epochs": 3},
        "finetune": {"epochs": 0},
    },
    "selectconv, compression": {
        "model": PREACTIVATION,
        "method": {"name": "selectconv", "threshold": 0.3, "until": 1.0, "realloc": False},
        "train": {"epochs": 3},
    },
    "lgc": {
        "model": {"name": "condensenet50", "width": 0.25, "groups": 2, "condensation": 4},
        "method": {"name": "lgc"},
        "train": {"epochs": 3},
        "finetune": {"epochs": 0},
    },
    "passes": {
        "method": {"name": "slimming", "passes": 2},
        "prune": {"ratio": 0.2, "least_squares": 64},
    },
}
QUICK = ("slimming", "cucb")


def signal_after(patch, stop, number):
    """Send this process a signal after so many steps; return the list of steps."""
    steps, original = [], Updates.do

    def step_and_tell(updates, now, *batch, **options):
        done = original(updates, now, *batch, **options)
        steps.append(now)
        if len(steps) == stop:
            os.kill(os.getpid(), number)
        return done

    patch.setattr(Updates, "do", step_and_tell)
    return steps


def go_until_done(config, folder, monkeypatch, stops):
    """Run; send a real signal at each of the `stops` (number of steps since the last start)."""
    folder.mkdir(exist_ok=True)
    for number, stop in stops:
        with monkeypatch.context() as patch:
            steps = signal_after(patch, stop, number)
            with pytest.raises(Interrupted) as stopped:
                run(config, prepare(config), folder)
        assert stopped.value.exit_code == 128 + number
        assert len(steps) == stop, "the step is finished, and no other begun"
    return run(config, prepare(config), folder)


def lines(folder):
    """The metrics without what time makes different."""
    text = (folder / "metrics.jsonl").read_text()
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for line in text.splitlines()
    ]


def assert_same_end(folder, other, summary, expected):
    model, reference = (load_file(f / "model.safetensors") for f in (folder, other))
    assert model.keys() == reference.keys()
    for name, tensor in reference.items():
        assert torch.equal(model[name], tensor), name
    assert lines(folder) == lines(other)
    timeless = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in each["stages"]]
        for each in (summary, expected)
    ]
    assert timeless[0] == timeless[1]
    for stage, cost in expected["cost"].items():
        assert {**summary["cost"][stage], "seconds": 0} == {**cost, "seconds": 0}
    if (other / "plan.json").exists():
        assert (folder / "plan.json").read_text() == (other / "plan.json").read_text()


@pytest.mark.parametrize("name", but_slow(RUNS, *(set(RUNS) - {*QUICK})))
def test_a_run_that_signals_stop_anywhere_ends_where_it_would_have(name, tmp_path, monkeypatch):
    config = changed(**RUNS[name])
    expected = execute(config, tmp_path / "whole")
    stops = [(signal.SIGTERM, 13), (signal.SIGINT, 40), (signal.SIGTERM, 31)]
    summary = go_until_done(config, tmp_path / "parts", monkeypatch, stops)
    assert_same_end(tmp_path / "parts", tmp_path / "whole", summary, expected)


def test_saving_often_changes_nothing(tmp_path):
    stage = changed()["train"]
    often = changed(
        train={**stage, "save_every_minutes": 1e-9}, finetune={"save_every_minutes": 1e-9}
    )
    expected = execute(changed(), tmp_path / "seldom")
    summary = execute(often, tmp_path / "often")
    assert_same_end(tmp_path / "often", tmp_path / "seldom", summary, expected)


@pytest.mark.parametrize("damage", but_slow(["cut", "flipped", "empty", "gone"], "empty", "gone"))
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage, tmp_path, monkeypatch, capsys):
    config = changed(train={"epochs": 3})
    expected = execute(config, tmp_path / "whole")
    folder = tmp_path / "parts"
    folder.mkdir()
    with monkeypatch.context() as patch:
        signal_after(patch, 95, signal.SIGTERM)
        with pytest.raises(Interrupted):
            run(config, prepare(config), folder)
    newest = folder / "train/state.safetensors"
    content = newest.read_bytes()
    if damage == "cut":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        newest.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    elif damage == "empty":
        newest.write_bytes(b"")
    else:
        newest.unlink()
    capsys.readouterr()
    summary = run(config, prepare(config), folder)
    said = capsys.readouterr().out
    assert ("is damaged" in said) == (damage != "gone") and "goes on after 2 epochs" in said
    assert_same_end(folder, tmp_path / "whole", summary, expected)


OTHER_CHANNELS = {
    "more of them": ({"prune": {"ratio": 0.3}}, {"prune": {"ratio": 0.5}}),
    "as many": (
        {"method": {"name": "random", "shares": {}}, "seed": 1},
        {"method": {"name": "random", "shares": {}}},
    ),
}


@pytest.mark.parametrize("name", OTHER_CHANNELS)
def test_a_checkpoint_of_other_channels_is_of_no_use(name, tmp_path, capsys):
    """It can be there where an earlier stage was trained again, on a GPU to other bits."""
    other, own = (changed(**sections, dataset={"share": 0.1}) for sections in OTHER_CHANNELS[name])
    execute(other, tmp_path / "other")
    expected = execute(own, tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    shutil.copytree(tmp_path / "other/finetune", tmp_path / "parts/finetune")
    summary = execute(own, tmp_path / "parts")
    assert "is of a network with other channels; the stage begins anew" in capsys.readouterr().out
    assert_same_end(tmp_path / "parts", tmp_path / "whole", summary, expected)


LEFT = {
    "zeros": lambda text: text + bytes(40),
    "half a line": lambda text: text + text[: len(text) // 3],
    "not UTF-8": lambda text: b"\xff\xfe" + text,
    "not JSON": lambda text: text.replace(b'"epoch"', b'"epo"ch', 1),
    "other JSON": lambda text: b"[]\n3\n" + text,
    "lines twice": lambda text: text + text,
    "nothing": lambda text: b"",
}


@pytest.mark.parametrize("left", but_slow(LEFT, *(set(LEFT) - {"zeros", "not UTF-8"})))
def test_whatever_metrics_hold_a_run_goes_on_and_they_end_in_order(left, tmp_path, monkeypatch):
    """A stage's checkpoint knows its metrics, also where the newest is damaged."""
    config = changed(dataset={"share": 0.1}, train={"epochs": 4}, finetune={"epochs": 2})
    expected = execute(config, tmp_path / "whole")
    folder = tmp_path / "parts"
    folder.mkdir()
    with monkeypatch.context() as patch:
        signal_after(patch, 18, signal.SIGTERM)  # in the first epoch of fine-tuning
        with pytest.raises(Interrupted):
            run(config, prepare(config), folder)
    metrics = folder / "metrics.jsonl"
    metrics.write_bytes(LEFT[left](metrics.read_bytes()))
    for name in ("train", "finetune"):
        newest = folder / name / "state.safetensors"
        newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    summary = run(config, prepare(config), folder)
    assert_same_end(folder, tmp_path / "whole", summary, expected)


TINY = ["model=vgg11", "model.width=0.0625", "dataset.image_size=16", "train.epochs=8"]
TINY += ["finetune.epochs=1", "train.batch_size=32", "run.dir=out"]


def command(*arguments, cwd):
    return start("chanprune.train", *TINY, *arguments, cwd=cwd)


def wait_for(path, text, seconds=120):
    until = time.monotonic() + seconds
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < until, f"{path} never held {text}"
        time.sleep(0.05)


@pytest.mark.slow
def test_the_command_line_stops_and_goes_on(tmp_path):
    """SIGKILL, then SIGTERM, then to the end; and a second process is refused meanwhile."""
    metrics = tmp_path / "out/metrics.jsonl"
    killed = command(cwd=tmp_path)
    wait_for(metrics, '"epoch": 1,')
    killed.send_signal(signal.SIGSTOP)
    refused = command(cwd=tmp_path)
    _, message = refused.communicate(timeout=120)
    assert refused.returncode == 2
    assert f"is being written by process {killed.pid}" in message and message.count("\n") == 1
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    stopped = command(cwd=tmp_path)
    wait_for(metrics, '"epoch": 3,')
    stopped.send_signal(signal.SIGTERM)
    _, message = stopped.communicate(timeout=60)
    assert stopped.returncode == 143 and "the same command goes on" in message
    done = command(cwd=tmp_path)
    output, _ = done.communicate(timeout=200)
    assert done.returncode == 0 and "goes on where it was saved" in output
    stages = [(x["stage"], x["epoch"]) for x in map(json.loads, metrics.read_text().splitlines())]
    assert stages == [*(("train", epoch) for epoch in range(1, 9)), ("finetune", 1)]
    again = command(cwd=tmp_path)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0 and "finished" in output


@pytest.mark.slow
def test_a_lock_that_nobody_holds_does_no_harm(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    with FileLock(folder / ".lock"):
        (folder / ".owner").write_text("process 1 on elsewhere")
        refused = command(cwd=tmp_path)
        _, message = refused.communicate(timeout=60)
        assert refused.returncode == 2
    assert "is being written by process 1 on elsewhere" in message
    taken = command("train.epochs=1", cwd=tmp_path)
    _, message = taken.communicate(timeout=120)
    assert taken.returncode == 0, message
