"""python -m chanprune.benchmark: what is compared is right, and the figures agree."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import chanprune
from chanprune.benchmarking import memory
from chanprune.benchmarking.changed import larger_images, nothing, rounded, ungathered
from chanprune.benchmarking.layers import _causes, alone
from chanprune.benchmarking.twins import Twins
from chanprune.benchmarking.variants import VARIANTS, Stand
from chanprune.channels import copied, count
from chanprune.channels.gathered import read
from chanprune.config.finished import AGAINST
from chanprune.models import build
from tests.commands import TINY, call, call_afresh, train
from tests.networks import but_slow

PRUNED = (
    *("model=vgg11", "model.width=0.125", "dataset=none", "dataset.num_classes=10"),
    *("dataset.image_size=16", "prune.target_macs=0.4"),
)
QUICK = ("seconds=0.01", "threads=1", "device=cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a finished run."""
    folder = tmp_path_factory.mktemp("benchmark")
    made = call("chanprune.prune", *PRUNED, "run.dir=run", cwd=folder)
    assert made.returncode == 0, made.stderr
    return folder / "run"


def test_all_ways_can_be_asked_for():
    assert {*AGAINST, "compact"} == VARIANTS.keys()


def agree(twins: Twins) -> None:
    """Check that the masked network computes what the compact one does, at the whole one's cost."""
    images = torch.randn(3, *twins.input_shape, dtype=torch.float64)
    assert twins.masked is not None
    with torch.no_grad():
        wide, small = (
            copied(m, dtype=torch.float64)(images) for m in (twins.masked, twins.compact)
        )
    torch.testing.assert_close(wide, small, rtol=1e-9, atol=1e-9)
    assert small.abs().max() > 0


def test_dense_is_the_whole_network_and_masked_computes_what_the_compact_one_does(run):
    twins = Twins(run)
    agree(twins)
    sizes = {"num_classes": 10, "in_channels": 3, "image_size": 16}
    whole = count(build("vgg11", width=0.125, **sizes), twins.input_shape)
    assert count(twins.dense, twins.input_shape).macs == whole.macs
    summary = json.loads((run / "summary.json").read_text())
    assert count(twins.compact, twins.input_shape).macs == summary["macs"]
    assert {p.shape for p in twins.masked.parameters()} == {
        p.shape for p in twins.dense.parameters()
    }


