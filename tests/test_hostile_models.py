"""Model files that nobody should trust: loaded and at work, or refused in one line and at once."""

import json
import os
import random
import resource
import shutil
import time
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import chanprune
from chanprune.channels import Plan, compact, count, recalibrate, trace
from chanprune.models import build
from chanprune.pipeline.model_file import Preprocessing, save_model
from chanprune.processes.errors import UserError
from chanprune.rewiring import restore
from tests.commands import in_child
from tests.mutations import mutate_json, mutate_tensors
from tests.networks import but_slow

MOST_MEMORY, MOST_SECONDS = 2**30, 10  # beyond what a small network takes; a busy machine
SIZES = {"num_classes": 4, "in_channels": 1, "image_size": 16}
DENSE = {"name": "densenet40", "width": 0.25, "bottleneck": True, "transition": "pool"}
COPIES = {"stages.2.1.bn1": {"slots": [4, 6], "sources": [8, 8]}}
KERNELS = {"stages.2.1.conv1": {"own": [0, 1, 3], "copied": [2, 5], "radius": 2}}
FORMS = {
    "plain": ({"name": "vgg11", "width": 0.0625}, {}),
    "copies": (DENSE, {"copies": COPIES}),
    "kernels": (DENSE, {"expanded": KERNELS}),
    "groups": ({"name": "condensenet50", "width": 0.25, "converted": True}, {}),
}


