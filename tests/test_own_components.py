"""Methods, models and data sets outside the package, as docs/own_components.md shows them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

import chanprune
from chanprune import components
from chanprune.channels import Plan, compact, count, trace
from chanprune.components.code import digest_of
from chanprune.components.source import source_of
from chanprune.models import build
from chanprune.processes.errors import UserError
from tests.commands import call, train
from tests.networks import but_slow

PAGE = Path(__file__).parents[1] / "docs" / "own_components.md"
FILE = re.compile(r"^`(\S+)`\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
MINE = ("components=mine", "--config-dir=mine/configs")
ALL = ("method=fpgm", "model=mobilenetv2", "dataset=arrays", "dataset.root=digits.npz")
SHORT = ("model.width=0.125", "train.epochs=1", "finetune.epochs=1", "device=cpu")


@pytest.fixture
def folder(tmp_path):
    """Return a folder with the page's files, and digits in a NumPy file."""
    for name, text in FILE.findall(PAGE.read_text(encoding="utf-8")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    images = np.repeat(load_digits().images[..., None] * 15, 3, axis=3).astype(np.uint8)
    labels = load_digits().target
    arrays = {"train_images": images[:200], "train_labels": labels[:200]}
    np.savez(
        tmp_path / "digits.npz", **arrays, test_images=images[200:260], test_labels=labels[200:260]
    )
    return tmp_path


@pytest.fixture
def known(folder):
    """Let this process know them, under a name of the test's own."""
    place = folder / "known" / f"of_{folder.name}"
    shutil.copytree(folder / "mine", place)
    components.use(str(place))
    yield str(place)
    components.use(None)


def test_the_page_has_a_file_of_each_kind():
    names = [name for name, _ in FILE.findall(PAGE.read_text(encoding="utf-8"))]
    assert len(names) == 8 and sum(name.endswith(".py") for name in names) == 4


def test_a_run_of_ones_own(folder, known):
    components.use(None)
    asked = train(*MINE, *ALL, *SHORT, "prune.ratio=0.5", "run.dir=out", cwd=folder)
    assert asked.returncode == 0, asked.stderr
    record = yaml.safe_load((folder / "out/config.yaml").read_text())
    assert record["config"]["method"] == {"name": "fpgm", "order": 2.0, "shares": {}}
    assert record["config"]["dataset"]["classes"] == 10
    assert "components" not in record["config"]
    assert record["environment"]["components"]["name"] == "mine"
    assert len(json.loads((folder / "out/plan.json").read_text())["kept"]) > 10

    evaluated = call("chanprune.evaluate", "run=out", "components=mine", "format=json", cwd=folder)
    summary = json.loads((folder / "out/summary.json").read_text())
    assert json.loads(evaluated.stdout)["accuracy"] == summary["accuracy"]
    for unknowing in (
        call("chanprune.evaluate", "run=out", cwd=folder),
        train("resume=out", cwd=folder),
        train("control=uniform", "control_of=out", cwd=folder),
    ):
        assert unknowing.returncode == 2 and unknowing.stderr.count("\n") == 1
        assert "was made with components=mine" in unknowing.stderr
    resumed = train("resume=out", "components=mine", cwd=folder)
    assert resumed.returncode == 0 and "finished" in resumed.stdout

    with pytest.raises(UserError, match="holds mobilenetv2, one of components=mine"):
        chanprune.load(folder / "out")
    model = chanprune.load(folder / "out", components=known)
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


def test_a_criterion_of_ones_own_prunes_to_a_budget(folder):
    options = ("model=vgg11", "model.width=0.25", "dataset.image_size=32", "dataset.num_classes=10")
    criterion = ("criterion=spread", "criterion.power=2.0", "prune.target_macs=0.5")
    asked = call("chanprune.prune", *MINE, *options, *criterion, "run.dir=cut", cwd=folder)
    assert asked.returncode == 0, asked.stderr
    stages = json.loads((folder / "cut/summary.json").read_text())["stages"]
    assert 0.495 <= stages[-1]["macs"] / stages[0]["macs"] <= 0.5
    other = call("chanprune.prune", *MINE, *options, *criterion[:2], "criterion.powr=2", cwd=folder)
    assert other.returncode == 2 and "criterion.powr: unknown key" in other.stderr


def test_summarize_and_help(folder):
    summed = call("chanprune.summarize", *MINE, *ALL, "format=json", cwd=folder)
    assert summed.returncode == 0, summed.stderr
    assert json.loads(summed.stdout)["params"] > 2_000_000
    listed = train(*MINE, "--help", cwd=folder).stdout
    for kind, name in (("method", "fpgm"), ("model", "mobilenetv2"), ("dataset", "arrays")):
        (line,) = [line for line in listed.splitlines() if line.startswith(f"{kind}: ")]
        assert name in line
    options = train(*MINE, *ALL, "--help", cwd=folder).stdout
    for line in ("method.order=2.0", "method.shares={}", "dataset.root=digits.npz"):
        assert f"  {line}\n" in options
    assert "the paper's is 2. A number in [1, 16]." in options.replace("\n      ", " ")


def test_a_sweep(folder):
    sweep = ("-m", *MINE, *ALL, *SHORT, "method.order=1.0,2.0")
    asked = train(*sweep, cwd=folder)
    assert asked.returncode == 0, asked.stderr
    assert len(list((folder / "outputs/arrays").iterdir())) == 2
    assert len(list((folder / "outputs/cache").glob("*/about.json"))) == 1


@pytest.mark.slow
def test_a_search(folder):
    pytest.importorskip("optuna")
    asked = call(
        *("chanprune.search", "--trials=2", "--config-dir=mine/configs", "components=mine", *ALL),
        *(*SHORT, "method.order=1.0,2.0"),
        cwd=folder,
    )
    assert asked.returncode == 0, asked.stderr


CHANGED = ["mine/mobilenetv2.py", "mine/helper.py"]


@pytest.mark.parametrize("changed", but_slow(CHANGED, *CHANGED))
def test_a_run_of_other_code_is_another_run(changed, folder):
    """Also where it is not in the file of the component, but in one that this imports."""
    (folder / "mine/helper.py").write_text("SCALE = 1\n")
    network = folder / "mine/mobilenetv2.py"
    network.write_text(
        network.read_text().replace("\nfrom torch", "\nfrom mine import helper\nfrom torch")
    )
    options = (*MINE, *ALL, *SHORT, "method=none")
    assert train(*options, "run.dir=a", cwd=folder).returncode == 0
    assert train(*options, cwd=folder).returncode == 0
    assert len(list((folder / "outputs/cache").glob("*/about.json"))) == 1
    with (folder / changed).open("a") as file:
        file.write("# changed\n")
    refused = train(*options, "run.dir=a", cwd=folder)
    assert refused.returncode == 2 and "made with other code than components=mine" in refused.stderr
    resumed = train("resume=a", "components=mine", cwd=folder)
    assert resumed.returncode == 2 and resumed.stderr == refused.stderr
    again = train(*options, cwd=folder)
    assert again.returncode == 0 and "holds this run" not in again.stdout
    assert len(list((folder / "outputs/arrays").iterdir())) == 2
    assert len(list((folder / "outputs/cache").glob("*/about.json"))) == 2


MISTAKES = [
    ("method.ordr=1", "method.ordr: unknown key; known here: name, order, shares (did you mean or"),
    ("method.order=0.5", "method.order=0.5: must be a number in [1, 16]"),
    ("method.shares=5", "method.shares=5: must be {NAME: a number in [0, 1)}"),
    ("model.width=100", "model.width=100: must be a number in (0, 64]"),
    ("dataset.classes=x", "dataset.classes=x: must be an integer >= 1"),
    ("method=fpgn", "slimming (did you mean fpgm?)"),
]


@pytest.mark.parametrize(("argument", "message"), MISTAKES)
def test_a_mistake_in_an_option_gets_one_line(argument, message, folder):
    before = sorted(folder.rglob("*"))
    asked = train(*MINE, *ALL, argument, cwd=folder)
    assert asked.returncode == 2 and asked.stderr.count("\n") == 1
    assert message in asked.stderr, asked.stderr
    assert sorted(folder.rglob("*")) == before


HEAD = "from chanprune.components import method, model\nfrom chanprune.methods import Method\n"
TAKES = "@method('fresh')\nclass A(Method):\n def __init__(self, {}): ..."
FILES = [
    ("@method('fpgm')\nclass A(Method): pass", "method fpgm is in "),
    ("@method('slimming')\nclass A(Method): pass", "is one of chanprune's"),
    ("def broken(:", "mine/new.py:3: invalid syntax"),
    ("import nothing\n@method('fresh')\nclass A(Method): pass", "ModuleNotFoundError: No module"),
    (
        "@method('fresh')\nclass A(Method):\n def __init__(self, x: Tensor = 0): pass",
        "x: Tensor",
    ),
    ("@method('fresh')\nclass A(Method):\n def __init__(self, x=0): pass", "x, without a type,"),
    ("@method('fresh')\nclass A(Method):\n def __init__(self, x: int = z()): pass", "x: int of fr"),
    ("@method('fresh')\nclass A(Method):\n def __init__(self, name: str): pass", "takes name, by"),
    ("@method(NAME)\nclass A(Method): pass", "takes names that are written out"),
    ("@model('fresh')\ndef a(width: float = 1.0): pass", "model fresh must take num_classes"),
    ("@method('unseen')\nclass A(Method): pass", "no file method/unseen.yaml chooses it"),
    (
        "@method('fresh')\nclass A(Method):\n @staticmethod\n def demands(method, config):\n"
        "  raise ValueError('not today')",
        "error: not today",
    ),
    (
        "@method('fresh')\nclass A(Method):\n @staticmethod\n def demands(method, config):\n"
        "  math.sqrt(2)",
        "may use built-in names alone (NameError: name 'math' is not defined)",
    ),
    ("import sys; sys.exit(0)\n@method('fresh')\nclass A(Method): pass", "SystemExit: 0"),
    (
        "N = 4\nN += 1\n" + TAKES.format("x: int = N"),
        "x: int",
    ),
    (
        "N = 4\n@method('fresh')\nclass A(Method):\n N = 7\n def __init__(self, x: int = N): ...",
        "x: int",
    ),
    ("class B(B): ...\n@method('fresh')\nclass A(B): ...", "extends itself"),
    (
        TAKES.format("x: Sequence[Sequence[int]] = ()"),
        "x: Seq",
    ),
    (TAKES.format("x: int = 1 // 0"), "x: int"),
    (
        TAKES.format("model_dump: int = 0"),
        "model_dump",
    ),
    (TAKES.format("_x: int = 0"), "_x"),
    (
        TAKES.format("x: int = 0").replace("...", "raise ValueError('no')"),
        "ValueError: no",
    ),
    ("@method('fresh')\nclass A: ...", "is no Method"),
]


STRONG = (
    HEAD
    + """
from chanprune.components import Positive
from chanprune.methods.layerwise import L1Norm

@method("strong")
class Strong(L1Norm):
    def __init__(self, strength: Positive = 1.0, **layerwise: object):
        super().__init__(**layerwise)
        self.strength = strength

    def loss(self, *arguments):
        loss, logits = super().loss(*arguments)
        return self.strength * loss, logits
"""
)


@pytest.mark.slow
def test_scores_of_other_channels_are_refused(folder):
    (folder / "mine/few.py").write_text(
        HEAD
        + "from chanprune.methods.layerwise import L1Norm\n@method('few')\nclass Few(L1Norm):\n"
        " def scores(self, *given): return {k: v[:-1] for k, v in super().scores(*given).items()}\n"
    )
    (folder / "mine/configs/method/few.yaml").write_text("name: few\n")
    options = ("model=vgg11", "method=few", *SHORT, "dataset.share=0.1", "run.dir=out")
    refused = train(*MINE, *options, cwd=folder)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert re.search(r"the method scores (\d+) channels of \S+, which has \d+", refused.stderr)


@pytest.mark.slow
def test_what_a_method_inherits_does_not_make_its_training_anothers(folder):
    (folder / "mine/strong.py").write_text(STRONG)
    (folder / "mine/configs/method/strong.yaml").write_text("name: strong\n")
    for strength in ("1.0", "2.0"):
        options = (
            "model=vgg11",
            "method=strong",
            f"method.strength={strength}",
            "dataset.share=0.1",
        )
        asked = train(*MINE, *options, *SHORT, f"run.dir={strength}", cwd=folder)
        assert asked.returncode == 0, asked.stderr
    assert len(list((folder / "outputs/cache").glob("*/about.json"))) == 2


@pytest.mark.parametrize(("text", "message"), but_slow(FILES, *FILES[6:]))
def test_a_file_that_cannot_be_gets_one_line(text, message, folder):
    (folder / "mine/new.py").write_text(HEAD + text)
    (folder / "mine/configs/method/fresh.yaml").write_text("name: fresh\n")
    chosen = "unseen" if "unseen" in text else "fresh"
    asked = train(*MINE, *ALL[1:], f"method={chosen}", *SHORT, cwd=folder)
    assert asked.returncode == 2 and asked.stderr.count("\n") == 1, asked.stderr
    assert message in asked.stderr, asked.stderr
    assert not (folder / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("components=nowhere",), "components=nowhere: there is no such module, file or folder"),
        (("components=mine/configs",), "no class or function there is marked"),
        (("components=5",), "components=5: there is no such module"),
        (("components=json",), "components=json: no class or function there is marked"),
        (("--config-dir=mine/configs", "method=fpgm"), "method.name=fpgm: must be one of cucb"),
        (("--config-dir=mine/configs", "model=mobilenetv2"), "components=... adds your own"),
    ],
)
def test_components_that_are_not_there_get_one_line(arguments, message, folder):
    asked = train(*arguments, cwd=folder)
    assert asked.returncode == 2 and asked.stderr.count("\n") == 1
    assert message in asked.stderr, asked.stderr


