"""The installed command: `chanprune train` is `python -m chanprune.train`."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import chanprune
from chanprune.__main__ import commands
from tests.commands import TINY, call, call_afresh
from tests.networks import but_slow

SCRIPT = "import sys\nfrom chanprune.__main__ import main\nsys.exit(main())\n"


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """Return what an installer writes for the entry point, in a folder of its own."""
    path = tmp_path_factory.mktemp("bin") / "chanprune"
    path.write_text(f"#!{sys.executable}\n{SCRIPT}")
    path.chmod(0o755)
    return path


def typed(script: Path, *arguments: str, cwd: Path, **environment: str):
    """Run the script as a shell does."""
    root = str(Path(chanprune.__file__).parents[1])
    return subprocess.run(
        [script, *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_entry_point_is_the_one_that_is_tested_here():
    found = importlib.metadata.distribution("chanprune").entry_points.select(
        group="console_scripts"
    )
    targets = {point.name: point.value for point in found}
    assert targets in ({}, {"chanprune": "chanprune.__main__:main"})  # {}: installed before
    text = (Path(chanprune.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert '\nchanprune = "chanprune.__main__:main"\n' in text


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_alone_it_lists_the_commands_without_importing_pytorch(script, arguments, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('imported')")
    path = f"{tmp_path}:{Path(chanprune.__file__).parents[1]}"
    listed = typed(script, *arguments, cwd=tmp_path, PYTHONPATH=path)
    assert listed.returncode == 0 and listed.stderr == ""
    rows = [line.split(maxsplit=1) for line in listed.stdout.splitlines() if line[:2] == "  "]
    assert [name for name, _ in rows] == list(commands())
    assert ["cache", "List or delete the trained stages that are kept"] in rows
    assert all(len(line) > 10 and "`" not in line for _, line in rows)


def test_versions_are_those_that_are_installed(script, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('imported')")
    path = f"{tmp_path}:{Path(chanprune.__file__).parents[1]}"
    told = typed(script, "--version", cwd=tmp_path, PYTHONPATH=path).stdout
    found = dict(line.split() for line in told.splitlines())
    assert found["chanprune"] == chanprune.__version__
    assert found["Python"] == ".".join(map(str, sys.version_info[:3]))
    for name in found.keys() - {"chanprune", "Python"}:
        assert found[name] == importlib.metadata.version(name)
    assert found.keys() >= {"torch", "torchvision", "hydra-core"}


def test_a_command_that_is_not_there_gets_one_line(script, tmp_path):
    for arguments, message in (
        (("trian", "model=vgg16"), "trian: no such command; choose from: atlas, "),
        (("trian",), "(did you mean train?)"),
        (("__main__",), "__main__: no such command"),
        (("-sc", "install=tcsh"), "-sc goes with one of install=bash"),
    ):
        wrong = typed(script, *arguments, cwd=tmp_path)
        assert wrong.returncode == 2 and wrong.stdout == ""
        assert wrong.stderr.startswith("chanprune: error: ") and message in wrong.stderr
        assert wrong.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "name", but_slow(list(commands()), *commands().keys() - {"cache", "evaluate", "report"})
)
def test_every_command_says_how_it_was_called(name, script, tmp_path):
    asked = typed(script, name, "--help", cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    assert f"chanprune {name}" in asked.stdout and "python -m" not in asked.stdout
    if name == "cache":
        asked = call_afresh("chanprune", name, "--help", cwd=tmp_path)
        assert f"python -m chanprune {name}" in asked.stdout
        asked = call_afresh(f"chanprune.{name}", "--help", cwd=tmp_path)
        assert f"python -m chanprune.{name}" in asked.stdout


def test_hints_name_what_was_called(script, tmp_path):
    asked = typed(script, "cache", "--dir", str(tmp_path), "prune", "x", cwd=tmp_path)
    assert "`chanprune cache list` shows what is" in asked.stderr
    asked = call("chanprune", "cache", "--dir", ".", "prune", "x", cwd=tmp_path)
    assert "`python -m chanprune cache list` shows what is" in asked.stderr
    asked = call("chanprune.cache", "--dir", ".", "prune", "x", cwd=tmp_path)
    assert "`python -m chanprune.cache list` shows what is" in asked.stderr


def test_a_run_is_the_same_either_way(tmp_path):
    options = (*TINY, "method=none", "criterion=l1", "dataset.share=0.2", "run.dir=out")
    assert call("chanprune", "train", *options, cwd=tmp_path).returncode == 0
    again = call("chanprune.train", *options, cwd=tmp_path)
    assert again.returncode == 0 and "holds this run, finished" in again.stdout
    resumed = call("chanprune", "train", "resume=out", cwd=tmp_path)
    assert resumed.returncode == 0 and "holds this run, finished" in resumed.stdout
    told = call("chanprune", "evaluate", "run=out", "format=json", cwd=tmp_path).stdout
    assert json.loads(told) == json.loads(
        call("chanprune.evaluate", "run=out", "format=json", cwd=tmp_path).stdout
    )


@pytest.mark.slow
def test_jobs_in_processes_of_their_own_begin_from_the_command(script, tmp_path):
    launched = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    options = (*TINY, "dataset.share=0.2", "prune.ratio=0.3,0.5", *launched)
    swept = typed(script, "train", "-m", *options, cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    assert swept.stdout.count("| done ") == 2
    together = call_afresh(
        *("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "chanprune"),
        *("train", *TINY, "dataset.share=0.2", "run.dir=together"),
        cwd=tmp_path,
    )
    assert together.returncode == 0, together.stderr
    assert "chanprune.load('together')" in together.stdout


COMPLETED = [
    ("chanprune ", list(commands())),
    ("chanprune tr", ["train"]),
    ("chanprune train method=sl", ["method=slimming"]),
    ("chanprune train method=slimming prune.target_m", ["prune.target_macs=", "prune.target_me"]),
    ("chanprune evaluate fo", ["format="]),
    ("chanprune report ", []),
    ("chanprune nothing ", []),
]


@pytest.mark.parametrize(("line", "words"), COMPLETED)
def test_a_line_is_completed(line, words, script, tmp_path):
    asked = typed(script, "-sc", "query=bash", cwd=tmp_path, COMP_LINE=line)
    assert asked.returncode == 0 and asked.stderr == ""
    found = asked.stdout.split()
    assert len(found) == len(words)
    assert all(whole.startswith(begun) for whole, begun in zip(found, words, strict=True))


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="there is no bash")
def test_bash_takes_what_completion_installs(script, tmp_path):
    program = (
        'eval "$(chanprune train -sc install=bash)"\ncomplete -p chanprune\n'
        'COMP_LINE="chanprune train method=sli" COMP_POINT=26 COMP_CWORD=2\n'
        'hydra_bash_completion\necho "${COMPREPLY[@]}"\n'
    )
    path = f"{script.parent}:{os.environ['PATH']}"
    root = str(Path(chanprune.__file__).parents[1])
    asked = subprocess.run(
        ["/bin/bash", "--norc", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.splitlines()[-1] == "method=slimming", asked.stderr
