"""Reports over many runs, some of them damaged."""

import csv
import io
import json
import shutil
import time

import pytest
import yaml
from matplotlib import pyplot as plt
from playwright.sync_api import sync_playwright

from chanprune.errors import UserError
from chanprune.report import draw, gather, interval, report
from chanprune.report_figures import Drawn, figures
from tests.test_pipeline import changed

ACCURACIES = {"none": (0.90, 0.92, 0.94), "slimming": (0.89, 0.93, 0.94)}


def write(folder, accuracy, **sections):
    folder.mkdir(parents=True)
    record = {"config": changed(**sections), "environment": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(record))
    cost = {"macs": 10, "images": 2, "seconds": 1.0, "activation_bytes": 3}
    summary = {
        "accuracy": accuracy,
        "params": 1000,
        "macs": 2000,
        "cost": {"train": cost, "finetune": cost, "whole_network_step": cost},
        "stages": [],
    }
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def runs(tmp_path):
    for method, accuracies in ACCURACIES.items():
        for seed, accuracy in enumerate(accuracies):
            write(tmp_path / f"{method}-{seed}", accuracy, seed=seed, method={"name": method})
    write(tmp_path / "other", 0.5, prune={"ratio": 0.75})
    return tmp_path


def lines(runs, **options):
    text = report([runs], **{"form": "csv", "sort": "name", "baseline": "none", **options})
    return {line["run"]: line for line in csv.DictReader(io.StringIO(text))}


def test_seeds_make_a_row_and_differences_are_paired(runs):
    found = lines(runs)
    assert list(found) == [
        "digits vgg11 none",
        "digits vgg11 slimming prune.ratio=0.5",
        "digits vgg11 slimming prune.ratio=0.75",
    ]
    row = found["digits vgg11 slimming prune.ratio=0.5"]
    assert row["n"] == "3" and row["MACs"] == "2,000" and row["training MACs"] == "20"
    # Student's t of 2 degrees of freedom, 97.5 %: 4.3027; deviations: 2.6458 and 1
    assert row["test acc %"] == f"92.00 ± {4.3027 * 2.6458 / 3**0.5:.2f}"
    assert row["difference"] == f"+0.00 ± {4.3027 * 1 / 3**0.5:.2f}"
    alone = found["digits vgg11 slimming prune.ratio=0.75"]
    assert alone["test acc %"] == "50.00" and alone["difference"] == "-40.00"


def test_only_what_leaves_out_zero_is_marked(runs):
    for seed in (0, 1, 2):
        better = ACCURACIES["none"][seed] + 0.01
        write(runs / f"l1norm-{seed}", better, seed=seed, method={"name": "l1norm"})
    found = lines(runs)
    assert found["digits vgg11 l1norm"]["difference"] == "+1.00 ± 0.00 *"
    assert [row["difference"][-1:] for row in found.values()].count("*") == 1


def test_the_order_and_the_formats(runs):
    accuracies = [
        float(line["test acc %"].split()[0]) for line in lines(runs, sort="accuracy").values()
    ]
    assert accuracies == sorted(accuracies, reverse=True)
    assert "| run" in report([runs], "markdown", "name", "none")
    assert "\\toprule" in report([runs], "latex", "name", "none")
    assert "3 " in report([runs], "table", "name", "none")


def test_the_page_in_a_browser(runs, tmp_path):
    """Sorted by a click, and without a method; opened from disk, on a phone in dark mode."""
    browsers = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    if not any(browsers):
        pytest.skip("there is no Chromium here")
    file = tmp_path / "report.html"
    file.write_text(report([runs], "html", "name", "none"), encoding="utf-8")
    with sync_playwright() as tool:
        browser = tool.chromium.launch(
            executable_path=next(filter(None, browsers)), args=["--no-sandbox"]
        )
        phone = {"width": 390, "height": 800}
        page = browser.new_page(viewport=phone, color_scheme="dark")
        errors = []
        page.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108
        page.goto(file.as_uri())
        shown = page.locator("tbody tr:visible")
        assert shown.count() == 3 and page.locator("figure svg").count() == 1
        page.get_by_role("button", name="test acc %").click()
        assert shown.first.locator("td").nth(2).inner_text() == "50.00"
        page.get_by_role("button", name="test acc %").click()
        assert shown.last.locator("td").nth(2).inner_text() == "50.00"
        page.get_by_label("slimming").uncheck()
        assert [row.split("\t")[0] for row in shown.all_inner_texts()] == ["digits vgg11 none"]
        page.get_by_label("slimming").check()
        assert shown.count() == 3
        assert page.evaluate("document.documentElement.scrollWidth") <= phone["width"]
        background = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        assert background and not errors
        browser.close()