FAMILIES = [
    ("method=slimming", "model=resnet20", "prune.min_channels=0", "prune.min_share=0"),
    ("method=slimming", "model=vgg11", "prune.absorb=bias"),
    ("method=prioritized", "model=vgg11"),
    ("method=lgc", "model=condensenet50"),
    ("method=selectconv", "model=densenet40_bottleneck", "method.threshold=0.3"),
    (
        *("method=selectconv", "model=densenet40_bottleneck", "method.threshold=0.3"),
        "method.shift=post",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("options", FAMILIES)
def test_every_method_leaves_a_network_that_can_be_masked(options, tmp_path):
    ratio = () if "lgc" in options[0] else ("prune.ratio=0.7",)
    asked = (*options, "model.width=0.25", "dataset.share=0.2", "cache.enabled=false")
    if "selectconv" in options[0] or "prioritized" in options[0]:
        ratio = ()
    made = train(*TINY[2:], *asked, *ratio, "run.dir=run", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    agree(Twins(tmp_path / "run"))


@pytest.mark.parametrize("family", but_slow(["mobilenet_v2", "shufflenet_v2_x0_5"], "mobilenet_v2"))
def test_networks_that_were_saved_by_hand_are_compared_too(family, tmp_path):
    target = f"torchvision.models:{family}"
    model = torchvision.models.get_model(family, num_classes=10).eval()
    graph = chanprune.trace(model, (3, 32, 32))
    small = chanprune.compact(model, graph, chanprune.select(model, graph, target_macs=0.5))
    chanprune.save(small, tmp_path, target, {"num_classes": 10})
    agree(Twins(tmp_path, target=target))
    refused = call("chanprune.benchmark", f"run={tmp_path}", *QUICK, cwd=tmp_path)
    assert refused.returncode == 2 and f"benchmark: target={target}" in refused.stderr


SAME = [("contiguous", "compact"), ("masked", "compact"), ("onnx", "compact")]
SAME += [("dense_onnx", "dense"), ("dense_compiled", "dense")]


@pytest.mark.parametrize(("name", "like"), but_slow(SAME, *SAME[2:]))
def test_every_way_puts_out_what_its_network_does(name, like, run, tmp_path):
    stand = Stand(Twins(run), torch.device("cpu"), tmp_path)
    images = stand.images(2)
    with torch.inference_mode():
        ours, theirs = (stand.call(way, images, threads=1)() for way in (name, like))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


ASKED = [("1", "dense,masked"), ("1,2", "dense,masked,contiguous,onnx")]


@pytest.mark.parametrize(("batches", "against"), but_slow(ASKED, ASKED[1]))
def test_the_figures_are_there_and_agree_and_the_run_stays_finished(batches, against, run):
    asked = (*QUICK, "run=run", f"batch={batches}", f"against={against}")
    made = call("chanprune.benchmark", *asked, cwd=run.parent)
    assert made.returncode == 0, made.stderr
    told = json.loads((run / "benchmark.json").read_text())
    assert (run / "benchmark.png").read_bytes()[:4] == b"\x89PNG"
    by_name = {(t["variant"], t["batch"]): t for t in told["timings"]}
    names = {"compact", *against.split(",")}
    assert by_name.keys() == {(name, int(batch)) for name in names for batch in batches.split(",")}
    assert len(by_name) == len(told["timings"])
    for (name, batch), timing in by_name.items():
        assert 0 < timing["low"] <= timing["median"] <= timing["high"] and timing["rounds"] >= 5
        assert timing["images_per_second"] == pytest.approx(batch / timing["median"])
        whole = by_name["dense", batch]["median"]
        assert timing["of_dense"] == pytest.approx(timing["median"] / whole)
        assert timing["peak_bytes"] is None or timing["peak_bytes"] >= 0
        assert timing["threads"] == 1 and name in made.stdout
    summary = json.loads((run / "summary.json").read_text())
    compact, dense = (told["networks"][name] for name in ("compact", "dense"))
    assert compact == {key: summary[key] for key in ("params", "macs")}
    assert told["networks"]["masked"] == dense
    assert 0.39 * dense["macs"] <= compact["macs"] <= 0.4 * dense["macs"]
    for name, network in (("dense", dense), ("compact", compact)):
        assert by_name[name, 1]["file_bytes"] >= 4 * network["params"]

    again = call("chanprune.prune", *PRUNED, "run.dir=run", cwd=run.parent)
    assert again.returncode == 0 and "holds this run, finished" in again.stdout
    chanprune.load(run)


def test_what_replaces_a_run_takes_its_benchmark_with_it(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for name in ("benchmark.json", "benchmark.png"):
        (tmp_path / "run" / name).write_text("old")
    other = (*PRUNED[:-1], "prune.target_macs=0.5", "run.dir=run", "run.overwrite=true")
    assert call("chanprune.prune", *other, cwd=tmp_path).returncode == 0
    assert not {"benchmark.json", "benchmark.png"} & {p.name for p in (tmp_path / "run").iterdir()}


MISTAKES = [
    ("run=nowhere", "run=nowhere: no finished run is there, nor a saved network"),
    ("run=begun", "run=begun: no finished run is there; its command goes on with it"),
    ("", "run is missing; give run=..."),
    ("run=run threads=0", "threads=[0]: must be a list of integers >= 1"),
    ("run=run batch=0,1", "batch=[0, 1]: must be a list of integers >= 1"),
    ("run=run against=dens", "(did you mean dense?)"),
    ("run=run seconds=0", "seconds=0: must be a number > 0"),
    ("run=run device=cuda", "device=cuda: PyTorch finds no GPU here"),
    ("run=run/model.json", "run=run/model.json"),
    ("run=run device=tpu", "must be one of auto, cpu, cuda"),
    ("run=run format=xml", "must be one of table, json"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_gets_one_line_and_writes_nothing(arguments, message, run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("benchmark.*"))
    (tmp_path / "begun").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "begun")
    before = sorted(tmp_path.rglob("*"))
    asked = call("chanprune.benchmark", *arguments.split(), cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert asked.returncode == 2, asked.stderr
    assert asked.stderr.startswith("chanprune: error: ") and message in asked.stderr
    assert asked.stderr.count("\n") == 1 and asked.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_without_onnxruntime_one_line_says_what_to_install(run, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError")
    path = os.pathsep.join([str(tmp_path), str(Path(chanprune.__file__).parents[1])])
    asked = (f"run={run}", "against=onnx", *QUICK)
    made = call_afresh("chanprune.benchmark", *asked, cwd=tmp_path, PYTHONPATH=path)
    assert made.returncode == 2
    assert made.stderr.endswith(
        "error: against=onnx needs onnxruntime: pip install 'chanprune[export]'\n"
    )
    assert made.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run").chmod(0o555)
    asked = call("chanprune.benchmark", "run=run", *QUICK, cwd=tmp_path)
    (tmp_path / "run").chmod(0o755)
    assert asked.returncode == 2 and "cannot be written" in asked.stderr


@pytest.mark.slow
def test_compiled_networks_and_json(run):
    asked = (*QUICK, f"run={run}", "against=compiled", "format=json")
    made = call_afresh("chanprune.benchmark", *asked, cwd=run.parent)
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert [timing["variant"] for timing in told["timings"]] == ["compact", "compiled"]
    assert told["layers"] is None and all(t["of_dense"] is None for t in told["timings"])
    assert told == json.loads((run / "benchmark.json").read_text())


def test_layers_are_timed_by_themselves_on_what_they_read(run):
    twins = Twins(run)
    odd, inside = alone(twins.dense, twins.compact, torch.randn(2, *twins.input_shape), 0.01)
    names = {name: module for name, module in twins.compact.named_modules()}
    assert inside.number == 17 and all(seconds > 0 for seconds in inside.seconds)
    for layer in odd:
        assert isinstance(names[layer.name], (nn.Conv2d, nn.Linear, nn.BatchNorm2d))
        assert layer.lost > 0 and not layer.follows
        assert layer.work[1] <= layer.work[0]
    lost = [layer.lost for layer in odd]
    assert lost == sorted(lost, reverse=True)


def test_changed_layers_are_what_they_are_called():
    whole, layer = nn.Conv2d(16, 32, 3, 2, 1), nn.Conv2d(11, 21, 3, 2, 1, bias=False)
    images = torch.randn(2, 11, 8, 8)
    wider, reads = rounded(layer, whole, images)
    assert wider(reads).shape == (2, 24, 4, 4) and reads.shape == (2, 16, 8, 8)
    assert wider.bias is None and rounded(whole, whole, torch.randn(2, 16, 8, 8)) is None
    by_channel = nn.Conv2d(11, 11, 3, padding=1, groups=11)
    wider, reads = rounded(by_channel, nn.Conv2d(16, 16, 3, padding=1, groups=16), images)
    assert wider.groups == 16 and wider(reads).shape == (2, 16, 8, 8)
    wider, reads = rounded(nn.Linear(11, 10), nn.Linear(16, 10), torch.randn(2, 11))
    assert wider(reads).shape == (2, 10) and reads.shape == (2, 16)
    _, reads = larger_images(layer, images)
    assert layer(reads).shape == (2, 21, 8, 8)
    for module, own in ((layer, images), (nn.Linear(3, 3), images), (nn.BatchNorm2d(11), images)):
        least, one = nothing(module, own)
        assert least(one).numel() == 1 and type(least) is type(module)
    norm = nn.BatchNorm2d(5)
    assert ungathered(norm, images) is None
    read(norm, torch.tensor([0, 2, 3, 7, 10]))
    plain, reads = ungathered(norm, images)
    assert type(plain) is nn.BatchNorm2d and plain(reads).shape == (2, 5, 8, 8)


def test_causes_are_those_that_the_measurements_show():
    plain = {"itself": 1.0, "nothing": 0.1, "copy": 0.1, "rounded": 1.1, "larger": 4.0}
    assert _causes(plain) == []
    for key, value, said in (
        ("nothing", 0.6, "call overhead 60%"),
        ("copy", 0.7, "memory 70%"),
        ("rounded", 0.8, "odd width 80%"),
        ("larger", 1.5, "little work 1.5 x"),
        ("ungathered", 0.2, "gather 20%"),
    ):
        assert _causes({**plain, key: value}) == [said]


@pytest.mark.skipif(not memory.RESET.exists(), reason="the system does not tell")
def test_the_memory_of_a_call_is_what_it_holds_at_most():
    held = 64 * 2**20

    def hold() -> None:
        torch.ones(held // 4)

    for _ in range(2):
        assert 0.9 * held <= memory._resident(hold) <= 1.2 * held
