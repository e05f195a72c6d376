"""A compact network as a file of its own, folded and checked against the checkpoint.

The file takes its name after the check: what cannot be right is not left behind.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import chanprune
from chanprune.channels import Counts, UnsupportedNetwork, fold
from chanprune.channels.double import InDouble
from chanprune.channels.modes import copied
from chanprune.files.writing import flush, flush_folder, make_folder, part_of
from chanprune.formats import onnx
from chanprune.formats.exporting import needed
from chanprune.formats.int8 import quantise
from chanprune.formats.onnx import refuse_opset
from chanprune.pipeline.agreement import (
    MOST_ROUNDING,
    Agreement,
    Precision,
    agreement,
    answers_of,
    in_fresh_process,
)
from chanprune.pipeline.model_file import Preprocessing
from chanprune.processes.errors import RunError, UserError
from chanprune.rewiring import plain_copies

FORMATS = ("onnx", "torch_export", "torchscript")
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": (), "torchscript": ()}


@dataclass(frozen=True)
class Subject:
    """What is exported.

    Attributes:
        model: The compact network, as `load` gives it: takes images (N, C, H, W).
        input_shape: (C, H, W).
        preprocessing: What makes its input of an image; None: that is not known.
        class_names: One for each logit; empty: they are not known.
        counts: Its parameters and multiply-accumulates.
        fidelity: Its level.
    """

    model: nn.Module
    input_shape: tuple[int, int, int]
    preprocessing: Preprocessing | None
    class_names: tuple[str, ...]
    counts: Counts
    fidelity: float = 1.0


@dataclass(frozen=True)
class Images:
    """What the file is checked on.

    Attributes:
        pixels: (N, C, H, W) uint8.
        what: What they are, in words.
        shown: (N, C, H, W) uint8, others, whose values tell the ranges for eight bits; None: there
            is no data.
    """

    pixels: Tensor
    what: str
    shown: Tensor | None = None


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        num_bytes: Its size.
        folded: Number of batch norms that are folded.
        left: Number of those that stay.
        takes: What it takes, in words.
        agreement: How far it is from the checkpoint.
    """

    path: Path
    num_bytes: int
    folded: int
    left: int
    takes: str
    agreement: Agreement


class Halved(nn.Module):
    """A network that computes with sixteen bits, between inputs and outputs as they were.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.half()

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) to the network's output."""
        output: Tensor = self.model(images.half()).float()
        return output


class Preprocessed(nn.Module):
    """A network behind the normalisation of its images.

    Args:
        model: The network.
        preprocessing: Its mean and deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, preprocessing: Preprocessing):
        super().__init__()
        self.model = model
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name)) * 255
            self.register_buffer(name, values.view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 (N, C, H, W) to the network's output."""
        output: Tensor = self.model((images.to(self.mean.dtype) - self.mean) / self.std)
        return output


def refuse_missing(form: str, opset: int | None, precision: Precision) -> None:
    """Refuse a format whose packages are missing, or another's options; raises UserError."""
    if precision == "int8" and form != "onnx":
        raise UserError(f"precision=int8 goes with format=onnx, not {form}")
    for package in NEEDED[form]:
        needed(package, f"format={form}")
    if form == "onnx":
        refuse_opset(opset)
    elif opset is not None:
        raise UserError(f"opset={opset}: goes with format=onnx, not {form}")


def export(
    subject: Subject,
    images: Images,
    path: Path,
    form: str,
    opset: int | None = None,
    preprocess: bool = False,
    precision: Precision = "fp32",
) -> Exported:
    """Write a network, compare the file with it, and only then give the file its name.

    Args:
        subject: The network.
        images: What both are run on.
        path: The file.
        form: One of `FORMATS`.
        opset: Of ONNX; None: the exporter's.
        preprocess: The file takes the pixels, and normalises them itself.
        precision: Of its weights and what it computes with.

    Raises:
        UserError: The network cannot be written in this format.
        RunError: The file cannot be written, or computes something else.
    """
    _refuse_unusual(subject, images)
    try:
        folded = fold(plain_copies(copied(subject.model)), subject.input_shape)
    except UnsupportedNetwork as error:
        raise UserError(f"batch norms cannot be folded: {error}") from error
    network, dtype = folded.model, None
    if precision == "fp16":
        network, dtype = Halved(network).eval(), torch.float32
    if preprocess:
        if subject.preprocessing is None:
            raise UserError("preprocess=true: this network was saved without mean and std")
        network, dtype = Preprocessed(network, subject.preprocessing).eval(), torch.uint8
    takes = _takes(subject, preprocess)
    writer, part = import_module(f"chanprune.formats.{form}"), part_of(path)
    try:
        _make_folder_of(path)
        metadata = _metadata(subject, takes, len(folded.into))
        writer.write(network, subject.input_shape, part, metadata, opset, dtype)
        if precision == "int8":
            quantise(part, _as_taken(_to_show(images), subject, preprocess))
        found = _checked(subject, images, part, form, preprocess, precision)
        num_bytes = part.stat().st_size
        _take_name(part, path)
    finally:
        part.unlink(missing_ok=True)
    return Exported(path, num_bytes, len(folded.into), len(folded.left), takes, found)


