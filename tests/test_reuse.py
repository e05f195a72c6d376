"""A train stage that was taken from another run is what training would have given."""

import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch
import torchvision

from chanprune.pipeline.checkpoint import read
from chanprune.pipeline.loop import _Training
from chanprune.pipeline.prepare import prepare
from chanprune.pipeline.reuse import training_depends_on
from chanprune.pipeline.run import run
from tests.commands import call
from tests.networks import but_slow
from tests.test_data import make_archive
from tests.test_pipeline import changed, execute
from tests.test_resume import RUNS, assert_same_end, command, lines, wait_for

OTHERWISE = {"finetune": {"lr": 0.02}, "prune": {"ratio": 0.3, "threshold": 0.7}}
LEVELS = {"method": {"levels": [0.25, 1.0], "level_statistics": 64}, "prune": {"order": True}}
ROOMY = {"image_size": 32, "val_share": 0.2}
TAKEN = ("slimming", "adam", "prioritized", "sandwich", "passes")


def execute_with(cache, config, folder):
    folder.mkdir(exist_ok=True)
    return run(config, prepare(config), folder, cache)


def stages_trained(monkeypatch):
    """Return a list that grows with the name of the stage at every epoch."""
    names, original = [], _Training.epoch

    def epoch(training, *batches):
        names.append(training.stage.name)
        original(training, *batches)

    monkeypatch.setattr(_Training, "epoch", epoch)
    return names


def merged(*changes):
    config = changed()
    for change in changes:
        for key, values in change.items():
            config[key] = {**config[key], **values}
    return config


@pytest.mark.parametrize("name", but_slow(TAKEN, "adam", "sandwich", "passes"))
def test_a_stage_that_is_taken_ends_where_one_that_is_trained_ends(name, tmp_path, monkeypatch):
    other = LEVELS if "levels" in RUNS[name].get("method", {}) else OTHERWISE
    first, second = merged(RUNS[name]), merged(RUNS[name], other, {"finetune": {"lr": 0.002}})
    cache = tmp_path / "cache"
    execute_with(cache, first, tmp_path / "first")
    with monkeypatch.context() as patch:
        stages = stages_trained(patch)
        summary = execute_with(cache, second, tmp_path / "taken")
    assert stages and not {"train", "train-1"} & set(stages)
    expected = execute(second, tmp_path / "trained")
    assert_same_end(tmp_path / "taken", tmp_path / "trained", summary, expected)


def test_the_key_holds_all_that_training_looks_at():
    def depends_on(**sections):
        config = changed(**sections)
        return training_depends_on(config, prepare(config))

    base = depends_on()
    for same in (
        {"train": {"save_every_minutes": 1.0}},
        {"prune": {"ratio": 0.1}},
        {"finetune": {"lr": 1.0}},
        {"method": {"levels": [0.5, 1.0]}, "prune": {"order": True}},
    ):
        assert depends_on(**same) == base, same
    train = changed()["train"]
    other = {
        "epochs": 3,
        "batch_size": 16,
        "lr": 0.01,
        "optimiser": "adam",
        "momentum": 0.5,
        "nesterov": False,
        "weight_decay": 0.0,
        "weight_decay_norm": 0.0,
        "weight_decay_bias": 0.0,
        "schedule": "step",
        "milestones": [0.3],
        "lr_factor": 0.2,
        "warmup": 0.1,
        "label_smoothing": 0.1,
        "precision": "bf16",
        "compile": True,
    }
    assert other.keys() == train.keys() - {"save_every_minutes"}
    changes = [{"train": {key: value}} for key, value in other.items()]
    changes += [{"seed": 1}, {"model": {"width": 0.125}}, {"dataset": {"pad": 2}}]
    changes += [{"method": {"sparsity_weight": 0.1}}, {"method": {"name": "none"}}]
    seen = [json.dumps(depends_on(**change), sort_keys=True) for change in [{}, *changes]]
    assert len(set(seen)) == len(seen)
    cucb = {"method": {"name": "cucb", "explore": 7}}
    assert depends_on(**cucb) != depends_on(**cucb, prune={"ratio": 0.3})


def key_of(**sections):
    config = changed(**sections)
    prepared = prepare(config)
    return training_depends_on(config, prepared)


def test_the_key_holds_the_images_and_not_their_place(tmp_path):
    """Also where a mistake was put right: the images of two classes change places."""
    path = make_archive(tmp_path, as_zip=False)
    dataset = {**changed()["dataset"], "name": "imagefolder", "image_size": None, "val_share": 0.2}
    for memory_limit in (2**30, 0):
        options = {**dataset, "root": str(path), "memory_limit": memory_limit}
        before = key_of(dataset=options)
        moved = path.rename(tmp_path / "moved")
        if memory_limit:
            assert key_of(dataset={**options, "root": str(moved), "workers": 1}) == before
        (moved / "train/ant").rename(moved / "train/x")
        (moved / "train/bee").rename(moved / "train/ant")
        (moved / "train/x").rename(moved / "train/bee")
        moved.rename(path)
        assert key_of(dataset=options) != before


