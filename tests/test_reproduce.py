"""The papers' tables: published figures, dry runs of all tables, verdicts, and a tiny real run."""

import argparse
import gzip
import json
import re
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chanprune import reproduce
from chanprune.config.cli import config_dir
from chanprune.config.schema import validate
from chanprune.papers.job import Job
from chanprune.papers.published import PUBLISHED, Table, bounds, like, number, read, verdict
from chanprune.reproduce import dry_run, listed
from tests.commands import call
from tests.networks import but_slow
from tests.test_data import SHARED

IDX = SHARED / "fashion-mnist-idx.zip"
TABLES, SETS = read(PUBLISHED)


def job(table, *overrides, **options):
    chosen = {"rows": None, "controls": None, "scale": "full", "seeds": 1, "no_timing": True}
    namespace = argparse.Namespace(**{**chosen, **options, "overrides": list(overrides)})
    return Job(TABLES[table], SETS, namespace)


def test_the_list_names_every_table_with_its_rows():
    for table in TABLES.values():
        text = listed(table)
        assert text.startswith(f"{table.id}: {table.title}")
        assert all(f"  {name} " in text for name in table.rows)


@pytest.mark.parametrize("name", but_slow(TABLES, *list(TABLES)[4:]))
def test_what_does_not_depend_on_training_is_as_printed(name):
    """Equal to the printed digits, or with the reason why not; every experiment composes."""
    text = "\n".join(dry_run(job(name)))
    assert "UNEXPLAINED" not in text
    for row in TABLES[name].rows.values():
        assert f"{row.id}: {row.name}" in text
        assert row.missing or row.control or not job(name).why_not(row)


def test_counts_are_compared_to_the_digit():
    text = "\n".join(dry_run(job("l1norm-cifar10")))
    compared = re.findall(r"= (\S+), paper (\S+), (\w+)", text)
    assert len(compared) == 16 and all(ours == theirs for ours, theirs, _ in compared)
    text = "\n".join(dry_run(job("prioritized-cifar10")))
    assert "8,487,738 = 8.49e6, paper 8.49e6, equal" in text
    assert "1,000,218 = 1.00e6, paper 1.00e6, equal" in text


def test_every_experiment_is_in_a_table():
    named = {row.experiment for table in TABLES.values() for row in table.rows.values()}
    folder = config_dir() / "experiment"
    files = {p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml")}
    assert files <= named


@pytest.mark.parametrize(
    ("printed", "value", "written"),
    [
        ("2.30M", 2_304_999, "2.30M"),
        ("7.97e8", 796_272_640, "7.96e8"),
        ("10,704M", 10_703_740_000, "10,704M"),
        ("6.20", 6.204, "6.20"),
        ("+0.5", 0.46, "+0.5"),
        ("-0.7", 0.12, "+0.1"),
        ("10..50", 33.3, "33"),
    ],
)
def test_our_figures_are_written_like_the_paper_s(printed, value, written):
    assert like(value, printed) == written
    assert bounds(printed)[0] == number(printed.split("..")[0])


def test_verdicts():
    table = Table("t", "", "", "flops", "all", {"points": 0.5, "counts": 0.1, "shares": 3}, [], {})
    assert verdict([], "6.20", "error", table, "") == "not run"
    assert verdict([6.5, 6.9], "6.20", "error", table, "") == "within 0.5"
    assert verdict([6.8], "6.20", "error", table, "") == "outside 0.5"
    assert verdict([6.8], "6.20", "error", table, "x") == "differs by construction: x"
    assert verdict([2.5e6], "2.30M", "params", table, "") == "within 10%"
    assert verdict([2.6e6], "2.30M", "params", table, "") == "outside 10%"
    assert verdict([91.0], "88.5", "params_pruned", table, "") == "within 3"
    assert verdict([60.0], "67..86", "params_pruned", table, "") == "outside 3"
    assert verdict([9.0], "0.0..", "difference", table, "") == "within 0.5"


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5), st.floats(0, 100))
def test_a_verdict_is_of_the_mean_over_all_seeds(values, printed):
    """Neither of the best seed nor of the first, above the figure or below."""
    table = Table("t", "", "", "flops", "all", {"points": 0.5, "counts": 0.1, "shares": 3}, [], {})
    off = abs(sum(values) / len(values) - float(f"{printed:.2f}"))
    assume(abs(off - 0.5) > 1e-6)
    told = verdict(values, f"{printed:.2f}", "error", table, "")
    assert told == ("within 0.5" if off < 0.5 else "outside 0.5")


