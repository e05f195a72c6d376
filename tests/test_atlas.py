"""The atlas: one row for each network, whatever it does, and none that is done is done again."""

import json
import os
import sys
import time

import pytest

from chanprune.survey.networks import population, smallest
from chanprune.survey.results import Results
from tests.commands import call, start

OWN = "tests.odd_networks"
OUTCOMES = {
    f"{OWN}:small": ("proven", ""),
    f"{OWN}:deciding": ("refused", "cannot be traced"),
    f"{OWN}:narrow": ("refused", "no channel may go"),
    f"{OWN}:broken": ("fault", "RuntimeError: no | such"),
    f"{OWN}:missing": ("fault", "AttributeError"),
    f"{OWN}:dead": ("fault", "SIGABRT"),
    f"{OWN}:large": ("memory", "can't allocate"),
}
SMALL = ("--image-size", "16")
LIMITS = (*SMALL, "--memory", "4")


def rows_of(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["network"]: line for line in lines if "network" in line}


def atlas(*arguments, cwd):
    return call("chanprune.atlas", *arguments, cwd=cwd)


def test_every_network_is_one_row_and_is_not_done_again(tmp_path):
    command = (*OUTCOMES, *LIMITS, "--out", "found.jsonl", "--page", "docs/page.md")
    done = atlas(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "found.jsonl")
    assert rows.keys() == OUTCOMES.keys()
    for name, (outcome, said) in OUTCOMES.items():
        assert rows[name]["outcome"] == outcome and said in rows[name]["said"], rows[name]
    assert rows[f"{OWN}:small"]["error"] <= 1e-9
    assert (rows[f"{OWN}:small"]["channels"], rows[f"{OWN}:small"]["prunable"]) == (12, 8)
    assert rows[f"{OWN}:small"]["macs_left"] < rows[f"{OWN}:small"]["macs"]
    page = (tmp_path / "docs/page.md").read_text()
    assert page.count("\n| ") == 2 + 1 + len(OUTCOMES)
    assert (
        page.count("\n- ") == len(OUTCOMES) - 1
        and "- broken: fault: RuntimeError: no | such" in page
    )
    before = (tmp_path / "found.jsonl").read_bytes()
    assert atlas(*command, cwd=tmp_path).returncode == 0
    assert (tmp_path / "found.jsonl").read_bytes() == before
    assert (tmp_path / "docs/page.md").read_text() == page


def test_after_a_kill_it_goes_on_where_it_was(tmp_path):
    found = tmp_path / "outputs/atlas.jsonl"
    names = (f"{OWN}:small", f"{OWN}:endless")
    path = os.pathsep.join(sys.path)
    process = start("chanprune.atlas", *names, *SMALL, cwd=tmp_path, PYTHONPATH=path)
    while not (found.exists() and found.read_text().endswith("\n")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    first = found.read_text()
    process.kill()
    process.communicate()
    with found.open("a") as file:
        file.write('{"network": "tests.odd_networks:endless", "outco')
    done = atlas(*names, "--seconds", "0.2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert found.read_text().startswith(first) and found.read_text().count("\n") == 2
    assert [row["outcome"] for row in rows_of(found).values()] == ["proven", "timeout"]


def test_slices_are_the_whole(tmp_path):
    names = (f"{OWN}:small", f"{OWN}:narrow", f"{OWN}:broken")
    for part in ("1/2", "2/2"):
        assert atlas(*names, *LIMITS, "--slice", part, cwd=tmp_path).returncode == 0
    assert rows_of(tmp_path / "outputs/atlas.jsonl").keys() == set(names)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name networks"),
        (("--page", "page.md"), "no results yet"),
        (("resnet5",), "did you mean"),
        (("keras/resnet50",), "keras"),
        ((f"{OWN}:small", "--ratio", "1"), "--ratio=1"),
        ((f"{OWN}:small", "--slice", "3/2"), "--slice=3/2"),
        ((f"{OWN}:small", "--seconds", "0"), "--seconds=0"),
        ((f"{OWN}:small", "--out", "other.md"), "line 1"),
        ((f"{OWN}:small", "--out", "other.jsonl"), "another ratio"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path, arguments, said):
    row = {"network": "b", "ratio": 0.5, "outcome": "proven", "said": ""}
    (tmp_path / "other.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "other.md").write_text("# Other\n")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = atlas(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files


def test_a_list_is_found_once(tmp_path):
    results = Results(tmp_path / "found.jsonl")
    results.add({"library": "timm", "version": "1", "networks": ["timm/vgg11"]})
    assert Results(tmp_path / "found.jsonl").lists == {("timm", "1"): ["timm/vgg11"]}


def test_torchvision_is_all_its_classifiers():
    names = population("torchvision")
    assert len(set(names)) == len(names) >= 80
    assert all(name.startswith("torchvision/") for name in names)


@pytest.mark.slow
def test_timm_is_the_smallest_of_each_file():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    assert [smallest(file) for file in ("vgg", "densenet")] == [["vgg11"], ["densenet121"]]
    assert smallest("vision_transformer_relpos")[0] in timm.list_models()


@pytest.mark.slow
def test_networks_of_both_libraries_are_proven(tmp_path):
    pytest.importorskip("timm", reason="timm is not installed")
    assert atlas("squeezenet1_1", "resnet10t", cwd=tmp_path).returncode == 0
    rows = rows_of(tmp_path / "outputs/atlas.jsonl")
    assert rows.keys() == {"torchvision/squeezenet1_1", "timm/resnet10t"}
    assert all(row["outcome"] == "proven" and row["error"] <= 1e-9 for row in rows.values())
