"""Networks of today, from real images to a small model that loads anywhere and is exported."""

import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from onnxruntime import InferenceSession
from torch import nn
from torch.export import Dim, ExportedProgram

import chanprune
from chanprune.channels import count
from chanprune.pipeline.agreement import agreement, answers_of
from chanprune.pipeline.exporting import rounding_of
from tests.commands import call, train
from tests.test_data import SHARED

pytestmark = pytest.mark.slow

NETWORKS = {
    "shufflenet": ("model=torchvision", "model.name=shufflenet_v2_x0_5", "train.epochs=6"),
    "efficientnet": ("model=torchvision", "model.name=efficientnet_b0", "train.epochs=6"),
    "convnext": ("model=torchvision", "model.name=convnext_tiny", "train.epochs=2"),
    "c2f": ("model=c2f", "train.epochs=6"),
}
SCHEDULE = (
    *("train.batch_size=16", "train.optimiser=adam", "train.lr=0.001"),
    *("finetune.epochs=2", "finetune.lr=0.0005"),
)
PRUNE = ("method=l1norm", "prune.ratio=0.3", "prune.coupled=together")
ARCHIVE = SHARED / "cifar10-webp.zip"
IMAGES_PER_CLASS = {"train": 24, "test": 8}


def unpack_images(folder: Path) -> None:
    """Take the first images of each class of CIFAR-10."""
    taken: Counter[Path] = Counter()
    with zipfile.ZipFile(ARCHIVE) as archive:
        for path in map(Path, archive.namelist()):
            if path.suffix == ".webp" and taken[path.parent] < IMAGES_PER_CLASS[path.parts[0]]:
                taken[path.parent] += 1
                archive.extract(str(path), folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> tuple[str, ...]:
    """Return the options of a few hundred real images of 64 x 64 pixels."""
    if not ARCHIVE.exists():
        return ("dataset=digits", "dataset.share=0.2", "dataset.image_size=64")
    folder = tmp_path_factory.mktemp("images")
    unpack_images(folder)
    return ("dataset=imagefolder", f"dataset.root={folder}", "dataset.image_size=64")


@pytest.fixture(scope="module", params=NETWORKS)
def product(request, images, tmp_path_factory) -> Path:
    """Train, prune and fine-tune a network; return where it is then."""
    folder = tmp_path_factory.mktemp(request.param)
    asked = train(
        *NETWORKS[request.param],
        *(*images, *PRUNE, *SCHEDULE, "device=cpu", "cache.enabled=false", "run.dir=out"),
        cwd=folder,
    )
    assert asked.returncode == 0, asked.stderr
    return folder / "out"


@pytest.fixture
def model(product) -> nn.Module:
    return chanprune.load(product)


def batch(model: nn.Module, number: int) -> torch.Tensor:
    return torch.randn(number, *model.input_shape, generator=torch.Generator().manual_seed(number))


def test_the_model_is_small_and_what_the_table_says(product, model):
    summary = json.loads((product / "summary.json").read_text())
    whole, pruned = summary["stages"][:2]
    assert pruned["channels"] < 0.8 * whole["channels"]
    counts = count(model, model.input_shape)
    assert (counts.params, counts.macs) == (summary["params"], summary["macs"])
    assert counts.macs < 0.8 * whole["macs"]
    assert json.loads((product / "plan.json").read_text())["passes"][0]["self_check_error"] <= 1e-9
    evaluated = call("chanprune.evaluate", f"run={product}", "format=json", cwd=product.parent)
    assert json.loads(evaluated.stdout)["accuracy"] == summary["accuracy"]


def test_the_network_learns_before_and_after(product):
    lines = [json.loads(line) for line in (product / "metrics.jsonl").read_text().splitlines()]
    first, *_, trained = (line["loss"] for line in lines if line["stage"] == "train")
    assert trained < first
    first, last = (line["loss"] for line in lines if line["stage"] == "finetune")
    assert last < first


LOAD = """
import sys, torch, chanprune
folder = sys.argv[1]
torch.save(chanprune.load(folder)(torch.load(f"{folder}/batch.pt")), f"{folder}/outputs.pt")
"""


def test_a_fresh_process_computes_the_same_bits(product, model, tmp_path):
    torch.save(batch(model, 4), product / "batch.pt")
    subprocess.run([sys.executable, "-c", LOAD, product], check=True)
    with torch.no_grad():
        assert torch.equal(torch.load(product / "outputs.pt"), model(batch(model, 4)))


def is_alike(model: nn.Module, images: torch.Tensor, got: torch.Tensor) -> bool:
    """Tell whether outputs are the network's, but for what its own rounding changes.

    After so little training EfficientNet's batch norms let logits of random pixels grow to
    hundreds, of which float32 keeps five digits or fewer, in PyTorch as elsewhere.
    """
    expected = answers_of(model, images)
    return agreement(got, expected, rounding_of(model, images, expected)).is_fine


def test_the_model_is_exported_for_any_number_of_images(model):
    program = torch.export.export(
        model, (batch(model, 2),), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False
    )
    assert isinstance(program, ExportedProgram)
    with torch.no_grad():
        assert is_alike(model, batch(model, 5), program.module()(batch(model, 5)))


def test_the_model_is_exported_to_onnx(model, tmp_path):
    torch.onnx.export(
        model,
        (batch(model, 2),),
        tmp_path / "model.onnx",
        dynamic_shapes=({0: Dim.DYNAMIC},),
        verbose=False,
    )
    session = InferenceSession(tmp_path / "model.onnx")
    (images,) = session.get_inputs()
    (logits,) = session.run(None, {images.name: batch(model, 5).numpy()})
    assert is_alike(model, batch(model, 5), torch.from_numpy(logits))


def test_the_command_exports_the_model_and_checks_it_on_real_images(product, tmp_path):
    asked = call("chanprune.export", f"run={product}", "format=onnx", "out=x.onnx", cwd=tmp_path)
    assert (asked.returncode, asked.stderr) == (0, ""), asked.stderr
    assert "test images of" in asked.stdout and (tmp_path / "x.onnx").exists()
