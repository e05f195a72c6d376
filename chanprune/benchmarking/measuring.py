"""All measurements of a benchmark, as plain values."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from chanprune.benchmarking.layers import NOTICEABLE, alone
from chanprune.benchmarking.memory import peaks
from chanprune.benchmarking.twins import Twins
from chanprune.benchmarking.variants import VARIANTS, Stand
from chanprune.channels import count
from chanprune.formats.exporting import needed
from chanprune.processes.errors import UserError
from chanprune.runtimes import interleaved, threads_of
from chanprune.runtimes.machine import cores, machine

FORMAT = 1
Values = dict[str, Any]
FIGURES = ("median", "low", "high", "rounds")  # of a timing


@dataclass(frozen=True)
class Asked:
    """What is to be measured.

    Attributes:
        folder: A finished run, or what `chanprune.save` wrote.
        variants: Of `VARIANTS`; the compact network comes in any case.
        batches: Numbers of images.
        threads: Numbers of threads.
        seconds: How long each measurement may take.
        components: See `Twins`.
        target: See `Twins`.
    """

    folder: Path
    variants: Sequence[str]
    batches: Sequence[int]
    threads: Sequence[int]
    seconds: float
    components: str | None = None
    target: str | None = None


def measure(asked: Asked, device: torch.device) -> Values:
    """Measure; return what benchmark.json holds.

    Returns:
        "networks": name -> "params", "macs" of one image; "timings": one entry for each variant,
        batch and number of threads; "layers": those whose time does not follow their MACs, where
        that was, and the time "outside" of all layers; None where the network's time follows.

    Raises:
        UserError: There is no such network, or a runtime is missing.
    """
    if max(asked.threads) > cores():
        raise UserError(f"threads={max(asked.threads)}: this machine has {cores()} cores")
    names = [name for name in VARIANTS if name in {*asked.variants, "compact"}]
    if any(VARIANTS[name].runtime == "ort" for name in names):
        needed("onnxruntime", "against=onnx")
        if device.type == "cuda":
            raise UserError("against=onnx: ONNX Runtime is run on the CPU here; give device=cpu")
    twins = Twins(asked.folder, asked.components, asked.target)
    with tempfile.TemporaryDirectory() as folder:
        stand = Stand(twins, device, Path(folder))
        files = {name: stand.file(VARIANTS[name]).stat().st_size for name in names}
        counts = {
            VARIANTS[name].network: count(stand.network(VARIANTS[name]), twins.input_shape)
            for name in names
        }
        timings = list(_timings(asked, stand, names))
        networks: Values = {
            name: {"params": c.params, "macs": c.macs} for name, c in counts.items()
        }
        layers = _layers(asked, stand, timings, networks) if "dense" in names else None
    where = (asked.folder, asked.components, asked.target)
    for name in names:
        taken = peaks(where, name, asked.batches, device.type)
        for timing in timings:
            if timing["variant"] == name:
                timing["peak_bytes"] = taken and taken[timing["batch"]]
                timing["file_bytes"] = files[name]
    return {
        "format": FORMAT,
        "machine": machine(device),
        "input_shape": list(twins.input_shape),
        "networks": networks,
        "timings": timings,
        "layers": layers,
    }


def _timings(asked: Asked, stand: Stand, names: Sequence[str]) -> Iterator[Values]:
    for threads in asked.threads:
        for batch in asked.batches:
            torch.compiler.reset()  # else the second batch is compiled for any
            with threads_of(threads):
                images = stand.images(batch)
                calls = {name: stand.call(name, images, threads) for name in names}
                timed = interleaved(calls, asked.seconds, stand.device)
            whole = timed.get("dense")
            for name, timing in timed.items():
                yield {
                    "variant": name,
                    "network": VARIANTS[name].network,
                    "runtime": VARIANTS[name].runtime,
                    "batch": batch,
                    "threads": threads,
                    **{name: getattr(timing, name) for name in FIGURES},
                    "images_per_second": batch / timing.median,
                    "of_dense": timing.median / whole.median if whole else None,
                }


def _layers(
    asked: Asked, stand: Stand, timings: Sequence[Values], networks: Values
) -> Values | None:
    """Look into the layers where the compact network's time is furthest above its MACs."""
    macs = networks["compact"]["macs"] / networks["dense"]["macs"]
    whole = {_where(timing): timing for timing in timings if timing["variant"] == "dense"}
    own = {_where(timing): timing for timing in timings if timing["variant"] == "compact"}
    share = {where: own[where]["low"] / whole[where]["low"] for where in own}
    where = max(share, key=share.__getitem__)
    if share[where] <= NOTICEABLE * macs:
        return None
    batch, threads = where
    with threads_of(threads):
        dense, compact = (stand.network(VARIANTS[name]) for name in ("dense", "compact"))
        odd, inside = alone(dense, compact, stand.images(batch), asked.seconds)
    return {
        "batch": batch,
        "threads": threads,
        "timed": inside.number,
        "outside": [
            max(0.0, network[where]["low"] - seconds)
            for network, seconds in zip((whole, own), inside.seconds, strict=True)
        ],
        "odd": [{**asdict(layer), "lost": layer.lost} for layer in odd],
    }


def _where(timing: Values) -> tuple[int, int]:
    return timing["batch"], timing["threads"]
