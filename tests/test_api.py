"""Pruning in a training loop of one's own: what `import chanprune` offers."""

import copy
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import chanprune
from chanprune.channels import channels_last, gather
from chanprune.processes.errors import UserError
from tests.commands import call
from tests.networks import SMALL, SMALL_SHAPE, randomise

PAGE = Path(__file__).parents[1] / "docs" / "own_training.md"
FILES = re.compile(r"`(\w+\.py)`:\n\n```python\n(.*?)```", re.DOTALL)
HALF = {"ratio": 0.5}


def train(model, optimizer, steps=3):
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, *SMALL_SHAPE)).square().mean().backward()
        optimizer.step()


def python(*arguments, cwd):
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for name, text in FILES.findall(PAGE.read_text(encoding="utf-8")):
        (folder / name).write_text(text)
    check = (
        "\nimport torch\ngot = ema.module.eval()(images[:9])\n"
        "torch.save((ema.module.state_dict(), got), 'expected.pt')\n"
        "counts = [chanprune.count(n, images[:2]).macs for n in (ema.module, Net())]\n"
        "print('macs', *counts)\n"
    )
    (folder / "run.py").write_text((folder / "loop.py").read_text() + check)
    return folder, python("run.py", cwd=folder)


def test_the_loop_of_the_page_prunes_trains_on_and_loses_little(example):
    _, ended = example
    assert ended.returncode == 0, ended.stderr
    whole, half = (float(line.split()[1]) for line in ended.stdout.splitlines()[:2])
    assert half > 0.85 and half > whole - 0.05
    small, before = map(int, ended.stdout.splitlines()[2].split()[1:])
    assert 0.495 <= small / before <= 0.5


def test_what_is_saved_has_the_same_bits_in_a_fresh_process(example):
    folder, _ = example
    code = (
        "import torch, chanprune\nfrom net import Net\n"
        "from sklearn.datasets import load_digits\n"
        "images = torch.from_numpy(load_digits().images).float()[:, None] / 16\n"
        "state, expected = torch.load('expected.pt')\n"
        "model = chanprune.load('small', factory=Net)\n"
        "assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())\n"
        "assert state.keys() == model.state_dict().keys()\n"
        "assert torch.equal(model(images[:9]), expected)\n"
    )
    ended = python("-c", code, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in (folder / "small").iterdir()} == {
        *("model.json", "model.safetensors", "README.md")
    }
    assert "net:Net" in (folder / "small/README.md").read_text()


def test_a_folder_calls_no_code_that_is_not_given(example):
    folder, _ = example
    with pytest.raises(UserError, match="made by net:Net; give"):
        chanprune.load(folder / "small")
    with pytest.raises(UserError, match="made by net:Net, not by os:getcwd"):
        chanprune.load(folder / "small", factory="os:getcwd")


OPTIMISERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "plain": lambda p: torch.optim.SGD(p, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("network", ["residual", "dense", "grouped", "preactivation"])
def test_moments_are_those_that_are_gathered_by_hand(network, name):
    model = randomise(SMALL[network](), 0)
    optimizer = OPTIMISERS[name](model.parameters())
    train(model, optimizer)
    graph = chanprune.trace(model, SMALL_SHAPE)
    plan = chanprune.select(model, graph, ratio=0.4)
    small = chanprune.compact(model, graph, plan)
    before = {n: copy.deepcopy(optimizer.state.get(p, {})) for n, p in model.named_parameters()}
    rates = [group["lr"] for group in optimizer.param_groups]
    chanprune.carry(model, small, graph, plan, optimizer)
    cut = graph.cut(plan)
    for name_of, parameter in small.named_parameters():
        for key, value in before[name_of].items():
            wanted = gather({name_of: value}, cut)[name_of] if value.dim() else value
            assert torch.equal(optimizer.state[parameter][key], wanted)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in small.parameters()}
    assert set(optimizer.state) <= set(held)
    assert [group["lr"] for group in optimizer.param_groups] == rates
    weights = [p for p in small.parameters() if p.dim() > 1]
    start = [p.detach().clone() for p in weights]
    train(small, optimizer)
    assert all(not torch.equal(p, q) for p, q in zip(weights, start, strict=True))


