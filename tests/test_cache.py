"""The cache lists and deletes what bears its mark; a damaged entry costs a training."""

import json
import os
import shutil

import pytest
from filelock import FileLock

from chanprune.records.cached_stages import ABOUT, MARK, MARKED
from tests.commands import call
from tests.networks import but_slow
from tests.test_damaged_runs import DAMAGES
from tests.test_pipeline import changed
from tests.test_resume import assert_same_end
from tests.test_reuse import execute_with

NETWORK = {"name": "vgg11", "num_classes": 10}
DEPENDS_ON = {
    "method": {"name": "none"},
    "model": {"name": "vgg11", "width": 1.0},
    "dataset": {"name": "digits"},
    "train": {"epochs": 3},
}
SMALL = changed(dataset={"share": 0.1})
ABOUTS = {
    "right": {"run": "out", "seconds": 12.0, "depends_on": DEPENDS_ON},
    "whose model is a list": {
        "run": "out",
        "seconds": 1.0,
        "depends_on": {**DEPENDS_ON, "model": [NETWORK, {"features.0": [1, 2]}]},
    },
    "a list": [],
    "null": None,
    "other keys": {"run": 3},
    "no sections": {"run": "out", "seconds": 1.0, "depends_on": {"model": 3}},
    "not JSON": "{",
    "not text": b"\xff\xfe",
    "zeros": bytes(10),
    "deep": "[" * 100_000,
}


def make_entry(folder, about):
    folder.mkdir(parents=True)
    (folder / MARK).write_text(MARKED)
    (folder / "state.safetensors").write_bytes(bytes(1000))
    if isinstance(about, bytes):
        (folder / ABOUT).write_bytes(about)
    else:
        (folder / ABOUT).write_text(about if isinstance(about, str) else json.dumps(about))


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def cache(*arguments, cwd):
    done = call("chanprune.cache", "--dir", "cache", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_whatever_an_entry_says_it_is_listed_and_deleted(tmp_path):
    for number, about in enumerate(ABOUTS.values()):
        make_entry(tmp_path / f"cache/{number:016x}", about)
    listed = cache("list", cwd=tmp_path)
    assert f"{len(ABOUTS)} train stages" in listed
    assert listed.count("vgg11") == 1 and listed.count("damaged") == len(ABOUTS) - 1
    assert "1 of 10 train stages deleted" in cache("prune", f"{3:016x}", cwd=tmp_path)
    assert "9 of 9 train stages deleted" in cache("prune", cwd=tmp_path)
    assert not files_in(tmp_path / "cache")


def test_what_does_not_bear_the_mark_is_neither_listed_nor_deleted(tmp_path):
    """Runs, other folders, links to marked ones, and marks of other programs."""
    outside = tmp_path / "outside"
    make_entry(outside, ABOUTS["right"])
    others = tmp_path / "cache"
    (others / "digits/run").mkdir(parents=True)
    (others / "digits/run/model.safetensors").touch()
    (others / "sweeps").mkdir()
    (others / f"{1:016x}").mkdir()
    (others / f"{1:016x}" / ABOUT).write_text(json.dumps(ABOUTS["right"]))
    (others / f"{2:016x}").symlink_to(outside)
    (others / f"{3:016x}").mkdir()
    (others / f"{3:016x}" / MARK).symlink_to(outside / MARK)
    (others / f"{4:016x}").mkdir()
    (others / f"{4:016x}" / MARK).write_text(MARKED.splitlines()[0])
    (others / "notes.txt").touch()
    (others / "nowhere").symlink_to(tmp_path / "nothing")
    before = files_in(tmp_path)
    assert "0 train stages" in cache("list", cwd=tmp_path)
    assert "0 of 0 train stages deleted" in cache("prune", cwd=tmp_path)
    assert files_in(tmp_path) == before


def test_an_entry_that_a_run_is_at_work_on_stays(tmp_path):
    make_entry(tmp_path / "cache/.0123456789abcdef.part", {})
    with FileLock(tmp_path / "cache/0123456789abcdef.lock"):
        assert "1 stay, as runs are at work" in cache("prune", cwd=tmp_path)
    assert "1 of 1 train stages deleted" in cache("prune", "0123456789abcdef", cwd=tmp_path)
    assert not files_in(tmp_path / "cache")


@pytest.mark.parametrize("name", [ABOUT, MARK, "state.safetensors"])
@pytest.mark.parametrize("damage", but_slow(DAMAGES, *(set(DAMAGES) - {"zeros"})))
def test_a_damaged_entry_costs_a_training(name, damage, tmp_path):
    kept = tmp_path / "cache"
    expected = execute_with(kept, SMALL, tmp_path / "first")
    (entry,) = (path for path in kept.iterdir() if path.is_dir())
    shutil.rmtree(tmp_path / "first/train")
    DAMAGES[damage](entry / name)
    for number, maker in enumerate((b"[]", b"\xff")):
        (kept / f"{entry.name}.maker").write_bytes(maker)
        summary = execute_with(kept, SMALL, tmp_path / f"{number}")
        assert_same_end(tmp_path / f"{number}", tmp_path / "first", summary, expected)
    assert "vgg11" in cache("list", cwd=tmp_path)
    assert "1 of 1 train stages deleted" in cache("prune", cwd=tmp_path)


def test_a_pipe_in_the_place_of_the_mark_is_no_mark(tmp_path):
    (tmp_path / "cache/odd").mkdir(parents=True)
    os.mkfifo(tmp_path / "cache/odd" / MARK)
    assert "0 train stages" in cache("list", cwd=tmp_path)
