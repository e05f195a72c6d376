"""A finished run of which files are missing or damaged is told so, and mended."""

import json
import os
import re
import shutil

import pytest

from chanprune.records.run_dir import MANIFEST, OURS, PICTURE
from tests.commands import call, train
from tests.networks import but_slow
from tests.test_kills import METHODS, SHORT, assert_same_run

ARGUMENTS = [*METHODS["slimming"], *SHORT, "run.dir=out", "cache.enabled=false"]


def flip(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "gone": lambda path: path.unlink(),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "garbage": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "flipped": flip,
}


CHECKPOINTS = ["train/state", "train/previous", "finetune/state"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    assert train(*ARGUMENTS, cwd=folder).returncode == 0
    return folder / "out"


def files_of(run):
    files = (path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    return sorted(path.relative_to(run).as_posix() for path in files)


def damaged(finished, tmp_path, damages):
    """Copy a run, damage files of it, and run the command again."""
    shutil.copytree(finished, tmp_path / "out")
    for name, damage in damages.items():
        DAMAGES[damage](tmp_path / "out" / name)
    return train(*ARGUMENTS, cwd=tmp_path)


def test_every_file_of_a_run_is_known(finished):
    """What a run leaves is in the manifest, or a stage's, or TensorBoard's."""
    listed = json.loads((finished / MANIFEST).read_text())["files"].keys() | {MANIFEST}
    others = set(files_of(finished)) - listed
    assert {name.split("/")[0] for name in others} == {"train", "finetune", "tensorboard"}
    assert all(name in OURS or PICTURE.fullmatch(name) for name in listed)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damaged_file_of_a_run_is_named_and_mended(damage, finished, tmp_path):
    products = {*json.loads((finished / MANIFEST).read_text())["files"], MANIFEST}
    for name in files_of(finished):
        cwd = tmp_path / name.replace("/", "-")
        cwd.mkdir()
        again = damaged(finished, cwd, {name: damage})
        assert again.returncode == 0, f"{name}: {again.stderr}"
        if name not in products:
            assert "holds this run, finished; run.overwrite" in again.stdout
        elif (name, damage) != (MANIFEST, "flipped"):
            assert f"damaged or missing: {name};" in again.stdout
            assert "done already" in again.stdout and "  train 1/" not in again.stdout
        assert_same_run(cwd / "out", finished)
        shutil.rmtree(cwd)


@pytest.mark.parametrize("damage", but_slow(DAMAGES, *(set(DAMAGES) - {"flipped"})))
def test_a_run_whose_products_are_all_damaged_is_mended(damage, finished, tmp_path):
    """But for what is needed to know what run it is: config.yaml, or the manifest's copy of it."""
    for kept in ("config.yaml", MANIFEST):
        (tmp_path / kept).mkdir()
        products = [n for n in files_of(finished) if "/" not in n and n != kept]
        again = damaged(finished, tmp_path / kept, dict.fromkeys(products, damage))
        assert again.returncode == 0, again.stderr
        assert "done already" in again.stdout and "  train 1/" not in again.stdout
        assert_same_run(tmp_path / kept / "out", finished)
        last = train(*ARGUMENTS, cwd=tmp_path / kept)
        assert "holds this run, finished; run.overwrite" in last.stdout


@pytest.mark.parametrize("checkpoint", but_slow(CHECKPOINTS, *CHECKPOINTS[1:]))
@pytest.mark.parametrize("damage", but_slow(DAMAGES, *(set(DAMAGES) - {"zeros"})))
def test_a_run_without_its_model_is_mended_though_checkpoints_are_damaged_too(
    damage, checkpoint, finished, tmp_path
):
    """What no stage holds is trained again; metrics.jsonl ends in order."""
    name = f"{checkpoint}.safetensors"
    damages = {"model.safetensors": "gone", "metrics.jsonl": damage, name: damage}
    again = damaged(finished, tmp_path, damages)
    assert again.returncode == 0, again.stderr
    assert_same_run(tmp_path / "out", finished)


@pytest.mark.parametrize("damage", but_slow(["gone", "zeros", "garbage"], "zeros", "garbage"))
def test_a_run_without_a_configuration_is_refused_and_can_be_replaced(damage, finished, tmp_path):
    damages = dict.fromkeys(["config.yaml", MANIFEST], damage)
    refused = damaged(finished, tmp_path, damages)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "config.yaml is missing or damaged" in refused.stderr
    before = files_of(tmp_path / "out")
    again = train(*ARGUMENTS, "run.overwrite=true", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert_same_run(tmp_path / "out", finished)
    assert {n for n in before if "tensorboard" not in n} <= set(files_of(tmp_path / "out"))


def test_what_a_kill_left_is_cleared_when_the_run_goes_on(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    for name in (".owner", ".table.md.part", "train/.tmpXy12Z", "train/.state.safetensors.part"):
        (tmp_path / "out" / name).write_bytes(b"left")
    (tmp_path / "out/table.md").unlink()
    assert train(*ARGUMENTS, cwd=tmp_path).returncode == 0
    assert_same_run(tmp_path / "out", finished)


def test_a_model_of_other_images_than_the_configuration_is_not_evaluated(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    config = tmp_path / "out/config.yaml"
    config.write_text(config.read_text().replace("image_size: 16", "image_size: 24"))
    refused = call("chanprune.evaluate", "run=out", cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "takes images of (C, H, W) = (1, 16, 16)" in refused.stderr
    assert "config.yaml asks for (1, 24, 24)" in refused.stderr


def test_overwriting_keeps_what_is_not_the_run_s(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/image.png").touch()
    for name in ("notes.txt", "my.png", "training/image.png"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).touch()
    (tmp_path / "out/train-7").symlink_to(tmp_path / "elsewhere")
    again = train(*ARGUMENTS, "run.overwrite=true", "seed=1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {"notes.txt", "my.png", "training/image.png"} <= set(files_of(tmp_path / "out"))
    assert (tmp_path / "elsewhere/image.png").exists()


@pytest.mark.parametrize("is_whole", but_slow([True, False], True))
def test_overwriting_removes_the_pictures_of_another_method(is_whole, finished, tmp_path):
    other = [*METHODS["cucb"], *SHORT, "run.dir=out", "cache.enabled=false"]
    assert train(*other, cwd=tmp_path).returncode == 0
    theirs = {path.name for path in tmp_path.glob("out/*.png")}
    assert {"active.png", "times_active.png"} <= theirs
    manifest = tmp_path / "out" / MANIFEST
    if not is_whole:  # as a kill leaves it that comes while pictures are drawn
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "files": {}}))
    again = train(*ARGUMENTS, "run.overwrite=true", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert_same_run(tmp_path / "out", finished)
    shown = re.findall(r"picture: out/(.*)", again.stdout)
    assert shown == sorted(path.name for path in finished.glob("*.png"))


@pytest.mark.parametrize(
    "names",
    [
        ["train/cat/1.png"],
        [".lock", "train/1.png", "notes.txt"],
        [".lock", "train/1.png", "notes.png"],
    ],
)
def test_a_directory_of_somebody_else_is_not_touched(names, tmp_path):
    for name in names:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).touch()
    for options in ([], ["run.overwrite=true"]):
        refused = train(*ARGUMENTS, *options, cwd=tmp_path)
        assert refused.returncode == 2 and "holds no run" in refused.stderr
    assert files_of(tmp_path / "out") == sorted(set(names) - {".lock"})


def test_a_run_that_was_killed_before_it_was_one_begins(tmp_path, finished):
    """So did earlier versions leave it: the lock, and a metrics.jsonl without a line."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.lock").touch()
    (tmp_path / "out/metrics.jsonl").touch()
    done = train(*ARGUMENTS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "out", finished)


def test_files_have_the_mode_that_the_umask_leaves(finished):
    usual = finished.parent / "usual"
    usual.touch()
    modes = {name: (finished / name).stat().st_mode for name in files_of(finished)}
    assert set(modes.values()) == {usual.stat().st_mode}, modes