def test_a_configuration_file_may_not_name_components(folder):
    (folder / "mine/configs/experiment").mkdir()
    (folder / "mine/configs/experiment/sly.yaml").write_text(
        "# @package _global_\ncomponents: mine\n"
    )
    asked = train("--config-dir=mine/configs", "experiment=sly", cwd=folder)
    assert asked.returncode == 2 and "set components, and by that they can run" in asked.stderr


@pytest.mark.parametrize("name", ["mine", "mine.fpgm", "mine/fpgm.py", "./mine", "pack"])
def test_components_may_be_a_module_a_file_or_a_folder(name, folder):
    (folder / "pack").mkdir()
    (folder / "pack/__init__.py").write_text("")
    (folder / "pack/two.py").write_text((folder / "mine/fpgm.py").read_text())
    asked = train(
        *(f"components={name}", "--config-dir=mine/configs", "method=fpgm", "model=vgg11"),
        *(*SHORT, "dataset.share=0.1", "dataset.image_size=16", "run.dir=out"),
        cwd=folder,
    )
    assert asked.returncode == 0, asked.stderr


def test_the_mark_may_be_written_in_full(folder):
    (folder / "mine/new.py").write_text(
        "from chanprune import components\nfrom chanprune.methods import Plain\n"
        "@components.method('fresh')\nclass Fresh(Plain): pass\n"
    )
    (folder / "mine/configs/method/fresh.yaml").write_text("name: fresh\n")
    asked = train(*MINE, "method=fresh", "method.depth=0", cwd=folder)
    assert "method.depth: unknown key; known here: name" in asked.stderr


