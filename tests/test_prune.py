"""python -m chanprune.prune: networks and weights of one's own, without training."""

import json
import pickle

import pytest
import torch
from PIL import Image
from torch import nn

import chanprune
from chanprune.channels import count
from tests.commands import call

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=16, num_classes=10, in_channels=3):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.left, self.right = nn.Conv2d(width // 2, width, 3), nn.Conv2d(width // 2, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        a, b = torch.relu(self.stem(x)).chunk(2, 1)
        return self.head(torch.relu(self.norm(self.left(a) + self.right(b))).mean((2, 3)))


def net(**options):
    return Net(**options)


def asking(**options):
    rates = [rate.item() for rate in torch.linspace(0, 0.1, 2)]
    return nn.Sequential(nn.Dropout(rates[1]), Net(**options))


def lazy():
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(10))


number = 5
"""
SMALL = ("dataset.image_size=16", "dataset.num_classes=10")
MINE = ("model=custom", "model.target=net:Net", *SMALL)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def prune(*arguments, folder):
    return call("chanprune.prune", *arguments, cwd=folder)


def test_a_network_of_ones_own_with_its_weights_is_pruned_without_data(folder):
    namespace: dict = {}
    exec(compile(NET, "net.py", "exec"), namespace)
    torch.manual_seed(3)
    whole = namespace["Net"](width=48)
    state = {f"module.{name}": tensor for name, tensor in whole.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, folder / "net.pth")
    done = prune(
        *MINE,
        "model.options={width: 48}",
        "model.weights=net.pth",
        "prune.target_macs=0.5",
        *("prune.absorb=none", "run.dir=out"),
        folder=folder,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "out/summary.json").read_text())
    macs = [stage["macs"] for stage in summary["stages"]]
    assert 0.495 <= macs[-1] / macs[0] <= 0.5
    assert summary["accuracy"] is None and "acc %" not in (folder / "out/table.md").read_text()
    small = chanprune.load(folder / "out", factory=namespace["Net"])
    kept = json.loads((folder / "out/plan.json").read_text())["kept"]
    assert torch.equal(small.stem.weight, whole.stem.weight[kept["stem"]])
    assert count(small, (3, 16, 16)).macs == macs[-1]
    again = prune(
        *MINE,
        "model.options={width: 48}",
        "model.weights=net.pth",
        "prune.target_macs=0.5",
        *("prune.absorb=none", "run.dir=out"),
        folder=folder,
    )
    assert again.returncode == 0 and "holds this run, finished" in again.stdout


def test_unlabelled_images_give_statistics(folder):
    (folder / "images/some").mkdir(parents=True)
    for number in range(12):
        colour = (20 * number, 255 - 20 * number, 90)
        Image.new("RGB", (20, 24), colour).save(folder / f"images/some/{number}.png")
    images = ("dataset=images", "dataset.root=images", "prune.recalibrate=12", "run.dir=out")
    done = prune(*images, *MINE, folder=folder)
    assert done.returncode == 0, done.stderr
    stages = json.loads((folder / "out/summary.json").read_text())["stages"]
    assert stages[-1]["stage"] == "pruned, statistics anew"
    assert all(stage["test_accuracy"] is None for stage in stages)


def test_labelled_images_give_accuracy_taylor_and_fine_tuning(folder):
    done = prune(
        *("dataset=digits", "dataset.image_size=16", "model=vgg11", "model.width=0.0625"),
        *("criterion=taylor", "finetune.epochs=1", "run.dir=out"),
        folder=folder,
    )
    assert done.returncode == 0, done.stderr
    stages = json.loads((folder / "out/summary.json").read_text())["stages"]
    assert [stage["stage"] for stage in stages][:2] == ["as given", "pruned"]
    assert stages[-1]["stage"].startswith("fine-tuned") and stages[-1]["test_accuracy"] > 0
    options = ("model=compact", "model.run=out", "model.weights=out/model.safetensors")
    on = call(
        *("chanprune.train", *options, "dataset=digits", "dataset.image_size=16", "method=none"),
        *("train.epochs=1", "run.dir=on", "finetune.epochs=0"),
        cwd=folder,
    )
    assert on.returncode == 0, on.stderr
    assert "weights: out/model.safetensors" in on.stdout


class Hostile:
    """A pickle that writes a file when it is read."""

    def __reduce__(self):
        return open, ("executed", "w")


def weights_of(*layers):
    return nn.Sequential(*layers).state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.target=nowhere:Net"], "nowhere cannot be imported: ModuleNotFoundError"),
        (["model.target=nowhere.py:Net"], "there is no file"),
        (["model.target=net"], "must be package.module:factory"),
        (["model.target=net:Nat"], "net has no Nat to be called; it has Net, net"),
        (["model.target=net:number"], "net has no number to be called"),
        (["model.target=net:lazy"], "let the factory call the network once"),
        (["model.target=os:getcwd"], "returns str, no nn.Module"),
        (["model.options={wide: 3}"], "fails with in_channels=3, num_classes=10, wide=3"),
        (["model.weights=none.pth"], "there is no such file"),
        (["model.weights=other.pth"], "do not fit custom: they lack stem.weight"),
        (["model.weights=hostile.pth"], "hold more than tensors"),
        (["model.weights=text.safetensors"], "cannot be read"),
        (["dataset.image_size=1"], "does not take images of shape (3, 1, 1)"),
        (["prune.target_macs=0"], "must be a number > 0"),
        (["prune.target_macs=2"], "cannot be met"),
        (["prune.target_memory=1B"], "must be a share of the whole"),
        (["prune.target_memory=2B"], "cannot be met"),
        (["prune.target_macs=-1"], "must be a number > 0"),
        (["prune.target_macs=half"], "or an amount as 200M"),
        (["prune.target_macs=0.5", "prune.target_params=0.5"], "give one of them"),
        (["prune.keep=[nothing]"], "'nothing' matches no layer"),
        (['prune.keep=["("]'], "is no regular expression"),
        (["prune.shares={stem: 1.5}"], "must be {NAME: a number in [0, 1)}"),
        (["criterion=taylor"], "needs labelled images, and dataset=none has none"),
        (["prune.widths=out", "prune.target_macs=0.5"], "and prune.widths: give one of them"),
        (["prune.recalibrate=10"], "needs images, and dataset=none has none"),
        (["finetune.epochs=1"], "dataset=none has no labelled images to train with"),
        (["method=slimming"], "take method=none and a criterion"),
        (["criterion=own"], "method=none selects none; give a criterion"),
        (["prune.round_to=64"], "they go by at least"),
        (["dataset=images", "dataset.root=empty"], "no images are there"),
        (["dataset.mean=[0.5]"], "one for each of the 3 channels"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(arguments, message, folder):
    torch.save(weights_of(nn.Conv2d(3, 4, 3)), folder / "other.pth")
    (folder / "hostile.pth").write_bytes(pickle.dumps(Hostile()))
    (folder / "text.safetensors").write_text("text")
    (folder / "empty").mkdir()
    asked = prune(*MINE, "run.dir=out", *arguments, folder=folder)
    assert asked.returncode == 2
    assert message in asked.stderr and asked.stderr.count("\n") == 1
    assert not (folder / "out").exists() and not (folder / "executed").exists()


def test_code_that_a_run_names_is_called_only_if_it_is_given(folder):
    assert prune(*MINE, "run.dir=out", folder=folder).returncode == 0
    control = ("control=uniform", "control_of=out")
    (folder / "cfg/experiment").mkdir(parents=True)
    text = "# @package _global_\nmodel: {name: custom, target: 'net:Net'}\n"
    (folder / "cfg/experiment/own.yaml").write_text(text)
    for command, arguments in (
        ("chanprune.train", ["resume=out"]),
        ("chanprune.train", control),
        ("chanprune.train", ["model=compact", "model.run=out", "dataset=none"]),
        ("chanprune.evaluate", ["run=out"]),
        ("chanprune.train", ["--config-dir=cfg", "experiment=own"]),
    ):
        asked = call(command, *arguments, cwd=folder)
        assert asked.returncode == 2, asked.stdout
        assert "net:Net" in asked.stderr or "model.target" in asked.stderr
        assert asked.stderr.count("\n") == 1
    given = call("chanprune.train", "resume=out", "model.target=net:Net", cwd=folder)
    assert given.returncode == 0 and "holds this run, finished" in given.stdout


def test_a_factory_that_asks_tensors_for_numbers_is_loaded_and_summed_up(folder):
    mine = ("model=custom", "model.target=net:asking", *SMALL)
    assert prune(*mine, "run.dir=out", folder=folder).returncode == 0
    summed = call("chanprune.summarize", *mine, "dataset=none", "format=json", cwd=folder)
    assert summed.returncode == 0, summed.stderr
    namespace: dict = {}
    exec(compile(NET, "net.py", "exec"), namespace)
    model = chanprune.load(folder / "out", factory=namespace["asking"])
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 10)


def test_changed_weights_are_another_run(folder):
    namespace: dict = {}
    exec(compile(NET, "net.py", "exec"), namespace)
    asked = []
    for _ in range(2):
        torch.save(namespace["Net"]().state_dict(), folder / "net.pth")
        asked.append(prune(*MINE, "model.weights=net.pth", "run.dir=out", folder=folder))
    assert asked[0].returncode == 0 and asked[1].returncode == 2
    assert "began with other weights than model.weights=net.pth are now" in asked[1].stderr


def test_changed_code_is_another_run(folder):
    assert prune(*MINE, "run.dir=out", folder=folder).returncode == 0
    (folder / "net.py").write_text(NET.replace("mean((2, 3))", "amax((2, 3))"))
    asked = prune(*MINE, "run.dir=out", folder=folder)
    assert (
        asked.returncode == 2 and "made with other code than model.target=net:Net" in asked.stderr
    )


def test_summarize_shows_what_a_budget_would_leave(folder):
    arguments = ("dataset=none", *MINE, "model.options={width: 48}", "prune.target_macs=0.5")
    options = (*arguments, "prune.coupled=together", "format=json")
    told = json.loads(call("chanprune.summarize", *options, cwd=folder).stdout)
    assert 0.495 <= told["left"]["macs"] / told["macs"] <= 0.5
    table = call("chanprune.summarize", *options[:-1], "criterion=l1", cwd=folder).stdout
    assert "ranked by L1 norm of filters of the initial weights" in table


def test_summarize_shows_what_another_runs_widths_would_leave(folder):
    assert prune(*MINE, "run.dir=out", folder=folder).returncode == 0
    left = json.loads((folder / "out/summary.json").read_text())
    options = ("dataset=none", *MINE, "prune.coupled=together", "prune.widths=out", "format=json")
    told = json.loads(call("chanprune.summarize", *options, cwd=folder).stdout)
    assert told["left"]["macs"] == left["macs"] < told["macs"]
    assert told["left"]["ranked_by"] == "the widths of out"


@pytest.mark.slow
def test_a_detectors_backbone_is_pruned_inside_its_training_loop():
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3
    )
    images = [torch.rand(3, 96, 128), torch.rand(3, 112, 96)]
    boxes = torch.tensor([[10.0, 10.0, 60.0, 60.0], [30.0, 20.0, 80.0, 90.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in images]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step():
        losses = sum(model.train()(images, targets).values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        return losses.item()

    step()
    example = chanprune.example_of(model, "backbone.body", images)
    body = model.backbone.body
    graph = chanprune.trace(body, example)
    moments = {n: optimizer.state[p]["momentum_buffer"] for n, p in body.named_parameters()}
    plan = chanprune.select(body, graph, target_macs=0.5)
    small = chanprune.compact(body, graph, plan)
    chanprune.carry(body, small, graph, plan, optimizer)
    model.backbone.body = small
    share = count(small, example).macs / count(body, example).macs
    assert 0.495 <= share <= 0.5
    cut = graph.cut(plan)
    for name, tensor in chanprune.channels.gather(moments, cut).items():
        assert torch.equal(optimizer.state[small.get_parameter(name)]["momentum_buffer"], tensor)
    losses = [step() for _ in range(2)]
    assert all(torch.tensor(losses).isfinite())