def save(folder, form):
    """Write a small model of a form, with statistics of a level of its own."""
    options, made = FORMS[form]
    architecture = {**options, **SIZES}
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = build(**architecture)
    restore(model, made)
    graph = trace(model, (1, 16, 16))
    group = graph.prunable("keep")[0]
    kept = (index for index in range(group.size) if index % (group.size // group.blocks))
    plan = Plan({group.name: kept})
    small = compact(model, graph, plan).model
    recalibrate(small, [(torch.randn(8, 1, 16, 16), torch.zeros(8))], "cpu")
    buffers = {name: own.clone() for name, own in small.named_buffers() if "running_" in name}
    save_model(
        folder,
        small,
        architecture,
        plan,
        Preprocessing((1, 16, 16), (0.5,), (0.25,)),
        ("a", "b", "c", "d"),
        count(small, (1, 16, 16)),
        made,
        {0.5: buffers},
    )
    return folder


def assert_at_work(model):
    """A network that was loaded runs, at every level, and has a logit for each class."""
    for level in (1.0, 0.5):
        model.set_fidelity(level)
        with torch.no_grad():
            assert model(torch.zeros(2, *model.input_shape)).shape == (2, len(model.class_names))


def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def load_mutated(sources, scratch, number):
    """Load so many mutations; return how many were refused."""
    refused = []
    slowest = [0.0]

    @settings(max_examples=number, deadline=None, database=None, derandomize=True)
    @given(st.sampled_from(sources), st.integers(0, 2**32), st.booleans())
    def load_one(source, seed, of_tensors):
        folder = shutil.copytree(source, scratch / f"{len(os.listdir(scratch))}")
        chance = random.Random(seed)
        if of_tensors:
            mutate_tensors(folder / "model.safetensors", chance)
        else:
            mutate_json(folder / "model.json", chance)
        began = time.perf_counter()
        try:
            assert_at_work(chanprune.load(folder))
        except UserError as error:
            assert "allocate" not in str(error)
            refused.append(str(error))
        slowest[0] = max(slowest[0], time.perf_counter() - began)
        shutil.rmtree(folder)

    scratch.mkdir()
    before = peak()
    load_one()
    assert peak() - before < MOST_MEMORY
    assert slowest[0] < MOST_SECONDS
    return len(refused)


@pytest.mark.parametrize("number", but_slow([20, 600], 600))
def test_a_mutated_model_is_refused_or_works(number, tmp_path):
    sources = [save(tmp_path / form, form) for form in FORMS]
    refused = in_child(load_mutated, sources, tmp_path / "scratch", number)
    assert refused > number / 3


@pytest.mark.parametrize("form", FORMS)
def test_what_was_saved_is_loaded_and_at_work(form, tmp_path):
    assert_at_work(chanprune.load(save(tmp_path / form, form)))


def changed(folder, place, value):
    path = folder / "model.json"
    values = json.loads(path.read_text())
    *outer, key = place
    holder = values
    for part in outer:
        holder = holder[part]
    holder[key] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("form", "place", "value"),
    [
        ("plain", ("class_names",), ["x"]),
        ("plain", ("input_shape",), [1, 32, 32]),
        ("plain", ("preprocess", "std"), [0.0]),
        ("plain", ("preprocess", "mean"), [0.0, 0.0]),
        ("plain", ("plan", "nowhere"), [0]),
        ("plain", ("plan", "features.bn1_1"), [10**5]),
        ("plain", ("architecture", "width"), 64.0),
        ("plain", ("architecture", "odd"), 1),
        ("plain", ("architecture", "library"), "torchvision"),
        ("kernels", ("architecture", "growth"), 2**19),
        ("copies", ("copies", "stages.2.1.bn1", "sources"), [8, 10**5]),
        ("copies", ("copies", "stages.2.1.bn1", "slots"), [4, 4]),
        ("copies", ("copies", "stages.2.1.bn1", "slots"), [4]),
        ("copies", ("copies", "stages.2"), {"slots": [4], "sources": [8]}),
        ("kernels", ("expanded", "stages.2.1.conv1", "radius"), 2000),
        ("kernels", ("expanded", "stages.2.1.conv1", "own"), [0, 1, 10**5]),
        ("kernels", ("expanded", "stages.2.1.bn1"), KERNELS["stages.2.1.conv1"]),
    ],
)
def test_a_description_that_is_not_the_network_s_is_refused(form, place, value, tmp_path):
    changed(save(tmp_path / form, form), place, value)
    with pytest.raises(UserError, match=r"^[^\n]*damaged: [^\n]+$"):
        chanprune.load(tmp_path / form)


def test_a_million_classes_are_not_built(tmp_path):
    """Nor is their weight, which no tensor of the file has."""
    folder = save(tmp_path / "plain", "plain")
    changed(folder, ("architecture", "num_classes"), 10**6)
    changed(folder, ("class_names",), ["x"] * 10**6)
    with pytest.raises(UserError, match="no tensor is of that size"):
        chanprune.load(folder)


def refused_within_memory(folder):
    before = peak()
    with pytest.raises(UserError, match="damaged"):
        chanprune.load(folder)
    return peak() - before


@pytest.mark.parametrize("growth", [2**14, 2**19])
def test_a_network_of_any_width_is_refused_within_bounds(growth, tmp_path):
    """Nor does following its channels take what its tensors would."""
    folder = save(tmp_path / "kernels", "kernels")
    changed(folder, ("architecture", "growth"), growth)
    assert in_child(refused_within_memory, folder) < MOST_MEMORY


def cut_shift(tensors):
    tensors["stages.2.1.bn1.is_copy"][:] = False


def far(name, tensors):
    tensors[name][-1] = 10**6


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("copies", partial(far, "stages.2.1.bn1.index")),
        ("copies", cut_shift),
        ("kernels", partial(far, "stages.2.1.conv1.own")),
        ("kernels", partial(far, "stages.2.1.conv1.copied")),
        ("groups", lambda t: far(next(n for n in t if n.endswith("index")), t)),
        ("plain", lambda t: t.update({"classifier.bias": t["classifier.bias"].double()})),
        ("plain", lambda t: t.update({"classifier.bias": t["classifier.bias"][:3]})),
        ("plain", lambda t: t.update({"odd": torch.zeros(1)})),
        ("plain", lambda t: t.pop("classifier.bias") is None),
        ("plain", lambda t: t.update({"level:0.5:features.bn1_1.weight": torch.ones(3)})),
        ("plain", lambda t: t.update({"level:0.5:features.bn1_1.running_mean": torch.ones(9)})),
        ("plain", lambda t: t.update({"level:7:features.bn1_1.running_mean": torch.ones(3)})),
        ("plain", lambda t: t.update({"level:x:features.bn1_1.running_mean": torch.ones(3)})),
    ],
)
def test_tensors_that_are_not_the_network_s_are_refused(form, change, tmp_path):
    path = save(tmp_path / form, form) / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"^[^\n]*damaged: [^\n]+$"):
        chanprune.load(tmp_path / form)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_what_is_no_file_is_refused_at_once(name, tmp_path):
    folder = save(tmp_path / "plain", "plain")
    for make in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"), None):
        path = folder / name
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
        if make:
            make(path)
        with pytest.raises(UserError, match="no regular file|is missing"):
            chanprune.load(folder)
        path.touch()