def test_controls_of_several_seeds_are_one_row(tmp_path):
    """Each control names the run of its own seed."""
    for seed in (0, 1, 2):
        write(tmp_path / f"run-{seed}", 0.9, seed=seed)
        write(tmp_path / f"dense-{seed}", 0.8 + seed / 100, seed=seed, method={"name": "none"})
        named = str(tmp_path / f"run-{seed}")
        widths = {"widths": named}
        random = {"name": "random", "shares": {}}
        write(tmp_path / f"random-{seed}", 0.7, seed=seed, method=random, prune=widths)
        write(tmp_path / f"scratch-{seed}", 0.85, seed=seed, method={"name": "none"})
        path = tmp_path / f"scratch-{seed}" / "config.yaml"
        record = yaml.safe_load(path.read_text())
        record["config"]["model"] = {"name": "compact", "run": named}
        path.write_text(yaml.safe_dump(record))
    found = lines(tmp_path)
    assert {name: row["n"] for name, row in found.items()} == {
        "digits compact-vgg11 none of [slimming]": "3",
        "digits vgg11 none": "3",
        "digits vgg11 random of [slimming]": "3",
        "digits vgg11 slimming": "3",
    }
    assert found["digits compact-vgg11 none of [slimming]"]["difference"].startswith("+4.00 ±")


def test_controls_of_two_methods_are_not_told_apart_by_their_recipes(tmp_path):
    for method, batch_size in (("slimming", 8), ("cucb", 16)):
        train = {"batch_size": batch_size}
        run = tmp_path / method
        write(run, 0.9, method={"name": method}, train=train)
        control = {"method": {"name": "random", "shares": {}}, "prune": {"widths": str(run)}}
        write(tmp_path / f"control-{method}", 0.8, train=train, **control)
    assert set(lines(tmp_path)) == {
        *("digits vgg11 cucb", "digits vgg11 random of [cucb]"),
        *("digits vgg11 slimming", "digits vgg11 random of [slimming]"),
    }


def test_figures_of_ratios_scales_and_kept_channels(runs, tmp_path):
    for folder in (runs / "slimming-0", runs / "other"):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["config"]["method"] |= {"sparsity_weight": 1e-4, "travel": None}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        plan = {"kept": {"a": [0]}, "passes": [{"scores": {"a": [0.5, 0.0], "b": [1e-3, 0.2]}}]}
        (folder / "plan.json").write_text(json.dumps(plan))
    draw([runs], tmp_path / "pictures")
    names = {path.stem for path in (tmp_path / "pictures").glob("*.png")}
    assert names == {"accuracy_over_macs", "accuracy_over_ratio", "scales", "kept_channels"}


def test_damaged_and_unfinished_runs_are_listed(runs):
    (runs / "none-0/summary.json").write_text("{")
    (runs / "none-1/summary.json").unlink()
    (runs / "none-2/summary.json").write_text("{}")
    text = report([runs], "table", "name", "none")
    assert f"damaged: {runs / 'none-0'} (JSONDecodeError" in text
    assert f"unfinished: {runs / 'none-1'}" in text
    assert f"damaged: {runs / 'none-2'} (KeyError" in text
    with pytest.raises(UserError, match="no finished run below"):
        report([runs / "none-0"], "table", "name", "none")


def test_two_hundred_runs(tmp_path):
    for seed in range(200):
        write(tmp_path / f"{seed}", 0.9, seed=seed % 10, prune={"ratio": (seed // 10) / 20})
    began = time.perf_counter()
    found, unread = gather([tmp_path])
    assert len(found) == 200 and not unread
    assert len(lines(tmp_path)) == 20
    assert time.perf_counter() - began < 30, "5 s on a machine that does nothing else"


def test_one_value_has_no_interval():
    assert interval([1.0]) != interval([1.0])
    assert interval([1.0, 1.0]) == 0


@pytest.mark.parametrize("by_scale", [True, False])
def test_only_scales_are_drawn_as_scales(by_scale):
    scored = {"scores": {"a": [0.1, 0.2]}, "kept": {"a": 1}, "by_scale": by_scale}
    run = Drawn("row", "digits vgg11", "slimming", 1e6, 0.9, "travel 6.6", 0.5, **scored)
    drawn = figures([run])
    plt.close("all")
    assert ("scales" in drawn) == by_scale
    assert "kept_channels" in drawn
