"""Files for runtimes: the same answers as the checkpoint, or no file and one line that says why."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from onnx import TensorProto
from onnx import load as load_onnx
from onnxruntime import InferenceSession
from torch import nn

import chanprune
from chanprune.channels import channels_last, compact, count, trace
from chanprune.formats import onnx, torch_export, torchscript
from chanprune.methods import METHODS
from chanprune.pipeline.agreement import LIMITS, agreement, answers_of
from chanprune.pipeline.export_images import random_images
from chanprune.pipeline.exporting import FORMATS, Subject, export, refuse_missing
from chanprune.processes.errors import RunError, UserError
from tests.commands import TINY, call, train
from tests.networks import SMALL, SMALL_SHAPE, but_slow, random_plan, randomise
from tests.test_pipeline import changed, execute
from tests.test_selectconv import SMALL as PRERESNET
from tests.test_zoo import SHAPE as ZOO_SHAPE
from tests.test_zoo import network

MODULES = {"onnx": onnx, "torch_export": torch_export, "torchscript": torchscript}
LEVELS = {"levels": [0.5, 1.0]}
FEW = {"train": {"epochs": 1}, "finetune": {"epochs": 1, "lr": 0.001}, "dataset": {"share": 0.1}}
PLENTY = {"threshold": 0.3, "until": 1.0}
SELECTCONV = {"model": PRERESNET, "prune": {"absorb": "none"}, "finetune": {"epochs": 0}}
RUNS = {
    "slimming": {"method": {"name": "slimming"}},
    "prioritized": {"method": {"name": "prioritized", **LEVELS}, "prune": {"rule": "elementwise"}},
    "idp": {"method": {"name": "idp", **LEVELS}},
    "cucb": {"method": {"name": "cucb", "explore": 2}},
    "final_random": {"method": {"name": "final_random", "explore": 2}},
    "lgc": {"model": {"name": "condensenet50", "width": 0.25}, "finetune": {"epochs": 0}},
    "selectconv": {**SELECTCONV, "method": {"name": "selectconv", **PLENTY}, "dataset": {}},
    "selectconv-post": {
        **SELECTCONV,
        "method": {"name": "selectconv", **PLENTY, "shift": "post"},
        "dataset": {},
    },
}
UNUSUAL = ("lgc", "selectconv", "selectconv-post")
DEEPEST = ("vgg19", "resnet56", "preresnet29", "resnext29", "densenet40", "c2f")


def folder_of(name, path):
    """Run a method for a moment; return where it is."""
    own = RUNS.get(name, {})
    sections = {key: {**FEW.get(key, {}), **own.get(key, {})} for key in {*FEW, *own}}
    sections["method"] = own.get("method", {"name": name})
    execute(changed(**sections), path / "run")
    return path / "run"


def subject_of(model, shape, level=1.0):
    preprocessing = getattr(model, "preprocessing", None)
    names = getattr(model, "class_names", ())
    return Subject(model.eval(), shape, preprocessing, names, count(model, shape), level)


def exported(subject, path, form, **options):
    """Write a network, and compare the file once more, with batches of other sizes."""
    written = export(subject, random_images(subject.input_shape, "a test"), path, form, **options)
    assert written.agreement.is_fine and written.agreement.equal == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    run = {"onnx": onnx, "torch_export": torch_export, "torchscript": torchscript}[form].opened(
        path
    )
    for number in (1, 3):
        images = torch.randn(number, *subject.input_shape)
        found = agreement(run(images), answers_of(subject.model, images))
        assert found.is_fine and found.difference < LIMITS["fp32"]
    return written


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*METHODS, *RUNS}))
def test_every_method_is_exported(name, tmp_path):
    """In ONNX where the product may be of an unusual form, else in the format that is quickest."""
    model = chanprune.load(folder_of(name, tmp_path))
    subject = subject_of(model, model.input_shape)
    for form in ("onnx", "torchscript") if name in UNUSUAL else ("torchscript",):
        exported(subject, tmp_path / form / "x.file", form)
    if name == "prioritized":
        half = subject_of(chanprune.extract(model, 0.5), model.input_shape, 0.5)
        exported(half, tmp_path / "half/x.onnx", "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", DEEPEST)
def test_every_network_of_ours_is_exported(name, tmp_path):
    model = network(name).float()
    graph = trace(model, ZOO_SHAPE)
    small = channels_last(compact(model, graph, random_plan(graph, 1), check=False).model)
    exported(subject_of(small, ZOO_SHAPE), tmp_path / "x.onnx", "onnx")


@pytest.mark.parametrize("form", but_slow(FORMATS, "torch_export", "onnx"))
def test_every_format_takes_any_number_of_images(form, tmp_path):
    model = randomise(SMALL["residual"](), 0)
    exported(subject_of(model, SMALL_SHAPE), tmp_path / "x.file", form)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    asked = train(*TINY, "run.dir=run", "cache.enabled=false", cwd=folder)
    assert asked.returncode == 0, asked.stderr
    return folder


def test_a_finished_run_becomes_a_file_that_says_all(finished):
    asked = call("chanprune.export", "run=run", "out=far/x.onnx", "preprocess=true", cwd=finished)
    assert (asked.returncode, asked.stderr) == (0, ""), asked.stderr
    assert "8 of 8 batch norms folded" in asked.stdout and "test images of digits" in asked.stdout
    assert "takes    uint8 (N, 1, 16, 16), gray pixels from 0 to 255" in asked.stdout
    assert "100.00 % of the answers equal" in asked.stdout
    model = chanprune.load(finished / "run")
    session = InferenceSession(finished / "far/x.onnx")
    told = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(told["class_names"])) == model.class_names
    assert json.loads(told["mean"]) == list(model.preprocessing.mean)
    assert json.loads(told["input_shape"]) == [1, 16, 16]
    summary = json.loads((finished / "run/summary.json").read_text())
    assert (int(told["params"]), int(told["macs"])) == (summary["params"], summary["macs"])
    pixels = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    (logits,) = session.run(["logits"], {"images": pixels.numpy()})
    with torch.no_grad():
        expected = model(model.preprocess(pixels))
    assert np.abs(logits - expected.numpy()).max() < 1e-4 * expected.abs().max()
    assert str(finished).encode() not in (finished / "far/x.onnx").read_bytes()


@pytest.mark.parametrize("preprocess", but_slow(["false", "true"], "true"))
@pytest.mark.parametrize(("precision", "kind"), [("fp16", "FLOAT16"), ("int8", "INT8")])
def test_smaller_numbers_leave_the_answers(finished, precision, kind, preprocess):
    arguments = ("run=run", f"precision={precision}", f"preprocess={preprocess}")
    done = call("chanprune.export", *arguments, cwd=finished)
    assert (done.returncode, done.stderr) == (0, "")
    file = finished / f"run/model-{precision}.onnx"
    tensors = load_onnx(file).graph.initializer
    weights = [own for own in tensors if len(own.dims) > 1 and own.dims[0] > 1]
    assert weights
    assert {TensorProto.DataType.Name(own.data_type) for own in weights} == {kind}
    model = chanprune.load(finished / "run")
    pixels = random_images((1, 16, 16), "a test").pixels
    images = pixels if preprocess == "true" else model.preprocess(pixels)
    answers = onnx.opened(file)(images).argmax(1)
    assert (answers == answers_of(model, model.preprocess(pixels)).argmax(1)).double().mean() > 0.8


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return {"out": self.conv(x).mean((2, 3))}


def test_networks_that_put_out_no_tensor_or_mix_images_are_refused(tmp_path):
    mixing = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
    )
    images = random_images(SMALL_SHAPE, "a test")
    for model, reason in ((Both(), "puts out dict"), (mixing, "depends on the others")):
        subject = Subject(model.eval(), SMALL_SHAPE, None, (), count(model, SMALL_SHAPE))
        with pytest.raises(UserError, match=reason):
            export(subject, images, tmp_path / "x.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_eight_bits_need_images(tmp_path):
    subject = subject_of(randomise(SMALL["residual"](), 0), SMALL_SHAPE)
    images = random_images(SMALL_SHAPE, "a test")
    with pytest.raises(UserError, match="needs images"):
        export(subject, images, tmp_path / "x.onnx", "onnx", precision="int8")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_files_of_pytorch_need_no_chanprune_and_say_all_as_well(finished):
    for form in ("torch_export", "torchscript"):
        asked = call("chanprune.export", "run=run", f"format={form}", cwd=finished)
        assert (asked.returncode, asked.stderr) == (0, ""), asked.stderr
        path = finished / f"run/model{MODULES[form].SUFFIX}"
        told = MODULES[form].described(path, {"class_names": "", "input": ""})
        assert json.loads(told["class_names"]) == list(map(str, range(10)))
        assert told["input"] == "float32 (N, 1, 16, 16), gray (pixels / 255 - mean) / std"


MISTAKES = {
    "run=nowhere": "run=nowhere: no finished run is there",
    "run=unfinished": "run=unfinished: no finished run is there",
    "run=run format=tflite": "format=tflite: must be one of onnx, torch_export, torchscript",
    "run=run opset=9": "opset=9: must be from 18 to",
    "run=run opset=999": "opset=999: must be from 18 to",
    "run=run opset=18 format=torchscript": "opset=18: goes with format=onnx, not torchscript",
    "run=run fidelity=0.25": "fidelity=0.25: run=run has 1",
    "run=run out=x.pt": "out=x.pt: a file of format=onnx ends in .onnx",
    "run=run out=run/model.safetensors": "ends in .onnx",
    "run=run precision=int8 format=torchscript": "precision=int8 goes with format=onnx",
    "run=run precision=int4": "must be one of fp32, fp16, int8",
    "run=run out=folder": "out=folder is a folder; give a file",
    "run=run out=run/model.json/x.onnx": "is not a directory",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_are_told_in_one_line(arguments, finished):
    (finished / "folder").mkdir(exist_ok=True)
    (finished / "unfinished").mkdir(exist_ok=True)
    for name in ("config.yaml", "model.json"):
        (finished / "unfinished" / name).write_bytes((finished / "run" / name).read_bytes())
    before = sorted(finished.rglob("*"))
    asked = call("chanprune.export", *arguments.split(), cwd=finished)
    assert asked.returncode == 2 and asked.stderr.count("\n") == 1 and not asked.stdout
    assert MISTAKES[arguments] in asked.stderr
    assert sorted(finished.rglob("*")) == before


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to_is_told_before_any_work(finished):
    asked = call("chanprune.export", "run=run", "out=/proc/x.onnx", cwd=finished)
    assert asked.returncode in {2, 3} and asked.stderr.count("\n") == 1
    assert "cannot be written" in asked.stderr


@pytest.mark.slow
def test_a_saved_network_of_ones_own_is_exported(tmp_path):
    model = randomise(SMALL["chain"](), 0)
    graph = chanprune.trace(model, SMALL_SHAPE)
    chanprune.save(chanprune.compact(model, graph, random_plan(graph, 0)), tmp_path / "small")
    command = ("chanprune.export", "run=small", "out=x.pt", "format=torchscript")
    refused = call(*command, cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    asked = call(*command, "target=tests.networks:Chain", cwd=tmp_path)
    assert (asked.returncode, asked.stderr) == (0, ""), asked.stderr
    assert "64 images of random pixels (no data set goes with it)" in asked.stdout
    named = (*command, "target=tests.networks:Chain", "preprocess=true")
    assert "was saved without mean and std" in call(*named, cwd=tmp_path).stderr


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as refusal:
        refuse_missing("onnx", None, "fp32")
    assert f"format=onnx needs {package}: pip install 'chanprune[export]'" in str(refusal.value)


class Wandering(nn.Module):
    """Puts out something else each time."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 4, 3), 1

    def forward(self, x):
        self.calls += 1
        return self.conv(x).mean((2, 3)) * self.calls


