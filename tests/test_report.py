"""Reports over many runs, some of them damaged."""

import csv
import io
import json
import os
import shutil
import time

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from playwright.sync_api import sync_playwright

from chanprune.report import draw, drawn, report
from chanprune.show.report_figures import Drawn, figures
from chanprune.show.report_runs import Row, Run, gather, group, method_of
from chanprune.show.report_table import baseline_of, difference, interval, line
from tests.commands import call
from tests.test_pipeline import changed

ACCURACIES = {"none": (0.90, 0.92, 0.94), "slimming": (0.89, 0.93, 0.94)}


def write(folder, accuracy, test=None, environment=None, **sections):
    """Write what a report reads of a run; its test accuracy is half of the other, or `test`."""
    folder.mkdir(parents=True)
    record = {"config": changed(**sections), "environment": environment or {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(record))
    cost = {"macs": 10, "images": 2, "seconds": 1.0, "activation_bytes": 3}
    test = accuracy / 2 if test is None else test
    stage = {"val_accuracy": accuracy, "test_accuracy": test, "macs": 2000, "fidelity": 1.0}
    summary = {
        "accuracy": test,
        "params": 1000,
        "macs": 2000,
        "cost": {"train": cost, "finetune": cost, "whole_network_step": cost},
        "stages": [{**stage, "val_accuracy": 1.0}, stage, {**stage, "fidelity": 0.5}],
    }
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def runs(tmp_path):
    for method, accuracies in ACCURACIES.items():
        for seed, accuracy in enumerate(accuracies):
            write(tmp_path / f"{method}-{seed}", accuracy, seed=seed, method={"name": method})
    write(tmp_path / "other", 0.5, prune={"ratio": 0.75})
    return tmp_path


def rows_of(folder):
    return group(gather([folder])[0])[0]


def text_of(folder, form="table", sort="name"):
    return report(rows_of(folder), [], form, sort)


def lines(folder):
    """Return what people see, by row."""
    rows = rows_of(folder)
    return {row.name: line(row, baseline_of(row, rows, "none")) for row in rows}


def records(folder, sort="name"):
    return list(csv.DictReader(io.StringIO(text_of(folder, "csv", sort))))


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
    assert row["val acc %"] == f"92.00 ± {4.3027 * 2.6458 / 3**0.5:.2f}"
    assert row["test acc %"] == f"46.00 ± {4.3027 * 2.6458 / 2 / 3**0.5:.2f}"
    assert row["difference"] == f"+0.00 ± {4.3027 * 1 / 3**0.5:.2f}"
    assert row["test difference"] == f"+0.00 ± {4.3027 * 0.5 / 3**0.5:.2f}"
    alone = found["digits vgg11 slimming prune.ratio=0.75"]
    assert alone["val acc %"] == "50.00" and alone["difference"] == "-40.00"


def test_columns_are_tidy(runs):
    """A number, and one, in every cell that is not a text; and where the runs are."""
    row = records(runs)[1]
    texts = {key: row.pop(key) for key in ("run", "control_of", "paths")}
    assert texts["run"] == "digits vgg11 slimming prune.ratio=0.5" and not texts["control_of"]
    assert texts["paths"].split(";") == [str(runs / f"slimming-{seed}") for seed in range(3)]
    values = {key: float(value) for key, value in row.items()}
    assert (values["n"], values["macs"], values["difference_n"]) == (3, 2000, 3)
    assert values["val_accuracy_percent"] == pytest.approx(92)
    half = values["val_accuracy_percent_half_width"]
    assert half == pytest.approx(4.3027 * 2.6458 / 3**0.5, rel=1e-4)
    assert records(runs)[2]["val_accuracy_percent_half_width"] == ""


def run_of(seed, val, test=0.5, method="slimming", dataset="digits", model="vgg11"):
    config = {"method": {"name": method}, "dataset": {"name": dataset}, "model": {"name": model}}
    return Run(None, config, config["model"], seed, val, test, 1, 1, 1.0, 1.0)


def row_of(values, **options):
    return Row("x", {seed: run_of(seed, value, **options) for seed, value in enumerate(values)})


ACCURACY = st.floats(0, 1)


@given(st.lists(st.tuples(ACCURACY, ACCURACY), min_size=1, max_size=6), ACCURACY)
def test_a_difference_is_marked_where_its_interval_leaves_out_zero_and_nowhere_else(pairs, test):
    """Whatever the test accuracies are: what is marked is what one may choose by."""
    row = row_of([own for own, _ in pairs], test=test)
    baseline = row_of([theirs for _, theirs in pairs], method="none", test=1 - test)
    gains = 100 * np.array([own - theirs for own, theirs in pairs])
    half = interval(gains)
    low, high = gains.mean() - half, gains.mean() + half
    assert ("*" in line(row, baseline)["difference"]) == (low > 0 or high < 0)


def test_a_difference_just_inside_its_interval_is_not_marked():
    gains = np.array([0.01, 0.02, 0.03])
    half = interval(list(gains))
    for share, marked in ((0.9, False), (1.1, True)):
        own = 0.5 + gains - gains.mean() + share * half
        assert ("*" in line(row_of(own), row_of([0.5] * 3))["difference"]) == marked


@pytest.mark.parametrize("other", [{"dataset": "cifar10"}, {"model": "vgg16"}, {"method": "lgc"}])
def test_a_baseline_is_of_the_same_data_and_network(other):
    """And of the method that is asked for; of two that could be, neither is."""
    row = row_of([0.5])
    right, wrong = row_of([0.6], method="none"), row_of([0.7], **{"method": "none", **other})
    assert baseline_of(row, [row, wrong], "none") is None
    assert baseline_of(row, [wrong, row, right], "none") is right
    assert baseline_of(right, [row, right], "none") is None
    assert baseline_of(row, [row, right, row_of([0.6], method="none")], "none") is None


def test_differences_are_over_the_seeds_that_both_have():
    own, theirs = row_of([0.5, 0.6, 0.9]), row_of([0.4, 0.4], method="none")
    gain = difference(own, theirs, "val")
    assert (gain.number, round(gain.value, 6)) == (2, 15.0)


def test_rows_are_sorted_by_validation_accuracy(tmp_path):
    """Where test accuracy says the contrary."""
    for number, ratio in enumerate((0.1, 0.2, 0.3)):
        values = {"accuracy": 0.9 - ratio, "test": 0.5 + ratio}
        write(tmp_path / f"{number}", **values, prune={"ratio": ratio})
    found = [float(row["val_accuracy_percent"]) for row in records(tmp_path, "accuracy")]
    assert found == sorted(found, reverse=True) and len(set(found)) == 3


def test_the_formats(runs):
    assert "| run" in text_of(runs, "markdown")
    assert "\\toprule" in text_of(runs, "latex")
    assert "3 " in text_of(runs, "table")


def test_the_line_of_the_picture_joins_what_no_other_beats_on_validation(tmp_path):
    """Rings show the test set, of which the line knows nothing."""
    for number, (val, test) in enumerate(((0.8, 0.3), (0.6, 0.9))):
        write(tmp_path / f"{number}", val, test, prune={"ratio": number / 10})
    figure, _ = figures(drawn(rows_of(tmp_path)))["accuracy_over_macs"]
    front, dots, rings = figure.axes[0].lines
    plt.close("all")
    assert list(front.get_ydata()) == [80.0]
    assert sorted(dots.get_ydata()) == [60.0, 80.0] and sorted(rings.get_ydata()) == [30.0, 90.0]
    assert rings.get_fillstyle() == "none" and rings.get_color() == dots.get_color()


def test_a_run_has_the_same_colour_however_rows_are_sorted(runs):
    """In the pictures and on the page."""
    rows = rows_of(runs)
    orders = (rows, rows[::-1], rows[1:] + rows[:1])
    pages = [report(order, [], "html", sort) for order in orders for sort in ("name", "accuracy")]
    parts = {page[page.index("<figure>") : page.rindex("</figure>")] for page in pages}
    assert len(parts) == 1
    assert drawn(rows) == drawn(rows[::-1]) == drawn(rows[1:] + rows[:1])


def test_the_page_in_a_browser(runs, tmp_path):
    """Sorted by a click, and without a method; opened from disk, on a phone in dark mode."""
    browsers = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    if not any(browsers):
        pytest.skip("there is no Chromium here")
    file = tmp_path / "report.html"
    file.write_text(text_of(runs, "html"), encoding="utf-8")
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
        page.get_by_role("button", name="val acc %").click()
        assert shown.first.locator("td").nth(2).inner_text() == "50.00"
        page.get_by_role("button", name="val acc %").click()
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
    draw(rows_of(runs), tmp_path / "pictures")
    names = {path.stem for path in (tmp_path / "pictures").glob("*.png")}
    assert names == {"accuracy_over_macs", "accuracy_over_ratio", "scales", "kept_channels"}


def test_damaged_and_unfinished_runs_are_listed(runs):
    (runs / "none-0/summary.json").write_text("{")
    (runs / "none-1/summary.json").unlink()
    (runs / "none-2/summary.json").write_text("{}")
    told = call("chanprune.report", str(runs), cwd=runs)
    assert told.returncode == 0 and not told.stderr
    assert f"damaged, left out: {runs / 'none-0'} (it is not JSON)" in told.stdout
    assert f"unfinished: {runs / 'none-1'}" in told.stdout
    assert f"damaged, left out: {runs / 'none-2'} (accuracy: Field required)" in told.stdout
    nothing = call("chanprune.report", "none-0", cwd=runs)
    assert nothing.returncode == 2 and "no finished run below none-0" in nothing.stderr


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
    run = Drawn("row", "digits vgg11", "slimming", 1e6, 0.9, 0.8, "travel 6.6", 0.5, **scored)
    drawn = figures([run])
    plt.close("all")
    assert ("scales" in drawn) == by_scale
    assert "kept_channels" in drawn


def test_a_uniform_control_is_told_from_a_run_of_its_method(tmp_path):
    """Nothing in its configuration names the run that it is of, and its ratio differs by seed."""
    for seed in (0, 1):
        run, l1norm = tmp_path / f"run-{seed}", {"name": "l1norm", "shares": {}}
        write(run, 0.9, seed=seed)
        write(tmp_path / f"own-{seed}", 0.8, seed=seed, method=l1norm, prune={"ratio": 0.4})
        control = {"control": {"name": "uniform", "of": str(run)}}
        options = {"seed": seed, "method": l1norm, "prune": {"ratio": 0.4 + seed / 100}}
        write(tmp_path / f"control-{seed}", 0.7, environment=control, **options)
    names = {row["run"]: (row["n"], row["control_of"]) for row in records(tmp_path)}
    assert names == {
        "digits vgg11 l1norm": ("2", ""),
        "digits vgg11 slimming": ("2", ""),
        "digits vgg11 uniform of [slimming]": ("2", "slimming"),
    }
    assert "2 configurations, 4 runs; 1 controls, 2 runs" in text_of(tmp_path, "html")


def test_two_results_of_one_configuration_and_seed_are_told(tmp_path):
    """A copy of a run is not another result."""
    write(tmp_path / "a", 0.9)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    write(tmp_path / "b", 0.9, test=0.44)
    rows, doubles = group(gather([tmp_path])[0])
    assert [len(row.runs) for row in rows] == [1]
    (told,) = doubles
    assert f"not in the table: {tmp_path / 'b'} (90.00 % on val, 44.00 % on test)" in told
    assert f"{tmp_path / 'a'} (90.00 % on val, 45.00 % on test)" in told
    assert told in call("chanprune.report", ".", str(tmp_path), cwd=tmp_path).stdout.replace(
        " b (", f" {tmp_path / 'b'} ("
    ).replace(" a (", f" {tmp_path / 'a'} (")


def test_nothing_but_the_table_goes_into_a_file(runs):
    """Pictures and what could not be read are told on stderr."""
    (runs / "none-0/summary.json").write_text("{")
    for form in ("csv", "latex"):
        told = call("chanprune.report", ".", "--pictures", "drawn", "--format", form, cwd=runs)
        assert told.returncode == 0
        assert told.stdout.rstrip("\n") == text_of(runs, form).replace(f"{runs}/", "")
        assert "picture: drawn/accuracy_over_macs.png" in told.stderr
        assert "damaged, left out: none-0" in told.stderr
    assert (runs / "drawn/accuracy_over_macs.png").exists()


HOSTILE = (
    "=cmd|' /C calc'!A0",
    "+1",
    "-1+1",
    "@SUM(A1)",
    "<script>alert(1)</script>",
    "a|b",
    "x&y_$%#",
)


def test_names_from_files_are_texts_everywhere(tmp_path):
    for number, name in enumerate([*HOSTILE, "\x1b[2Jgone\x07", "\u202eright to left"]):
        write(tmp_path / f"{number}", 0.5, dataset={"name": name}, model={"name": name})
    for form in ("table", "markdown", "csv", "latex", "html"):
        text = text_of(tmp_path, form)
        assert all(c.isprintable() or c == "\n" for c in text.partition("<figure>")[0])
        assert "<script>alert" not in text or form != "html"
        if form == "latex":
            assert "x\\&y\\_\\$\\%\\#" in text
        if form == "markdown":
            body = [row for row in text.splitlines() if row.startswith("|")]
            assert {row.replace("\\|", "").count("|") for row in body} == {body[0].count("|")}
    cells = [value for row in records(tmp_path) for value in row.values()]
    for value in cells:
        assert not value.startswith(("=", "+", "@"))
        assert not value.startswith("-") or float(value) < 0


LAUGHS = "config: {a0: &a0 [x,x,x,x,x,x,x,x,x,x]" + "".join(
    f", a{i}: &a{i} [" + ",".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, 9)
)
LAUGHS += ", seed: 0, model: {name: a}, method: {name: m}, dataset: {name: b}}\nenvironment: {}\n"


