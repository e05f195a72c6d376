"""A benchmark as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

MIB = 2**20
NO_CAUSE = "no cause found"
LEGEND = """\
compact is what chanprune.load gives; dense is the whole network, masked the whole one with zeros
in place of what was pruned. eager: PyTorch, channels-last unless the name is contiguous; onnx: ONNX
Runtime. ms: median and quartiles of rounds in which all were run in turn, so that other work on the
machine slows all of them alike. memory: the most that a call takes beside the network, with one
thread, within a MiB or two. file: the network as it is shipped."""
CAUSES = """\
us: lower quartiles. work: MACs; of batch norms, numbers. measured, in the layer's own time: call
overhead, a call that computes one number; memory, a copy of as many numbers as it reads and writes;
odd width, the layer in multiples of 8, with more work; gather, without it; little work, with four
times the pixels."""


def as_text(values: Mapping[str, Any]) -> str:
    """Return a benchmark's tables.

    Args:
        values: See `measuring.measure`.
    """
    machine = values["machine"]
    shape = " x ".join(map(str, values["input_shape"]))
    head = (
        f"Images of {shape} on {machine['processor']}, {machine['cores']} cores, "
        f"PyTorch {machine['torch']}, ONNX Runtime {machine['onnxruntime']}"
    )
    parts = [head, _networks(values), _timings(values["timings"]), LEGEND]
    if values["layers"] is not None:
        parts.append(_layers(values["layers"]))
    return "\n\n".join(parts)


def _networks(values: Mapping[str, Any]) -> str:
    whole = values["networks"].get("dense")
    rows = [
        [
            name,
            f"{own['params']:,}{_share(own, whole, 'params')}",
            f"{own['macs']:,}{_share(own, whole, 'macs')}",
        ]
        for name, own in values["networks"].items()
    ]
    return _table(rows, ["network", "params", "MACs of one image"])


def _share(own: Mapping[str, int], whole: Mapping[str, int] | None, key: str) -> str:
    return f" ({own[key] / whole[key]:.3f})" if whole and own is not whole else ""


def _timings(timings: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{timing['threads']}",
            f"{timing['batch']}",
            timing["variant"],
            f"{1000 * timing['median']:.3f}",
            f"{1000 * timing['low']:.3f} .. {1000 * timing['high']:.3f}",
            f"{timing['images_per_second']:,.1f}",
            "" if timing["of_dense"] is None else f"{timing['of_dense']:.3f}",
            "" if timing["peak_bytes"] is None else f"{timing['peak_bytes'] / MIB:.1f}",
            f"{timing['file_bytes'] / MIB:.2f}",
        ]
        for timing in timings
    ]
    heads = ["threads", "batch", "", "ms", "quartiles", "images/s", "of dense", "memory MiB"]
    return _table(rows, [*heads, "file MiB"], left=2)


def _layers(layers: Mapping[str, Any]) -> str:
    rows = [
        [
            layer["name"],
            *(f"{a} > {b}" for a, b in layer["widths"]),
            *(f"{1e6 * seconds:,.0f}" for seconds in layer["seconds"]),
            f"{layer['seconds'][1] / layer['seconds'][0]:.2f}",
            f"{layer['work'][1] / layer['work'][0]:.2f}",
            "; ".join(layer["causes"]) or NO_CAUSE,
        ]
        for layer in layers["odd"]
    ]
    heads = ["layer", "whole", "compact", "us whole", "us compact", "time", "work", "measured"]
    images = "1 image" if layers["batch"] == 1 else f"{layers['batch']} images"
    threads = "1 thread" if layers["threads"] == 1 else f"{layers['threads']} threads"
    text = (
        f"With {images} and {threads} the time is above the MACs' share. Layers by themselves, "
        f"{layers['timed']} in all, compact beside whole:"
    )
    table = _table(rows, heads, left=0, last="left") if rows else "None of them stands out."
    whole, compact = (f"{1000 * seconds:.3f} ms" for seconds in layers["outside"])
    return (
        f"{text}\n\n{table}\n\n{CAUSES} What is left of the networks' time (activations, pools, "
        f"sums, calls): {whole} whole, {compact} compact."
    )


def _table(
    rows: Sequence[Sequence[str]], heads: Sequence[str], left: int = 0, last: str = ""
) -> str:
    """Return a table, whose column number `left` is aligned left, and the others right."""
    align = ["left" if place == left else "right" for place in range(len(heads))]
    if last:
        align[-1] = last
    return tabulate(rows, heads, tablefmt="simple", colalign=align, disable_numparse=True)