@pytest.mark.parametrize("form", but_slow(FORMATS, "torch_export", "torchscript"))
def test_a_file_that_computes_something_else_is_not_left(form, tmp_path):
    subject = subject_of(Wandering(), SMALL_SHAPE)
    (tmp_path / "x.file").write_text("before")
    with pytest.raises(RunError, match="computes something else: largest difference"):
        export(subject, random_images(SMALL_SHAPE, "a test"), tmp_path / "x.file", form)
    assert [file.name for file in tmp_path.iterdir()] == ["x.file"]
    assert (tmp_path / "x.file").read_text() == "before"


def test_networks_that_no_exporter_takes_are_refused(tmp_path):
    class Deciding(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match="cannot be"):
        subject = Subject(Deciding(), SMALL_SHAPE, None, (), count(SMALL["chain"](), SMALL_SHAPE))
        export(subject, random_images(SMALL_SHAPE, "a test"), tmp_path / "x.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_answers_may_differ_where_the_checkpoint_has_a_tie():
    expected = torch.tensor([[1.0, 0.0, -5.0], [2.0, 2.0, 0.0]])
    assert agreement(expected + 1e-5, expected).is_fine
    assert not agreement(expected + 1e-3, expected).is_fine
    assert agreement(expected + 1e-3, expected, rounding=1e-3).is_fine
    tie = agreement(expected + torch.tensor([[0, 0, 0], [0, 1e-5, 0]]), expected)
    assert (tie.equal, tie.is_fine) == (0.5, True)
    assert not agreement(expected.flip(1), expected).is_fine
    assert not agreement(expected[:1], expected).is_fine
    assert not agreement(expected * torch.nan, expected).is_fine
    assert agreement(2 * expected, expected, precision="int8").is_fine
    assert not agreement(expected.flip(1), expected, precision="int8").is_fine
    assert not agreement(expected * torch.nan, expected, precision="int8").is_fine