def test_a_step_of_the_small_network_is_the_masked_networks_step():
    """Where dropped channels neither write nor read, both learn the same on what stays."""
    model = randomise(SMALL["chain"](), 0).double().eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    train_double(model, optimizer)
    graph = chanprune.trace(model, SMALL_SHAPE)
    plan = chanprune.select(model, graph, ratio=0.4)
    small = chanprune.compact(model, graph, plan)
    masked = chanprune.masked(model, graph.cut(plan))
    whole = torch.optim.Adam(masked.parameters(), lr=1e-2)
    whole.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    chanprune.carry(model, small, graph, plan, optimizer)
    train_double(small, optimizer)
    train_double(masked, whole)
    cut = graph.cut(plan)
    for name, tensor in gather(dict(masked.named_parameters()), cut).items():
        torch.testing.assert_close(small.get_parameter(name), tensor, rtol=1e-9, atol=1e-12)


def train_double(model, optimizer):
    torch.manual_seed(2)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, *SMALL_SHAPE).double()).square().mean().backward()
        optimizer.step()


def test_averages_and_mappings_follow():
    model = randomise(SMALL["residual"](), 0)
    ema = AveragedModel(model, use_buffers=True)
    ema.update_parameters(model)
    averaged = {name: t.clone() for name, t in ema.module.state_dict().items()}
    shadow = {name: t.detach() + 1 for name, t in model.named_parameters()}
    expected = {name: t.clone() for name, t in shadow.items()}
    graph = chanprune.trace(model, SMALL_SHAPE)
    plan = chanprune.select(model, graph, **HALF)
    small = chanprune.compact(model, graph, plan)
    chanprune.carry(model, small, graph, plan, ema, shadow)
    cut = graph.cut(plan)
    for state, before in ((ema.module.state_dict(), averaged), (shadow, expected)):
        for name, tensor in gather(before, cut).items():
            assert torch.equal(state[name], tensor)
    ema.update_parameters(small)
    assert {n: t.shape for n, t in shadow.items()} == {
        n: p.shape for n, p in small.named_parameters()
    }


def test_frozen_parameters_and_those_of_others_stay_as_they_are():
    model = randomise(SMALL["residual"](), 0)
    other = nn.Parameter(torch.ones(3))
    head = [*model.head.parameters()]
    optimizer = torch.optim.SGD([{"params": head, "lr": 0.1}, {"params": [other], "lr": 0.2}])
    graph = chanprune.trace(model, SMALL_SHAPE)
    plan = chanprune.select(model, graph, **HALF)
    small = chanprune.compact(model, graph, plan)
    chanprune.carry(model, small, graph, plan, optimizer)
    first, second = (group["params"] for group in optimizer.param_groups)
    assert {id(p) for p in first} == {id(p) for p in small.head.parameters()}
    assert second == [other]


