"""A disk that is full, read-only or gone: one line, and the last good checkpoint goes on."""

import shutil
import subprocess

import pytest
from safetensors.torch import load_file

from chanprune.pipeline.prepare import prepare
from chanprune.pipeline.run import run
from chanprune.pipeline.updates import Updates
from chanprune.processes.errors import RunError
from tests.networks import but_slow
from tests.test_pipeline import changed, execute
from tests.test_resume import assert_same_end

CONFIG = changed(train={"epochs": 4})


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system in memory; return its folder and a function that sets its options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    try:
        tried = mount("size=10m")
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if tried.returncode:
        pytest.skip(f"a file system cannot be mounted here: {tried.stderr.strip()}")
    yield folder, lambda options: mount(f"remount,{options}").check_returncode()
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    "size", but_slow(["100k", "400k", "640k", "1000k"], "100k", "400k", "1000k")
)
def test_a_full_disk(size, small_disk, tmp_path):
    disk, remount = small_disk
    remount(f"size={size}")
    folder = disk / "run"
    folder.mkdir()
    with pytest.raises(RunError, match="No space left"):
        run(CONFIG, prepare(CONFIG), folder)
    remount("size=10m")
    summary = run(CONFIG, prepare(CONFIG), folder)
    expected = execute(CONFIG, tmp_path / "whole")
    assert_same_end(folder, tmp_path / "whole", summary, expected)


def test_a_disk_that_becomes_read_only(small_disk, monkeypatch):
    disk, remount = small_disk
    folder, original = disk / "run", Updates.do
    folder.mkdir()

    def step(updates, now, *batch, **options):
        done = original(updates, now, *batch, **options)
        if now.index == 95:
            remount("ro")
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Updates, "do", step)
        with pytest.raises(RunError, match="Read-only file system"):
            run(CONFIG, prepare(CONFIG), folder)
    assert load_file(folder / "train/state.safetensors")
    remount("rw")
    assert len(run(CONFIG, prepare(CONFIG), folder)["stages"]) == 4


def test_a_directory_that_is_removed(tmp_path, monkeypatch):
    folder, original = tmp_path / "run", Updates.do
    folder.mkdir()

    def step(updates, now, *batch, **options):
        done = original(updates, now, *batch, **options)
        if now.index == 95:
            shutil.rmtree(folder)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Updates, "do", step)
        with pytest.raises(RunError, match="metrics.jsonl: No such file or directory"):
            run(CONFIG, prepare(CONFIG), folder)