@pytest.mark.parametrize("values", [[6.2, 8.2], [4.2, 6.2], [6.2, 6.3, 9.9], [0.0, 12.4]])
def test_one_seed_that_meets_a_figure_does_not_meet_it_for_all(values):
    table = Table("t", "", "", "flops", "all", {"points": 0.5, "counts": 0.1, "shares": 3}, [], {})
    met = abs(sum(values) / len(values) - 6.2) <= 0.5
    assert verdict(values, "6.20", "error", table, "").startswith("within" if met else "outside")


def test_a_shortened_schedule_keeps_the_travel():
    for row, travel in (("vgg19_70", 6.6), ("densenet40_40", 0.66)):
        asked = job("slimming-cifar10", scale="gpu-hour")
        config = asked.config(asked.table.rows[row])
        assert (config["train"]["epochs"], config["finetune"]["epochs"]) == (40, 40)
        # nine tenths of the images train here, the paper's 6.6 is for all
        assert config["method"]["travel"] == pytest.approx(0.9 * travel, rel=0.01)
        assert config["method"]["sparsity_weight"] is None
        assert validate(config)
    asked = job("slimming-cifar10", "train.epochs=1", scale="smoke")
    assert asked.config(asked.table.rows["vgg19_70"])["method"]["sparsity_weight"] == 0.01
    assert "smoke: 2% of the epochs" in asked.title() and "model.width=0.25" in asked.title()


def test_a_time_is_measured_in_seconds():
    asked = job("l1norm-cifar10", "model.width=0.0625", no_timing=False, rows="resnet56_a")
    text = "\n".join(dry_run(asked))
    assert re.search(r"about [\d.]+ (s|min|h|days) a seed on ", text)


@pytest.mark.slow
def test_a_smoke_run(tmp_path, monkeypatch, capsys):
    """Runs what is missing, a row that is a control among it, and nothing the second time."""
    arguments = [
        *("l1norm-cifar10", "--scale", "smoke", "--rows", "vgg16_a_scratch", "--out", "tables"),
        *("--controls", "none", "dataset=digits", "dataset.image_size=16", "model.width=0.0625"),
        *("train.epochs=1", "finetune.epochs=1", "device=cpu"),
    ]
    first = call("chanprune.reproduce", *arguments, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("python -m chanprune.train") == 3
    text = (tmp_path / "tables/l1norm-cifar10-smoke.md").read_text()
    assert "VGG-16-A, from scratch" in text and "fine-tuned" in text
    assert re.search(r"params gone % +\| 6\d\.\d +\| 64\.0 +\| within 3", text)
    assert "differs by construction: another network or other images" in text
    summaries = list((tmp_path / "outputs/digits").glob("*/summary.json"))
    assert len(summaries) == 3 and all("accuracy" in json.loads(p.read_text()) for p in summaries)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["chanprune.reproduce", *arguments])
    reproduce.main()
    again = capsys.readouterr().out
    assert "python -m chanprune.train" not in again and text.splitlines()[0] in again


@pytest.mark.slow
@pytest.mark.skipif(not IDX.exists(), reason="no images of MNIST's format are here")
def test_the_table_of_a_perceptron_is_made(tmp_path):
    """On images of MNIST's size: widths and the share of the parameters are the paper's."""
    raw = tmp_path / "data/MNIST/raw"
    raw.mkdir(parents=True)
    with zipfile.ZipFile(IDX) as archive:
        for name in archive.namelist():
            (raw / Path(name).stem).write_bytes(gzip.decompress(archive.read(name)))
    made = call("chanprune.reproduce", "slimming-mnist", "--scale", "smoke", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert re.search(r"params gone % +84\.4 +84\.4 +within 3", made.stdout)
    (plan,) = tmp_path.glob("outputs/mnist/mlp784-slimming-*/plan.json")
    kept = json.loads(plan.read_text())["kept"]
    assert [len(channels) for channels in kept.values()] == [100, 60]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["slimming"], "no such table; choose from: slimming-cifar10"),
        (["slimming-cifar10", "--rows", "vgg"], "--rows=vgg: must be of vgg19_baseline"),
        (["slimming-cifar10", "--dry-run", "train.epochs"], "must be KEY=VALUE"),
    ],
)
def test_mistakes_get_a_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["chanprune.reproduce", *arguments])
    with pytest.raises(SystemExit) as leaving:
        reproduce.main()
    said = capsys.readouterr().err
    assert leaving.value.code == 2 and message in said and said.count("\n") == 1