def test_parameters_that_stand_for_others_are_trained():
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), normed, nn.ReLU(), nn.Conv2d(8, 4, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    graph = chanprune.trace(model, SMALL_SHAPE)
    plan = chanprune.select(model, graph, ratio=0.5)
    small = chanprune.compact(model, graph, plan)
    chanprune.carry(model, small, graph, plan, optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in small.parameters()}
    train(small, optimizer)


def test_what_cannot_be_carried_is_refused_and_nothing_is_changed():
    model = randomise(SMALL["residual"](), 0)
    graph = chanprune.trace(model, SMALL_SHAPE)
    plan = chanprune.select(model, graph, **HALF)
    small = chanprune.compact(model, graph, plan)
    optimizer = torch.optim.Adafactor(model.parameters())
    train(model, optimizer)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for holders, message in (
        ([sgd, optimizer], "cannot be cut; begin with a new optimiser"),
        ([sgd, model], "cannot be carried"),
        ([sgd, {"odd": torch.ones(2)}], "odd is no tensor of the network"),
        ([sgd, torch.optim.LBFGS(model.parameters())], "keeps parameters of its own"),
        ([sgd, torch.optim.SGD(copy.deepcopy(model).parameters(), lr=1)], "holds no parameter"),
    ):
        with pytest.raises(ValueError, match=message):
            chanprune.carry(model, small, graph, plan, *holders)
    assert [id(p) for p in sgd.param_groups[0]["params"]] == [id(p) for p in model.parameters()]


def test_networks_and_plans_that_do_not_belong_together_are_refused():
    model = randomise(SMALL["residual"](), 0)
    graph = chanprune.trace(model, SMALL_SHAPE)
    plan, other = (chanprune.select(model, graph, ratio=ratio) for ratio in (0.3, 0.5))
    small = chanprune.compact(model, graph, plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for given in ((small, model, graph, plan), (model, small, graph, other)):
        with pytest.raises(ValueError, match=r"not what this plan leaves|not the one of"):
            chanprune.carry(*given, optimizer)


def test_parameters_of_one_element_are_carried():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    model.append(nn.Linear(8 * 12 * 12, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    graph = chanprune.trace(model, SMALL_SHAPE)
    plan = chanprune.select(model, graph, ratio=0.4)
    small = chanprune.compact(model, graph, plan)
    chanprune.carry(model, small, graph, plan, optimizer)
    assert all("exp_avg" in optimizer.state[parameter] for parameter in small.parameters())
    train(small, optimizer)


class Gridded(nn.Module):
    """A buffer that no file holds."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.register_buffer("grid", torch.linspace(0, 1, 14), persistent=False)

    def forward(self, images):
        return self.out(torch.relu(self.conv(images)) * self.grid)


def test_buffers_that_no_file_holds_are_made_again(tmp_path):
    model = Gridded()
    graph = chanprune.trace(model, SMALL_SHAPE)
    small = chanprune.compact(model, graph, chanprune.select(model, graph, **HALF))
    chanprune.save(small, tmp_path)
    images = torch.randn(2, *SMALL_SHAPE)
    loaded = chanprune.load(tmp_path, factory=Gridded)
    assert torch.equal(loaded(images), channels_last(small.eval())(images))


def build(width=16):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 5),
    )


def test_rounds_are_saved_as_one_plan(tmp_path):
    model = build(24)
    for _ in range(3):
        graph = chanprune.trace(model, SMALL_SHAPE)
        model = chanprune.compact(model, graph, chanprune.select(model, graph, ratio=0.2))
    model = copy.deepcopy(model)
    chanprune.save(model, tmp_path, factory=build, options={"width": 24})
    loaded = chanprune.load(tmp_path, factory=build)
    images = torch.randn(3, *SMALL_SHAPE)
    assert torch.equal(loaded(images), channels_last(model.eval())(images))
    again = chanprune.trace(loaded, SMALL_SHAPE)  # what was loaded is pruned further, and saved
    smaller = chanprune.compact(loaded, again, chanprune.select(loaded, again, ratio=0.2))
    chanprune.save(smaller, tmp_path / "further", factory=build, options={"width": 24})
    assert torch.equal(
        chanprune.load(tmp_path / "further", factory=build)(images), smaller.eval()(images)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_other_precisions_are_saved(dtype, tmp_path):
    model = build().to(dtype)
    graph = chanprune.trace(model, SMALL_SHAPE)
    small = chanprune.compact(model, graph, chanprune.select(model, graph, **HALF))
    chanprune.save(small, tmp_path, factory=build)
    images = torch.randn(2, *SMALL_SHAPE, dtype=dtype)
    loaded = chanprune.load(tmp_path, factory=build)
    assert torch.equal(loaded(images), channels_last(small.eval())(images))


class Several(nn.Module):
    """Two inputs, a flag, and a dictionary that holds tensors."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, left, more, doubles=False):
        total = torch.relu(self.left(left)) + torch.relu(self.right(more["right"]))
        return {"out": self.out(2 * total if doubles else total)}


def test_networks_of_several_inputs_are_saved(tmp_path):
    given = (torch.randn(2, *SMALL_SHAPE), {"right": torch.randn(2, *SMALL_SHAPE)})
    model = Several()
    graph = chanprune.trace(model, given)
    small = chanprune.compact(model, graph, chanprune.select(model, graph, ratio=0.5))
    chanprune.save(small, tmp_path)
    loaded = chanprune.load(tmp_path, factory=Several)
    expected = channels_last(small.eval())(*given)
    assert torch.equal(loaded(*given)["out"], expected["out"])


def saved(folder):
    model = build()
    graph = chanprune.trace(model, SMALL_SHAPE)
    small = chanprune.compact(model, graph, chanprune.select(model, graph, **HALF))
    chanprune.save(small, folder, factory=build)
    return small


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("plan"), "is damaged"),
        (lambda d: d["plan"].update({"0": [0]}), "in the file"),
        (lambda d: d["plan"].update({"0": [0, 99]}), "damaged, or its code changed"),
        (lambda d: d["options"].update(width=2**24), "more than any network"),
        (lambda d: d["options"].update(wide=20), "damaged, or its code changed"),
        (lambda d: d["example"]["args"][0].update(shape=[2**20] * 4), "example has a tensor"),
        (lambda d: d.update(example=5), "example is not args"),
        (lambda d: d.update(tensors="0" * 64), "is not the file that was written"),
        (lambda d: d.update(target="os:abort"), "made by os:abort"),
        (lambda d: d.update(format=9), "has format 9"),
    ],
)
def test_damaged_and_hostile_files_are_refused(change, message, tmp_path):
    saved(tmp_path)
    path = tmp_path / "model.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match=message) as refusal:
        chanprune.load(tmp_path, factory=None if "os:" in message else build)
    assert "\n" not in str(refusal.value)


def test_the_network_of_a_run_is_saved_as_a_folder_of_its_own(tmp_path):
    asked = call(
        *("chanprune.prune", "model=resnet20", "model.width=0.5", "dataset=none", "run.dir=run"),
        *("dataset.image_size=32", "dataset.num_classes=10", "prune.target_macs=0.5"),
        cwd=tmp_path,
    )
    assert asked.returncode == 0, asked.stderr
    net = chanprune.load(tmp_path / "run")
    with torch.no_grad():
        next(net.parameters()).add_(1)
    chanprune.save(net, tmp_path / "own")
    assert {p.name for p in (tmp_path / "own").iterdir()} == {
        *("README.md", "model.json", "model.safetensors")
    }
    again = chanprune.load(tmp_path / "own")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), net(images))
    assert again.class_names == net.class_names and again.input_shape == (3, 32, 32)
    assert 'chanprune.load(".")' in (tmp_path / "own/README.md").read_text()


