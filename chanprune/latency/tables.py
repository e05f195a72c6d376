"""How long each layer takes by its widths: measured once for a machine, and kept.

A layer is timed over a grid of its input and output channels: along the four sides of the grid,
and what lies inside is interpolated from them (a Coons patch), which is exact where the time is a
product or a sum of both widths, steps included. All layers of a network are called one after the
other for each point of the grid, so that each finds the caches as the others leave them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from chanprune.channels import operations as ops
from chanprune.files.digest import digest
from chanprune.files.reading import json_if_any
from chanprune.files.writing import write_json
from chanprune.latency.layers import Floats, Shape, TimedLayer, Width
from chanprune.runtimes import Runtime, prepared
from chanprune.runtimes.clock import timed
from chanprune.runtimes.machine import machine
from chanprune.runtimes.ort_layers import Called, profiled

POINTS = 9  # of each side of a grid, and the narrow widths
NARROW = (1, 2, 4)
MOST = POINTS + len(NARROW)
ROUNDS = 5


def is_step(width: int, whole: int, runtime: Runtime) -> bool:
    """Tell whether a width is worth a measurement: whole, a multiple of a vector, or narrower.

    ONNX Runtime lays channels out in blocks of eight, and convolves other numbers of them several
    times as slowly.

    Args:
        width: The width.
        whole: The whole width.
        runtime: What will run the network.
    """
    step = 8 if whole >= 64 else 4 if whole >= 32 else 2 if whole >= 16 else 1
    if runtime == "ort" and whole >= 16:
        step = 8
    return width == whole or width % step == 0 or width in NARROW


def grid_of(width: Width, runtime: Runtime, unit: int) -> list[int]:
    """Return the widths, ascending, that a side of a grid has: some narrow ones, and even steps."""
    whole = width.whole
    if not width.times.any():
        return [whole]
    legal = [w for w in range(unit, whole + 1, unit) if is_step(w, whole, runtime)]
    places = np.searchsorted(legal, whole * np.arange(1, POINTS + 1) / POINTS)
    narrow = [w for w in legal if w in NARROW]
    return sorted({*narrow, *(legal[place] for place in places)})


@dataclass(frozen=True, eq=False)
class Table:
    """The seconds of one layer.

    Attributes:
        reads: (I,) numbers of input channels, ascending.
        writes: (O,) numbers of output channels, ascending.
        sides: The times (I,) at most and at fewest outputs, and (O,) at most and fewest inputs.
    """

    reads: Floats
    writes: Floats
    sides: tuple[Floats, Floats, Floats, Floats]

    def seconds(self, reads: Floats, writes: Floats) -> Floats:
        """Return the times (...,) for numbers of input and output channels (...,)."""
        most_out, fewest_out, most_in, fewest_in = self.sides
        across = _share(reads, self.reads), _share(writes, self.writes)
        along_reads = _between(
            np.interp(reads, self.reads, fewest_out),
            np.interp(reads, self.reads, most_out),
            across[1],
        )
        along_writes = _between(
            np.interp(writes, self.writes, fewest_in),
            np.interp(writes, self.writes, most_in),
            across[0],
        )
        corners = _between(
            _between(fewest_out[0], most_out[0], across[1]),
            _between(fewest_out[-1], most_out[-1], across[1]),
            across[0],
        )
        found: Floats = np.maximum(along_reads + along_writes - corners, 0)
        return found


def _share(value: Floats, grid: Floats) -> Floats:
    if len(grid) == 1:
        return np.ones_like(value)
    share: Floats = np.clip((value - grid[0]) / (grid[-1] - grid[0]), 0, 1)
    return share


def _between(low: Floats, high: Floats, share: Floats) -> Floats:
    found: Floats = low + (high - low) * share
    return found


@dataclass(frozen=True)
class Bench:
    """What layers are timed with.

    Attributes:
        runtime: What runs them.
        threads: How many it uses.
        device: Where they compute.
        folder: Where measurements are kept, by machine; None: nowhere.
    """

    runtime: Runtime
    threads: int
    device: torch.device
    folder: Path | None


def tables_of(layers: Sequence[TimedLayer], bench: Bench) -> list[Table]:
    """Time layers over their grids; what was timed before on this machine is taken from the file.

    Raises:
        UserError: What the runtime needs is not installed.
        RunError: The file cannot be written.
    """
    # A compiled convolution is the library's, as an eager one is.
    runtime: Runtime = "eager" if bench.runtime == "compiled" else bench.runtime
    about = {**machine(bench.device), "runtime": runtime, "threads": bench.threads}
    path = bench.folder / f"{digest(about, 16)}.json" if bench.folder else None
    known = _known(path)
    before = len(known)
    grids = [_grids(layer, runtime) for layer in layers]
    for point in range(4 * MOST):
        fresh: dict[str, Called] = {}
        for layer, grid in zip(layers, grids, strict=True):
            reads, writes = _point(grid, point)
            key = _key(layer, reads, writes)
            if key not in known and key not in fresh:
                fresh[key] = _called(layer, reads, writes, bench.device)
        if fresh:
            known |= zip(fresh, _timed(list(fresh.values()), runtime, bench), strict=True)
    if path and len(known) > before:
        write_json(path, {"about": about, "seconds": known})
    return [_table(layer, grid, known) for layer, grid in zip(layers, grids, strict=True)]


def _known(path: Path | None) -> dict[str, float]:
    """Read what was measured; nothing of a file that is damaged."""
    match json_if_any(path) if path else None:
        case {"seconds": dict(seconds)}:
            return {
                key: value
                for key, value in seconds.items()
                if isinstance(value, float) and 0 < value < math.inf
            }
    return {}


def _grids(layer: TimedLayer, runtime: Runtime) -> tuple[list[int], list[int]]:
    """Return the widths that are timed of what a layer reads and writes.

    What a depthwise convolution writes follows from what it reads.
    """
    writes = [layer.writes.whole] if layer.depthwise else grid_of(layer.writes, runtime, layer.unit)
    return grid_of(layer.reads, runtime, layer.unit), writes


def _point(grids: tuple[list[int], list[int]], point: int) -> tuple[int, int]:
    """Return the input and output channels at a point of the sides of a grid."""
    side, place = divmod(point, MOST)
    reads, writes = grids
    end = -1 if side % 2 == 0 else 0
    if side < 2:
        return reads[min(place, len(reads) - 1)], writes[end]
    return reads[end], writes[min(place, len(writes) - 1)]


def _table(layer: TimedLayer, grids: tuple[list[int], list[int]], known: dict[str, float]) -> Table:
    sides = []
    for side in range(4):
        points = [_point(grids, side * MOST + place) for place in range(len(grids[side // 2]))]
        sides.append(np.array([known[_key(layer, *point)] for point in points]))
    reads, writes = (np.array(grid, dtype=np.float64) for grid in grids)
    return Table(reads, writes, (sides[0], sides[1], sides[2], sides[3]))


def _key(layer: TimedLayer, reads: int, writes: int) -> str:
    return f"{_narrow(layer, reads, writes, 'meta')} {[list(shape) for shape in layer.inputs]}"


def _narrow(layer: TimedLayer, reads: int, writes: int, device: torch.device | str) -> nn.Module:
    """Return a layer of the same kind with other numbers of channels."""
    old = layer.module
    has_bias = old.bias is not None
    if isinstance(old, nn.Linear):
        return nn.Linear(reads, writes, has_bias, device)
    assert isinstance(old, (*ops.CONVOLUTIONS, *ops.TRANSPOSED))
    if layer.depthwise:
        writes = reads * old.out_channels // old.in_channels
    kind = next(one for one in (*ops.CONVOLUTIONS, *ops.TRANSPOSED) if isinstance(old, one))
    make: Callable[..., nn.Module] = kind
    return make(
        reads,
        writes,
        old.kernel_size,
        stride=old.stride,
        padding=old.padding,
        dilation=old.dilation,
        groups=reads if layer.depthwise else old.groups,
        bias=has_bias,
        device=device,
    )


def _called(layer: TimedLayer, reads: int, writes: int, device: torch.device) -> Called:
    """Return a layer of other widths, and the inputs that it is called with."""
    module = _narrow(layer, reads, writes, device).eval()
    shapes = [_with(shape, layer.axis, reads) for shape in layer.inputs]
    return module, [torch.randn(shape, device=device) for shape in shapes]


def _with(shape: Shape, axis: int, width: int) -> list[int]:
    sizes = list(shape)
    sizes[axis] = width
    return sizes


def _timed(layers: Sequence[Called], runtime: Runtime, bench: Bench) -> list[float]:
    """Return the median of some rounds in which all layers are called one after the other."""
    if runtime == "ort":
        return profiled(layers, bench.threads, ROUNDS)
    calls = [[prepared(runtime, m, x, bench.threads) for x in inputs] for m, inputs in layers]
    took = []
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):
            took.append([sum(timed(call, 1, bench.device) for call in own) for own in calls])
    return [statistics.median(rounds) for rounds in zip(*took[1:], strict=True)]