def test_a_folder_may_have_a_class_that_others_extend(folder):
    (folder / "mine/base.py").write_text(
        "from chanprune.components import Count\nfrom chanprune.methods.base import Plain\n"
        "class Base(Plain):\n"
        "    def __init__(self, depth: Count = 3): self.depth = depth\n"
    )
    (folder / "mine/new.py").write_text(
        HEAD + "from mine.base import Base\n@method('fresh')\nclass Fresh(Base): pass\n"
    )
    (folder / "mine/configs/method/fresh.yaml").write_text("name: fresh\n")
    asked = train(*MINE, "method=fresh", "method.depth=0", cwd=folder)
    assert "method.depth=0: must be an integer >= 1" in asked.stderr


def test_the_network_is_followed_and_its_channels_scored(known):
    torch.manual_seed(0)
    model = build("mobilenetv2", num_classes=10, in_channels=3, image_size=32, width=0.25).eval()
    graph = trace(model, (3, 32, 32))
    method = components.imported(components.find("method", "fpgm"))(order=2.0)
    groups = [g for g in graph.prunable("keep") if g.producers]
    with torch.no_grad():
        name = groups[3].producers[0]
        filters = model.get_submodule(name).weight
        filters[5] = filters.mean(0)
    scores = method.scores(model, graph, groups)
    assert len(groups) > 10
    kept = {g.name: scores[g.name].argsort()[g.size // 2 :].sort().values.tolist() for g in groups}
    small = compact(model, graph, Plan(kept))
    assert count(small.model, (3, 32, 32)).macs < 0.6 * count(model, (3, 32, 32)).macs


def test_the_filter_nearest_to_all_others_goes_first(known):
    model = build("vgg11", num_classes=10, in_channels=3, image_size=16, width=0.125)
    graph = trace(model, (3, 16, 16))
    method = components.imported(components.find("method", "fpgm"))()
    group = graph.prunable("keep")[0]
    filters = model.get_submodule(group.producers[0]).weight
    with torch.no_grad():
        filters[5] = filters[torch.arange(len(filters)) != 5].mean(0)
    assert method.scores(model, graph, [group])[group.name].argmin() == 5


def test_what_is_imported_from_elsewhere_is_no_code_of_ones_own(tmp_path, monkeypatch):
    """An environment inside the folder, for one, which holds PyTorch."""
    inside = tmp_path / "env" / "packages"
    inside.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(inside))
    own, helper, other = tmp_path / "own1.py", tmp_path / "helper1.py", inside / "other1.py"
    own.write_text("import helper1\nimport other1\n")
    for file in (helper, other):
        file.write_text("")
    digests = [digest_of([(own, "own1")])]
    for file in (other, helper):
        file.write_text("# changed\n")
        source_of.cache_clear()
        digests.append(digest_of([(own, "own1")]))
    assert digests[0] == digests[1] != digests[2]


def test_a_network_of_a_finished_run_may_be_ones_own(known):
    built_in = {"method": {"name": "none"}, "dataset": {"name": "digits"}}
    assert not components.own_code({**built_in, "model": {"name": "vgg11"}})
    assert components.own_code({**built_in, "model": {"name": "compact", "run": "x"}})
    components.use(None)
    assert not components.own_code({**built_in, "model": {"name": "compact", "run": "x"}})