def test_the_card_that_its_owner_wrote_stays(tmp_path):
    saved(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    saved(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_what_cannot_be_saved_is_refused_before_a_file_is_written(tmp_path):
    model = build()
    graph = chanprune.trace(model, SMALL_SHAPE)
    small = chanprune.compact(model, graph, chanprune.select(model, graph, **HALF))
    other = copy.deepcopy(small)
    other[7] = nn.Linear(other[7].in_features, 6)
    for network, factory, options, message in (
        (model, build, None, "nothing that chanprune.compact returned"),
        (small, None, None, "give factory="),
        (small, build, {"width": 12}, "give factory="),
        (small, partial(build), None, "cannot be imported by its name"),
        (small, "nowhere.at.all:net", None, "cannot be imported"),
        (other, build, None, "makes another network: 7.bias"),
    ):
        with pytest.raises(UserError, match=message):
            chanprune.save(network, tmp_path / "x", factory=factory, options=options)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "give one of ratio"),
        ({"ratio": 0.3, "target_macs": 0.5}, "give one of ratio"),
        ({"target_macs": 0}, "leaves no network"),
        ({"target_params": float("nan")}, "is no amount"),
        ({"target_params": 2}, "cannot be met"),
        ({"target_memory": 1e-9}, "cannot be met"),
        ({"ratio": 1.0}, "must be in"),
        ({"ratio": 0.3, "criterion": "l3"}, "must be one of l1, l2"),
        ({"ratio": 0.3, "criterion": "taylor"}, "needs images="),
        ({"ratio": 0.3, "keep": ["nothing"]}, "'nothing' matches no layer"),
        ({"ratio": 0.3, "shares": {"0": 1.5}}, "which is not in"),
        ({"ratio": 0.3, "shares": {"7": 0.5}}, "prune.shares names 7, which stays whole"),
        ({"ratio": 0.3, "scope": "layers"}, "must be one of global, layer"),
        ({"ratio": 0.3, "round_to": 0}, "round_to must be 1 or more"),
        ({"target_macs": "200M"}, "is no amount"),
    ],
)
def test_what_cannot_be_selected_is_said_in_one_line(asked, message):
    model = build()
    graph = chanprune.trace(model, SMALL_SHAPE)
    with pytest.raises(ValueError, match=message) as refusal:
        chanprune.select(model, graph, **asked)
    assert "\n" not in str(refusal.value)


