"""The commands as a user types them: results, and one line for every mistake."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import chanprune
from chanprune.config import cli
from tests.commands import TINY, call, call_afresh, train
from tests.networks import but_slow

METHODS = (
    "cucb, final_random, fixed_random, idp, l1norm, lgc, none, prioritized, random, "
    "random_every_step, selectconv, slimming"
)

MISTAKES = [
    (
        "method=slimmin",
        f"method=slimmin: no such choice; choose from: {METHODS} (did",
    ),
    ("model=vgg99", "vgg11, vgg13, vgg16, vgg19 (did you mean vgg19?)"),
    ("experiment=slimming/vgg", "choose from: cucb/densenet40_cifar10"),
    ("train.epochz=3", "train.epochz: unknown key; known here: epochs, batch_size"),
    ("+train.foo=3", "train.foo: unknown key"),
    ("epochs=3", "epochs: unknown key; known here: seed, device"),
    ("method.travle=3", "(did you mean travel?)"),
    ("train.epochs=1.5", "train.epochs=1.5: must be an integer >= 0"),
    ("train.lr=abc", "train.lr=abc: must be a number > 0"),
    ("train.lr=nan", "train.lr=nan: must be a number > 0"),
    ("prune.ratio=1.0", "prune.ratio=1.0: must be a number in [0, 1)"),
    ("prune.ratio=-0.1", "prune.ratio=-0.1: must be a number in [0, 1)"),
    ("seed=-1", "seed=-1: must be an integer in [0, 4294967296)"),
    ("seed=99999999999999999999", "must be an integer in [0, 4294967296)"),
    ("model=null", "model=null: no such choice; choose from: c2f, compact, condensenet110"),
    ("method=", f"method=: no such choice; choose from: {METHODS}"),
    ("slimming", "slimming: must be KEY=VALUE"),
    ("--epochs 3", "--epochs: unknown flag"),
    ("--config-di=mine --config-nam=x", "--config-di=mine: unknown flag"),
    ("train.lr=0.1,0.2", "several values are several runs, which need the flag -m"),
    ("model.head=fc51", "must be one of linear, fc512 (did you mean fc512?)"),
    ("train.schedule=[1,2", "train.schedule=[1,2: cannot be parsed"),
    ("train.milestones=[0.75,0.5]", "train.milestones=[0.75, 0.5]: must be ascending"),
    ("cache.dir=/dev/null/x", "cache.dir=/dev/null/x cannot be written: /dev/null is not a dir"),
    ("run.dir=/dev/null/x", "run.dir=/dev/null/x cannot be written: /dev/null is not a directory"),
    ("--config-dir=nowhere", "--config-dir=nowhere: there is no such folder"),
    ("--config-name=other", "--config-name=other: not taken here; --config-dir=FOLDER adds"),
    ("--experimental-rerun=x.pickle", "--experimental-rerun=x.pickle: not taken here"),
    ("dataset.image_size=100000", "dataset.image_size=100000: must be an integer in [1, 8192]"),
    ("dataset.pad=100000", "dataset.pad=100000: must be an integer in [0, 1024]"),
    ("prune=5", "prune=5: must be a section"),
    ("prune.rule=prefix prune.round_to=8", "prune.round_to=8 goes with prune.rule=ratio; prefix"),
    ("prune.rule=elementwise prune.scope=layer", "prune.scope=layer goes with prune.rule=ratio"),
    ("prune.latency=5", "prune.latency=5: must be"),
    ("prune.latency.runtime=tpu", "must be one of eager, compiled, ort"),
    ("train=5", "train=5: must be a section"),
    ("model=[vgg11,vgg13]", "model=[vgg11,vgg13]: no such choice"),
    ("model.width=1e300", "model.width=1e+300: must be a number in (0, 64]"),
    ("dataset=imagefolder", "dataset.root is missing; give dataset.root=..."),
    ("dataset=imagefolder dataset.root=nowhere", "dataset.root=nowhere does not exist"),
    ("method.travel=1 method.sparsity_weight=1e-4", "not both"),
    ("method=idp method.levels=[0,0.5]", "must be a list of numbers in (0, 1]"),
    ("method=prioritized method.levels=[1.0,0.5]", "must be ascending and distinct"),
    ("method=prioritized method.levels=[0.5,0.5]", "must be ascending and distinct"),
    ("method=prioritized method.levels=[]", "must be ascending and distinct, at least one"),
    ("method.levels=[0.5,1.0]", "needs prune.order=true"),
    ("method=cucb prune.ratio=1", "prune.ratio=1: must be a number in [0, 1)"),
    ("method=cucb method.every=-1", "method.every=-1: must be an integer >= 0"),
    ("method=cucb method.normalise=l1", "must be one of l2, max, rms, none"),
    ("method=fixed_random prune.widths=nowhere", "there is no plan.json of a finished run"),
    ("method=idp method.levels=[1.0] method.sandwich=true", "needs several levels"),
    ("method=idp method.profile=liner", "(did you mean linear?)"),
    ("prune.order=true method.passes=2", "prune.order=true goes with method.passes=1"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_gets_one_line_and_leaves_nothing(arguments, message, tmp_path):
    asked = train(*arguments.split(), cwd=tmp_path)
    assert asked.returncode == 2
    assert asked.stdout == ""
    assert asked.stderr.startswith("chanprune: error: ") and message in asked.stderr
    assert asked.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


LATER_MISTAKES = [
    ("dataset.image_size=8", "takes images of 16 x 16 pixels or more, not 8 x 8"),
    ("dataset=cifar10 dataset.root=none", "CIFAR-10 is not in"),
    ("dataset=imagefolder dataset.root=bad.zip", "not a readable zip archive"),
    ("device=cuda", "PyTorch finds no GPU here"),
]


@pytest.mark.parametrize(("arguments", "message"), LATER_MISTAKES)
def test_mistakes_that_need_a_look_are_refused_before_the_run_begins(arguments, message, tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 and no more")
    asked = train(*arguments.split(), "run.dir=out", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert asked.returncode == 2
    assert asked.stderr.startswith("chanprune: error: ") and message in asked.stderr
    assert asked.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_traceback_is_there_for_who_asks(tmp_path):
    asked = train("prune.ratio=2", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert "Traceback" in asked.stderr and asked.returncode != 0


def test_failures_while_running_have_their_own_exit_code(tmp_path):
    asked = train(*TINY, "train.lr=1e30", "run.dir=out", cwd=tmp_path)
    assert asked.returncode == 3
    assert asked.stderr.count("\n") == 1
    assert "the loss of stage train became NaN or infinite at step" in asked.stderr


def test_errors_and_help_come_without_pytorch(tmp_path):
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import runpy\n"
        "sys.argv = ['train', *{argument!r}.split()]\n"
        "runpy.run_module('chanprune.train', run_name='__main__')\n"
    )
    wrong = ("prune.ratio=2", "model=vgg1", "prune.widths=nowhere")
    helps = (("--help", 0), ("--help method=cucb model=vgg16 dataset=digits", 0))
    for argument, code in (*helps, *((mistake, 2) for mistake in wrong)):
        asked = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program.format(argument=argument)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert asked.returncode == code, asked.stderr
        assert "Traceback" not in asked.stderr


def test_help_lists_the_choices(tmp_path):
    asked = train("--help", cwd=tmp_path)
    assert asked.returncode == 0
    for word in ("slimming", "vgg19", "imagefolder", "prune.ratio=0.5"):
        assert word in asked.stdout


def test_summarize_counts_without_data(tmp_path):
    asked = call(
        *("chanprune.summarize", "model=vgg16", "dataset=cifar10", "format=json"), cwd=tmp_path
    )
    counts = json.loads(asked.stdout)
    assert (counts["params"], counts["macs"]) == (14_724_042, 313_201_664)
    assert sum(layer["params"] for layer in counts["layers"]) == counts["params"]
    assert sum(layer["macs"] for layer in counts["layers"]) == counts["macs"]
    table = call("chanprune.summarize", "model=vgg16", "dataset=cifar10", cwd=tmp_path).stdout
    assert "14,724,042" in table and "626,403,328" in table
    wrong = call("chanprune.summarize", "format=xml", cwd=tmp_path)
    assert wrong.returncode == 2 and "must be one of table, json" in wrong.stderr
    assert list(tmp_path.iterdir()) == []


def test_train_then_evaluate_then_again(tmp_path):
    asked = train(*TINY, "run.dir=out", cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    assert asked.stderr == ""
    assert "pruned, constants absorbed" in asked.stdout
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    recorded = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert recorded["config"]["train"]["epochs"] == 1 and "torch" in recorded["environment"]

    measured = call("chanprune.evaluate", "run=out", "format=json", cwd=tmp_path)
    result = json.loads(measured.stdout)
    assert result.pop("fidelity") == 1.0
    assert result == {key: summary[key] for key in ("accuracy", "params", "macs")}
    several = call("chanprune.evaluate", "run=out", "fidelity=0.5,1.0", "format=json", cwd=tmp_path)
    half, whole = json.loads(several.stdout)
    assert whole == {"fidelity": 1.0, **result} and half["macs"] < whole["macs"]
    assert "test accuracy" in call("chanprune.evaluate", "run=out", cwd=tmp_path).stdout

    again = train(*TINY, "run.dir=out", cwd=tmp_path)
    assert again.returncode == 0 and "finished" in again.stdout
    other = train(*TINY, "run.dir=out", "seed=1", cwd=tmp_path)
    assert other.returncode == 2 and "another configuration" in other.stderr
    before = (tmp_path / "out/model.safetensors").read_bytes()
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary
    (tmp_path / "out/train-notes").mkdir()
    (tmp_path / "out/notes.png").write_text("mine")
    replaced = train(*TINY, "run.dir=out", "seed=1", "run.overwrite=true", cwd=tmp_path)
    assert replaced.returncode == 0
    assert (tmp_path / "out/train-notes").is_dir() and (tmp_path / "out/notes.png").exists()
    assert (tmp_path / "out/model.safetensors").read_bytes() != before
    lines = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"out", "outputs"}
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["cache"]


def test_the_default_directory_is_named_after_the_configuration(tmp_path):
    options = ("method=none", *TINY)
    assert train(*options, cwd=tmp_path).returncode == 0
    (made,) = (tmp_path / "outputs/digits").iterdir()
    assert made.name.startswith("vgg11-none-") and len(made.name) == len("vgg11-none-") + 8
    assert chanprune.load(made).input_shape == (1, 16, 16)


def test_a_directory_with_other_files_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    for options in ((), ("run.overwrite=true",)):
        asked = train(*TINY, "run.dir=mine", *options, cwd=tmp_path)
        assert asked.returncode == 2 and "holds no run" in asked.stderr
    asked = train(*TINY, "run.dir=mine/thesis.txt", cwd=tmp_path)
    assert asked.returncode == 2 and "is a file" in asked.stderr
    assert (tmp_path / "mine/thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("text", ["title: my page\n", "a: {b", "[1]", ""])
def test_a_config_yaml_of_another_program_makes_no_run(text, tmp_path):
    mine = tmp_path / "mine"
    (mine / "train/cat").mkdir(parents=True)
    (mine / "train/cat/1.png").write_text("precious")
    (mine / "photo.png").write_text("precious")
    (mine / "config.yaml").write_text(text)
    (mine / "summary.json").write_text("{}")
    before = sorted(mine.rglob("*"))
    for asked in (
        train(*TINY, "run.dir=mine", cwd=tmp_path),
        train(*TINY, "run.dir=mine", "run.overwrite=true", cwd=tmp_path),
        call("chanprune.evaluate", "run=mine", cwd=tmp_path),
    ):
        assert asked.returncode == 2 and asked.stderr.count("\n") == 1
        assert "holds no run" in asked.stderr or "no finished run is there" in asked.stderr
    assert sorted(mine.rglob("*")) == before and (mine / "config.yaml").read_text() == text


@pytest.mark.parametrize("method", ["slimming", "prioritized"])
def test_a_network_without_scales_is_refused_in_one_line(method, tmp_path):
    asked = train(*TINY, f"method={method}", "model.norm=false", "run.dir=out", cwd=tmp_path)
    assert asked.returncode == 2 and asked.stderr.count("\n") == 1
    assert "VGG has no batch norms" in asked.stderr and "model.norm=true" in asked.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_optional_choice_can_be_null(tmp_path):
    asked = call("chanprune.summarize", "experiment=null", "format=json", cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr


def test_evaluating_what_is_no_run_is_refused(tmp_path):
    for arguments, message in (
        (["run=nowhere"], "no finished run is there"),
        ([], "run is missing; give run=..."),
        (
            ["run=x", "fromat=json"],
            "fromat: unknown key; known here: format, run, components, fidelity",
        ),
        (["run=x", "fidelity=0,1"], "must be a list of numbers in (0, 1], such as [0.5,0.75]"),
    ):
        asked = call("chanprune.evaluate", *arguments, cwd=tmp_path)
        assert asked.returncode == 2
        assert message in asked.stderr and asked.stderr.count("\n") == 1


def test_broken_configuration_files_are_named(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/experiment").mkdir()
    (tmp_path / "mine/experiment/odd.yaml").write_text("train: {epochs: 3\nlr: : 5\n")
    asked = train("--config-dir=mine", "+experiment=odd", cwd=tmp_path)
    assert asked.returncode == 2
    assert asked.stderr.count("\n") == 1 and "odd.yaml:" in asked.stderr


def test_a_users_own_experiment_is_found(tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/small.yaml").write_text(
        "# @package _global_\nmodel: {width: 0.5}\n"
    )
    asked = call(
        *("chanprune.summarize", "--config-dir=mine", "experiment=small", "format=json"),
        cwd=tmp_path,
    )
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["params"] < 4_000_000


@given(name=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1))
@settings(deadline=None, max_examples=30)
def test_a_path_may_have_any_name(name):
    assume("${" not in name and name[0] not in "'\"" and name != "null")
    keys = ("run.dir", "cache.dir")
    composed = cli.composed("config", cli.checked([f"{key}={name}" for key in keys], sweeps=False))
    assert composed["run"]["dir"] == composed["cache"]["dir"] == name


def test_a_path_may_begin_in_the_home_directory(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    asked = train("run.dir=~/thesis.txt", cwd=tmp_path, HOME=str(tmp_path))
    assert f"run.dir={tmp_path}/thesis.txt is a file" in asked.stderr


HEADED = "# @package _global_\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prune: {ratio: 0.5}\n", "its first line must be `# @package _global_`, not 'prune: {"),
        (b"# mine\n# @package _global_\n", "not '# mine'"),
        (b"", "not ''"),
        (b"\xef\xbb\xbf# @package _global_\n", "begins with a byte-order mark"),
        (b"# @package _global_\n# Gr\xf6\xdfe\n", "it is not UTF-8 text"),
        (b"# @package _global_\na: {b\n", "line 3: "),
        (b"# @package _global_\na: &a [*a, *a]\n", "its aliases make too much of it"),
    ],
)
def test_a_users_experiment_is_read_as_it_is_meant_or_refused(content, message, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/odd.yaml").write_bytes(content)
    asked = call("chanprune.summarize", "--config-dir=mine", "experiment=odd", cwd=tmp_path)
    assert asked.returncode == 2, asked.stderr
    assert asked.stderr.count("\n") == 1 and "odd.yaml" in asked.stderr and message in asked.stderr


CALLBACK = "{_target_: shutil.copyfile, src: secret, dst: stolen}"
ODD_FILES = {
    "a callback": {"experiment/odd.yaml": f"{HEADED}hydra: {{callbacks: {{x: {CALLBACK}}}}}\n"},
    "a launcher": {
        "experiment/odd.yaml": f"{HEADED}defaults: [override /hydra/launcher: odd]\n",
        "hydra/launcher/odd.yaml": CALLBACK,
    },
    "a callback of a group": {
        "experiment/odd.yaml": HEADED,
        "hydra/callbacks/odd.yaml": f"x: {CALLBACK}\n",
    },
    "an environment": {"experiment/odd.yaml": f"{HEADED}hydra: {{job: {{env_set: {{A: b}}}}}}\n"},
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_a_strangers_folder_runs_no_code(kind, tmp_path):
    (tmp_path / "secret").touch()
    for name, content in ODD_FILES[kind].items():
        (tmp_path / "odd" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "odd" / name).write_text(content)
    chosen = ["experiment=odd"]
    chosen += ["hydra/callbacks=odd"] if kind.endswith("group") else []
    for command in (("chanprune.summarize",), ("chanprune.train", "-m")):
        asked = call(*command, "--config-dir=odd", *chosen, cwd=tmp_path)
        assert asked.returncode == 2, asked.stderr
        assert "can run any code" in asked.stderr and asked.stderr.count("\n") == 1
        assert not (tmp_path / "stolen").exists()
    if kind == "a callback":
        trusting = ("--config-dir", "odd", "--trust-config", "format=json")
        call("chanprune.summarize", *trusting, *chosen, cwd=tmp_path)
        assert (tmp_path / "stolen").exists()


COMMANDS = [
    "chanprune.train --cfg job",
    "chanprune.train --help",
    "chanprune.summarize model=vgg16",
    f"chanprune.train {' '.join(TINY)} method=none cache.enabled=false",
]


@pytest.mark.parametrize("command", but_slow(COMMANDS, *COMMANDS[1:]))
def test_nobody_has_to_read_the_output_to_its_end(command, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    asked = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=tmp_path,
        stdout=writer,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        check=False,
    )
    assert asked.stderr.count("\n") <= 1 and "Traceback" not in asked.stderr, asked.stderr


def test_the_wheel_carries_the_configuration(tmp_path):
    """Build the wheel, unpack it, and run it from there."""
    source = Path(__file__).parents[1]
    built = call_afresh("hatchling", "build", "-t", "wheel", "-d", str(tmp_path), cwd=source)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "configs").mkdir()  # as another distribution may leave it
    asked = call_afresh(
        *("chanprune.summarize", "model=vgg19", "format=json"),
        cwd=tmp_path,
        PYTHONPATH=str(site),
    )
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["params"] == 20_033_866
    asked = call_afresh("chanprune.reproduce", "--list", cwd=tmp_path, PYTHONPATH=str(site))
    assert "slimming-cifar10: Network Slimming" in asked.stdout, asked.stderr


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
@pytest.mark.slow
def test_a_compiled_network_trains(tmp_path):
    options = (*TINY, "train.compile=true", "run.dir=run")
    asked = call_afresh("chanprune.train", *options, cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    assert "fine-tuned" in asked.stdout and "MiB" not in asked.stdout
    assert chanprune.load(tmp_path / "run").training is False


@pytest.mark.slow
def test_without_a_compiler_a_run_that_needs_one_ends_in_one_line(tmp_path):
    nothing = {"CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    options = (*TINY, "train.compile=true", "run.dir=run")
    asked = call_afresh("chanprune.train", *options, cwd=tmp_path, **nothing)
    assert asked.returncode == 3
    last = asked.stderr.splitlines()[-1]
    assert last.startswith("chanprune: error: PyTorch cannot compile the network")
    assert "Traceback" not in asked.stderr