def test_the_key_holds_the_weights_and_not_their_place(tmp_path):
    model = {"library": "torchvision", "name": "resnet18", "weights": None}
    built = torchvision.models.resnet18(num_classes=10)
    files = [tmp_path / name for name in ("one.pth", "two.pth", "other.pth")]
    for file in files[:2]:
        torch.save(built.state_dict(), file)
    built.conv1.weight.data += 1
    torch.save(built.state_dict(), files[2])
    rgb = {"name": "imagefolder", "root": str(make_archive(tmp_path, as_zip=True)), **ROOMY}
    keys = []
    for file in files:
        config = {**changed(dataset=rgb), "model": {**model, "weights": str(file)}}
        keys.append(training_depends_on(config, prepare(config)))
    assert keys[0] == keys[1] != keys[2]


def test_the_key_holds_the_number_of_threads_which_changes_bits():
    before, threads = key_of(), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert key_of() != before
    finally:
        torch.set_num_threads(threads)


def test_the_key_holds_what_computes(monkeypatch):
    prepared = prepare(changed())
    keys = [training_depends_on(changed(), prepared)]
    keys.append(training_depends_on(changed(), replace(prepared, device=torch.device("meta"))))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("RANK", "0")
    keys.append(training_depends_on(changed(), prepared))
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "9.9")
    keys.append(training_depends_on(changed(), prepared))
    assert len({json.dumps(key) for key in keys}) == len(keys)


def test_a_damaged_entry_is_trained_again_and_replaced(tmp_path, capsys):
    cache = tmp_path / "cache"
    expected = execute_with(cache, changed(), tmp_path / "first")
    (entry,) = (path for path in cache.iterdir() if path.is_dir())
    shutil.rmtree(tmp_path / "first/train")
    state = entry / "state.safetensors"
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2])
    summary = execute_with(cache, changed(), tmp_path / "second")
    assert "keeps of it is damaged" in capsys.readouterr().out
    assert_same_end(tmp_path / "second", tmp_path / "first", summary, expected)
    assert read(state)[1]["epoch"] == changed()["train"]["epochs"]


@pytest.mark.slow
def test_a_process_that_dies_is_taken_over_by_the_one_that_waits(tmp_path):
    """Two runs that train alike: one waits; kill -9 the other; and start that again."""
    arguments = ("cache.dir=cache", "train.epochs=6")
    killed = command(*arguments, cwd=tmp_path)
    wait_for(tmp_path / "out/metrics.jsonl", '"epoch": 2,')
    killed.send_signal(signal.SIGSTOP)
    other = command(*arguments, "prune.ratio=0.3", "run.dir=other", cwd=tmp_path)
    said = []
    for line in other.stdout:
        said.append(line)
        if line.startswith("waits for"):
            break
    assert f"waits for {tmp_path / 'out'}, which trains the same" in said[-1]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    output, error = other.communicate(timeout=200)
    assert other.returncode == 0, error
    assert f"goes on where {tmp_path / 'out'} was left" in output
    again = command(*arguments, cwd=tmp_path)
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0
    assert f"{tmp_path / 'other'} has trained the same; its result is taken" in output
    alone = command("cache.enabled=false", "train.epochs=6", "run.dir=alone", cwd=tmp_path)
    alone.communicate(timeout=200)
    assert alone.returncode == 0
    assert lines(tmp_path / "out") == lines(tmp_path / "alone")
    model, reference = (tmp_path / name / "model.safetensors" for name in ("out", "alone"))
    assert model.read_bytes() == reference.read_bytes()
    listed = call("chanprune.cache", "--dir", "cache", "list", cwd=tmp_path)
    assert "1 train stages" in listed.stdout and str(tmp_path / "other") in listed.stdout
    pruned = call("chanprune.cache", "--dir", "cache", "prune", "nothing", cwd=tmp_path)
    assert pruned.returncode == 2 and "nothing is not kept" in pruned.stderr
    pruned = call("chanprune.cache", "--dir", "cache", "prune", cwd=tmp_path)
    assert "1 of 1 train stages deleted" in pruned.stdout
    assert not any((tmp_path / "cache").iterdir())
    assert (tmp_path / "out/train/state.safetensors").exists()


@pytest.mark.slow
def test_a_signal_ends_the_wait(tmp_path):
    maker = command("cache.dir=cache", "train.epochs=50", cwd=tmp_path)
    wait_for(tmp_path / "out/metrics.jsonl", '"epoch": 1,')
    maker.send_signal(signal.SIGSTOP)
    other = command("cache.dir=cache", "train.epochs=50", "run.dir=other", cwd=tmp_path)
    assert any(line.startswith("waits for") for line in other.stdout)
    other.send_signal(signal.SIGTERM)
    _, error = other.communicate(timeout=60)
    assert other.returncode == 143 and error.count("\n") == 1
    maker.send_signal(signal.SIGKILL)
    maker.communicate()