def test_wrappers_are_taken_off_and_said():
    model = build()
    wrapped = torch.compile(nn.DataParallel(model))
    with pytest.warns(UserWarning, match="wrapped in OptimizedModule"):
        graph = chanprune.trace(wrapped, SMALL_SHAPE)
    plan = chanprune.select(wrapped, graph, **HALF)
    small = chanprune.compact(wrapped, graph, plan)
    assert type(small) is nn.Sequential
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    chanprune.carry(wrapped, small, graph, plan, optimizer)
    train(small, optimizer)


def test_images_that_are_given_are_what_a_criterion_sees():
    model = build()
    graph = chanprune.trace(model, SMALL_SHAPE)
    batches = [(torch.randn(20, *SMALL_SHAPE), torch.arange(20) % 5) for _ in range(3)]
    plans = [
        chanprune.select(model, graph, ratio=0.3, criterion="taylor", images=given)
        for given in (batches, lambda number: batches)
    ]
    assert plans[0] == plans[1]


def test_least_squares_bring_the_outputs_back():
    model = randomise(SMALL["residual"](), 0).eval()
    graph = chanprune.trace(model, SMALL_SHAPE)
    plan = chanprune.select(model, graph, ratio=0.3)
    small = chanprune.compact(model, graph, plan).eval()
    images = torch.randn(64, *SMALL_SHAPE)
    with torch.no_grad():
        before = (small(images) - model(images)).square().mean()
        refits = chanprune.refit(model, small, graph, plan, [(images, None)])
        after = (small(images) - model(images)).square().mean()
    assert refits and after < 0.5 * before


def test_everything_public_is_there_with_a_docstring():
    for name in chanprune.__all__:
        assert getattr(chanprune, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = chanprune.nothing


def test_the_hubs_cache_is_read(tmp_path):
    pytest.importorskip("huggingface_hub")
    cache = tmp_path / "home/hub/models--user--name"
    small = saved(cache / "snapshots" / ("a" * 40))
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text("a" * 40)
    torch.manual_seed(0)
    images = torch.randn(2, *SMALL_SHAPE)
    torch.save((images, small.eval()(images).detach()), tmp_path / "expected.pt")
    code = (
        "import torch, chanprune\nfrom tests.test_api import build\n"
        "images, expected = torch.load('expected.pt')\n"
        "model = chanprune.load('hf://user/name', factory=build)\n"
        "assert torch.equal(model(images), expected)\n"
        "try:\n    chanprune.load('hf://user/other', factory=build)\n"
        "except chanprune.UserError as error:\n    print(error)\n"
    )
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    root = str(Path(__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **home, "PYTHONPATH": root},
    )
    assert ended.returncode == 0, ended.stderr
    assert "hf://user/other could not be downloaded" in ended.stdout
    assert ended.stdout.count("\n") == 1