def summary_with(**values):
    def damage(folder):
        path = folder / "summary.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


def config_with(old, new):
    def damage(folder):
        path = folder / "config.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return damage


def without(name, make=None):
    def damage(folder):
        (folder / name).unlink()
        if make:
            make(folder / name)

    return damage


ODD_RUNS = {
    "cost a number": summary_with(cost=3),
    "accuracy a text": summary_with(accuracy="x"),
    "accuracy above 1": summary_with(accuracy=1e9),
    "no stage": summary_with(stages=[]),
    "seed a list": config_with("seed: 0", "seed: [1]"),
    "seed a truth": config_with("seed: 0", "seed: true"),
    "name a date": config_with("name: vgg11", "name: 2020-01-01"),
    "name a section": config_with("name: vgg11", "name: {x: 1}"),
    "name of bytes": config_with("name: vgg11", "name: !!binary eA=="),
    "no method": config_with("name: slimming", "nam: slimming"),
    "names itself": config_with("widths: null", "widths: bad"),
    "ratio infinite": config_with("ratio: 0.5", "ratio: .inf"),
    "billion laughs": lambda folder: (folder / "config.yaml").write_text(LAUGHS),
    "a circle": lambda folder: (folder / "config.yaml").write_text("config: &a {b: *a}\n"),
    "deep": lambda folder: (folder / "config.yaml").write_text("[" * 10**5),
    "zeros": lambda folder: (folder / "config.yaml").write_bytes(bytes(99)),
    "a pipe": without("summary.json", os.mkfifo),
    "a folder": without("summary.json", os.mkdir),
    "endless": without("config.yaml", lambda path: path.symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("kind", ODD_RUNS)
def test_one_odd_run_does_not_end_a_report(kind, tmp_path):
    write(tmp_path / "good", 0.5)
    write(tmp_path / "bad", 0.6)
    ODD_RUNS[kind](tmp_path / "bad")
    began = time.perf_counter()
    found, notes = gather([tmp_path])
    assert [run.folder.name for run in found] == ["good"]
    (note,) = notes
    assert str(tmp_path / "bad") in note and note.isprintable() and len(note) < 400
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    "passes", [[{"scores": {"a": []}}], [{"scores": {"a": ["x"]}}], [{}], "x", [3], None]
)
def test_an_odd_plan_is_not_drawn(passes, runs):
    (runs / "other/plan.json").write_text(json.dumps({"kept": {"a": [0]}, "passes": passes}))
    (runs / "slimming-0/plan.json").write_text("[" * 10**5)
    assert set(figures(drawn(rows_of(runs)))) == {"accuracy_over_macs"}
    plt.close("all")


@pytest.mark.parametrize("weight", ["x", [1], {"x": 1}, True, 1e308])
def test_an_odd_sparsity_weight_is_drawn_as_the_default(weight, tmp_path):
    write(tmp_path / "run", 0.5, method={"name": "slimming", "sparsity_weight": weight})
    assert drawn(rows_of(tmp_path))[0].weight


def test_runs_that_a_criterion_pruned_are_no_baseline():
    method = {"name": "none"}
    assert method_of({"method": method}) == "none"
    assert method_of({"method": method, "criterion": {"name": "own"}}) == "none"
    assert method_of({"method": method, "criterion": {"name": "l1"}}) == "none+l1"