def _refuse_unusual(subject: Subject, images: Images) -> None:
    """Refuse networks that put out no tensor, or whose answers depend on the batch."""
    given = _normalised(images.pixels[:4], subject)
    with torch.inference_mode():
        beside, again, alone = (subject.model(images) for images in (given, given, given[:1]))
    if not isinstance(beside, Tensor):
        kind = type(beside).__name__
        raise UserError(f"this network puts out {kind}; export takes those that put out a tensor")
    if torch.equal(beside, again) and not agreement(alone, beside[:1], MOST_ROUNDING).is_fine:
        raise UserError(
            "what this network makes of an image depends on the others in its batch, as of norms "
            "without running statistics; a file would not tell"
        )


def _checked(
    subject: Subject,
    images: Images,
    part: Path,
    form: str,
    preprocess: bool,
    precision: Precision,
) -> Agreement:
    """Run the file as it was written; raises RunError if it disagrees with the checkpoint."""
    given = _normalised(images.pixels, subject)
    expected = answers_of(subject.model, given)
    taken = _as_taken(images.pixels, subject, preprocess)
    if form == "onnx":
        got = answers_of(onnx.opened(part), taken)
    else:
        got = in_fresh_process(form, part, taken)
    found = agreement(got, expected, precision=precision)
    if not found.is_fine:
        rounding = rounding_of(subject.model, given, expected)
        found = agreement(got, expected, rounding, precision)
    if not found.is_fine:
        raise RunError(f"{form} is not written: the file computes something else: {found.told}")
    return found


def rounding_of(model: nn.Module, images: Tensor, outputs: Tensor) -> float:
    """Return how far a network's outputs are from those in float64, relative to the largest.

    What its own rounding changes, no file can be asked to keep.
    """
    with InDouble():
        exact = answers_of(copied(model, dtype=torch.float64), images.double())
    return float((outputs - exact).abs().max() / exact.abs().max())


def _normalised(pixels: Tensor, subject: Subject) -> Tensor:
    """Return what the network takes of uint8 pixels (N, C, H, W)."""
    dtype = next((p.dtype for p in subject.model.parameters()), torch.float32)
    mean, std = (
        torch.tensor(values, dtype=dtype).view(1, -1, 1, 1) * 255 for values in _statistics(subject)
    )
    return (pixels.to(dtype) - mean) / std


def _as_taken(pixels: Tensor, subject: Subject, preprocess: bool) -> Tensor:
    return pixels if preprocess else _normalised(pixels, subject)


def _to_show(images: Images) -> Tensor:
    if images.shown is None:
        raise UserError(
            f"precision=int8 needs images that show the ranges of values, and has {images.what}; "
            "give dataset.root=, where the run's data is"
        )
    return images.shown


def _statistics(subject: Subject) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation; those of random pixels where they are not known."""
    if subject.preprocessing is not None:
        return subject.preprocessing.mean, subject.preprocessing.std
    channels = subject.input_shape[0]
    return (0.5,) * channels, (0.289,) * channels


def _takes(subject: Subject, preprocess: bool) -> str:
    """Say what the file takes."""
    channels, height, width = subject.input_shape
    colours = {1: "gray ", 3: "RGB "}.get(channels, "")
    shape = f"(N, {channels}, {height}, {width})"
    if preprocess:
        return f"uint8 {shape}, {colours}pixels from 0 to 255"
    dtype = next((p.dtype for p in subject.model.parameters()), torch.float32)
    kind = str(dtype).removeprefix("torch.")
    if subject.preprocessing is None:
        return f"{kind} {shape}"
    return f"{kind} {shape}, {colours}(pixels / 255 - mean) / std"


def _metadata(subject: Subject, takes: str, folded: int) -> dict[str, str]:
    """Return what the file says of itself; lists are JSON."""
    told: dict[str, Any] = {
        "chanprune": chanprune.__version__,
        "input": takes,
        "input_shape": json.dumps(subject.input_shape),
        "params": subject.counts.params,
        "macs": subject.counts.macs,
        "fidelity": subject.fidelity,
        "folded_batch_norms": folded,
    }
    if subject.class_names:
        told["class_names"] = json.dumps(subject.class_names, ensure_ascii=False)
    if subject.preprocessing is not None:
        told["mean"] = json.dumps(subject.preprocessing.mean)
        told["std"] = json.dumps(subject.preprocessing.std)
    return {key: str(value) for key, value in told.items()}


def _make_folder_of(path: Path) -> None:
    try:
        make_folder(path.parent)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from error


def _take_name(part: Path, path: Path) -> None:
    try:
        flush(part)
        part.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from error
