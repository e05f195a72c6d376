"""Data that moved, or changed, after a run on it began."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.commands import TINY, call, train
from tests.test_data import make_archive

OPTIONS = (*TINY, "dataset=imagefolder", "dataset.root=images", "train.batch_size=8", "run.dir=run")
OPTIONS += ("dataset.image_size=16", "method=none", "cache.enabled=false", "train.lr=0.02")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with images in `images` and a finished run on them in `run`."""
    folder = tmp_path_factory.mktemp("finished")
    make_archive(folder, as_zip=False)
    done = train(*OPTIONS, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "1 file whose names are not those of images" in done.stdout
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "work")
    return tmp_path / "work"


def unfinished(folder):
    for name in ("manifest.json", "summary.json"):
        (folder / "run" / name).unlink()
    return folder


def measured(*arguments, cwd):
    asked = call("chanprune.evaluate", "format=json", *arguments, cwd=cwd)
    assert asked.returncode == 0, asked.stderr
    return json.loads(asked.stdout)


def test_a_run_finds_its_data_from_another_directory(finished, tmp_path):
    expected = json.loads((finished / "run/summary.json").read_text())["accuracy"]
    assert measured(f"run={finished / 'run'}", cwd=tmp_path)["accuracy"] == expected


def test_a_run_can_be_told_where_its_data_is_now(folder, tmp_path):
    expected = json.loads((folder / "run/summary.json").read_text())["accuracy"]
    shutil.move(folder, tmp_path / "other")
    assert measured("run=other/run", cwd=tmp_path)["accuracy"] == expected, "they moved together"
    shutil.move(tmp_path / "other/images", tmp_path / "here")
    lost = call("chanprune.evaluate", "run=other/run", "dataset.root=nowhere", cwd=tmp_path)
    assert lost.returncode == 2 and "dataset.root=nowhere does not exist" in lost.stderr
    found = measured("run=other/run", "dataset.root=here", cwd=tmp_path)
    assert found["accuracy"] == expected
    unfinished(tmp_path / "other")
    resumed = train("resume=other/run", "dataset.root=here", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((tmp_path / "other/run/summary.json").read_text())["accuracy"] == expected


def another_image(folder):
    shutil.copy(folder / "images/train/ant/00.png", folder / "images/train/ant/99.png")


def an_image_less(folder):
    (folder / "images/train/bee/03.png").unlink()


def another_class(folder):
    for split in ("train", "test"):
        shutil.copytree(folder / f"images/{split}/ant", folder / f"images/{split}/cow")


def classes_swapped(folder):
    for split in ("train", "test"):
        (folder / f"images/{split}/ant").rename(folder / f"images/{split}/x")
        (folder / f"images/{split}/bee").rename(folder / f"images/{split}/ant")
        (folder / f"images/{split}/x").rename(folder / f"images/{split}/bee")


CHANGES = [another_image, an_image_less, another_class, classes_swapped]


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_go_on_with_other_images(folder, change):
    change(unfinished(folder))
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    refused = train(*OPTIONS, cwd=folder)
    assert refused.returncode == 2, refused.stderr
    assert "dataset.root=images holds other images or classes than when" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert before == {path: path.read_bytes() for path in before}


def test_a_command_from_another_directory_is_not_taken_for_the_run_on_other_data(folder, tmp_path):
    shutil.copytree(folder / "images", tmp_path / "images")
    options = [o.replace("run.dir=run", f"run.dir={folder / 'run'}") for o in OPTIONS]
    refused = train(*options, cwd=tmp_path)
    assert refused.returncode == 2
    assert f"not on {tmp_path / 'images'}" in refused.stderr


def test_a_model_is_not_measured_on_other_classes(folder):
    for split in ("train", "test"):
        (folder / f"images/{split}/ant").rename(folder / f"images/{split}/zant")
    refused = call("chanprune.evaluate", "run=run", cwd=folder)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "was trained on the classes ant, bee, and images has bee, zant" in refused.stderr


def test_a_model_is_measured_with_the_mean_and_deviation_that_it_was_trained_with(folder):
    before = measured("run=run", cwd=folder)
    for path in (folder / "images/train").glob("*/*.*"):
        if path.suffix != ".txt":
            Image.fromarray(np.full((16, 16, 3), 250, np.uint8)).save(path)
    assert measured("run=run", cwd=folder) == before
