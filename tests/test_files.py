"""A file is there whole or not at all: in which order the disk gets it, and what errors leave."""

import os
import sys

import pytest

from chanprune.files.reading import json_if_any
from chanprune.files.writing import make_folder, replace, write_text
from chanprune.processes.errors import RunError


@pytest.fixture
def disk(monkeypatch):
    """What is flushed, and what is renamed, in order: ("fsync", path), ("rename", path)."""
    seen, original = [], os.fsync

    def fsync(descriptor):
        seen.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    watching = [True]
    sys.addaudithook(
        lambda event, values: (
            seen.append(("rename", os.fspath(values[1])))
            if watching[0] and event == "os.rename"
            else None
        )
    )
    yield seen
    watching[0] = False


def test_a_file_is_flushed_before_it_takes_its_name_and_its_folder_after(disk, tmp_path):
    path, before = tmp_path / "new/folder/file", tmp_path / "new/folder/before"
    write_text(path, "one")
    assert disk == [
        ("fsync", str(tmp_path / "new")),
        ("fsync", str(tmp_path)),
        ("fsync", str(path.with_name(".file.part"))),
        ("rename", str(path)),
        ("fsync", str(path.parent)),
    ]
    disk.clear()
    replace(path, lambda part: part.write_text("two"), keep=before)
    assert disk == [
        ("fsync", str(path.with_name(".file.part"))),
        ("rename", str(before)),
        ("rename", str(path)),
        ("fsync", str(path.parent)),
    ]
    assert (before.read_text(), path.read_text()) == ("one", "two")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("odd\nlong")])
def test_what_cannot_be_written_leaves_the_file_as_it_was(error, tmp_path):
    write_text(tmp_path / "file", "before")

    def fail(part):
        part.write_text("half")
        raise error

    with pytest.raises(RunError, match=f"file cannot be written: {error.args[-1][:3]}") as told:
        replace(tmp_path / "file", fail)
    assert "\n" not in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


@pytest.mark.parametrize("content", [b"", b"{", bytes(9), b"\xff", b"[" * 10**6, None])
def test_what_is_not_json_reads_as_nothing(content, tmp_path):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    assert json_if_any(tmp_path / "file") is None


def test_a_folder_that_is_there_is_left_alone(disk, tmp_path):
    make_folder(tmp_path)
    assert not disk
