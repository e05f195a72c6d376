"""Where time does not follow multiply-accumulates: each layer alone, and why, as measured on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.benchmarking.changed import Layer, larger_images, nothing, rounded, ungathered
from chanprune.channels import LayerCount, copied, count
from chanprune.channels import operations as ops
from chanprune.channels.gathered import Gathered
from chanprune.runtimes import Call, Timing, interleaved

KINDS = (*ops.CONVOLUTIONS, *ops.TRANSPOSED, nn.Linear, *ops.BATCH_NORMS)
NOTICEABLE = 1.25  # times the share of the MACs
SMALLEST = 0.01  # of the network's time, for a layer to be looked at
MOST = 12  # layers
NOISE = 1.5  # from a layer's lower quartile to its median; beyond, no cause is named
HALF, FASTER, FLAT = 0.5, 0.97, 0.6  # when a cause is named, see `_causes`


@dataclass(frozen=True)
class Alone:
    """A layer by itself, in both networks.

    Attributes:
        name: The layer's.
        kind: "conv", "linear" or "batch_norm".
        widths: Channels in and out, whole and compact.
        work: MACs of all images, of a batch norm the numbers that it puts out; whole and compact.
        seconds: Lower quartile, which other work on the machine reaches least; whole and compact.
        causes: Why its time is more than its share of the work; empty where nothing measured says.
    """

    name: str
    kind: str
    widths: tuple[tuple[int, int], tuple[int, int]]
    work: tuple[int, int]
    seconds: tuple[float, float]
    causes: list[str] = field(default_factory=list)

    @property
    def lost(self) -> float:
        """Seconds beyond the share of the work that is left."""
        return self.seconds[1] - self.seconds[0] * self.work[1] / max(1, self.work[0])

    @property
    def follows(self) -> bool:
        """Tell whether the time follows the work."""
        return self.lost <= (NOTICEABLE - 1) * (self.seconds[1] - self.lost)


@dataclass(frozen=True)
class Inside:
    """All layers that were timed: how many are in both networks; seconds, whole and compact."""

    number: int
    seconds: tuple[float, float]


def alone(
    dense: nn.Module, compact: nn.Module, images: Tensor, seconds: float
) -> tuple[list[Alone], Inside]:
    """Time the layers of a network by themselves, and find out about those that lose time.

    Args:
        dense: The whole network, in eval mode on its device.
        compact: What is left of it.
        images: (N, C, H, W).
        seconds: How long either of two measurements may take.

    Returns:
        The layers whose time exceeds their share of the work, the most costly first, and what all
        take together.
    """
    shape = tuple(images.shape[1:])
    networks = {"dense": dense, "compact": compact}
    passed = {which: _passed(model, images) for which, model in networks.items()}
    read = {which: {n: given for n, (given, _) in own.items()} for which, own in passed.items()}
    counts = {
        which: {layer.name: layer for layer in count(copied(model, device="meta"), shape).layers}
        for which, model in networks.items()
    }
    names = [name for name in read["compact"] if name in read["dense"]]
    calls = {
        (which, name): _call(networks[which].get_submodule(name), images)
        for which, found in read.items()
        for name, images in found.items()
    }
    timed = _timed(calls, seconds, images.device)
    layers = [_layer(name, counts, passed, timed, len(images)) for name in names]
    whole = sum(layer.seconds[1] for layer in layers)
    odd = [x for x in layers if not x.follows and x.seconds[1] >= SMALLEST * whole]
    odd = sorted(odd, key=lambda layer: -layer.lost)[:MOST]
    _explain(odd, networks, read, seconds)
    read_by = {which: sum(t.low for (w, _), t in timed.items() if w == which) for which in read}
    return odd, Inside(len(layers), (read_by["dense"], read_by["compact"]))


def _passed(model: nn.Module, images: Tensor) -> dict[str, tuple[Tensor, int]]:
    """Run a network; return a random tensor like what each layer read, and how much it put out."""
    found: dict[str, tuple[Tensor, int]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and name not in found:
                found[name] = torch.randn_like(args[0]), output.numel()

        return hook

    copy = copied(model, shares=True)
    for name, module in copy.named_modules():
        if isinstance(module, (*KINDS, Gathered)):
            module.register_forward_hook(note(name))
    with torch.inference_mode():
        copy(images.contiguous(memory_format=torch.channels_last))
    return found


def _call(module: nn.Module, images: Tensor) -> Call:
    return lambda: module(images)


def _timed(
    calls: Mapping[tuple[str, str], Call], seconds: float, device: torch.device
) -> dict[tuple[str, str], Timing]:
    names = {f"{which} {name}": (which, name) for which, name in calls}
    timed = interleaved({n: calls[key] for n, key in names.items()}, seconds, device)
    return {names[n]: timing for n, timing in timed.items()}


def _layer(
    name: str,
    counts: Mapping[str, Mapping[str, LayerCount]],
    passed: Mapping[str, Mapping[str, tuple[Tensor, int]]],
    timed: Mapping[tuple[str, str], Timing],
    batch: int,
) -> Alone:
    whole, small = counts["dense"].get(name), counts["compact"].get(name)
    widths = tuple((x.input, x.output) if x else (0, 0) for x in (whole, small))
    macs = tuple(batch * x.macs if x else 0 for x in (whole, small))
    put_out = tuple(passed[which][name][1] for which in ("dense", "compact"))
    work = macs if all(macs) else put_out
    return Alone(
        name,
        small.kind if small else "",
        (widths[0], widths[1]),
        (work[0], work[1]),
        (timed["dense", name].low, timed["compact", name].low),
    )


def _explain(
    layers: list[Alone],
    networks: Mapping[str, nn.Module],
    read: Mapping[str, Mapping[str, Tensor]],
    seconds: float,
) -> None:
    """Measure each layer again beside changed forms of it, and note what these say."""
    calls: dict[tuple[str, str], Call] = {}
    for layer in layers:
        module, images = networks["compact"].get_submodule(layer.name), read["compact"][layer.name]
        changed: dict[str, Layer | None] = {
            "itself": (module, images),
            "rounded": rounded(module, networks["dense"].get_submodule(layer.name), images),
            "larger": larger_images(module, images),
            "nothing": nothing(module, images),
            "ungathered": ungathered(module, images),
        }
        calls |= {(which, layer.name): _call(*made) for which, made in changed.items() if made}
        with torch.inference_mode():
            moved = (images.numel() + module(images).numel() + _size(module)) // 2
        source, target = (torch.zeros(moved, device=images.device) for _ in range(2))
        calls["copy", layer.name] = _copy(source, target)
    if not calls:
        return
    timed = _timed(calls, seconds, next(iter(read["compact"].values())).device)
    for layer in layers:
        own = {which: t.low for (which, name), t in timed.items() if name == layer.name}
        spread = timed["itself", layer.name].median / own["itself"]
        noise = [f"noise: its median is {spread:.1f} x as long"]
        layer.causes.extend(_causes(own) if spread < NOISE else noise)


def _copy(source: Tensor, target: Tensor) -> Call:
    return lambda: target.copy_(source)


def _size(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.parameters(recurse=False))


def _causes(seconds: Mapping[str, float]) -> list[str]:
    """Name what the measurements of a layer show.

    Args:
        seconds: Of the layer "itself"; of "nothing", a call with one number to compute; of a "copy"
            of as many numbers as it reads and writes; "rounded" to widths in multiples of 8; for
            "larger" images, of four times the pixels; "ungathered", on what it picks.
    """
    own, found = seconds["itself"], []
    if seconds["nothing"] >= HALF * own:
        found.append(f"call overhead {seconds['nothing'] / own:.0%}")
    if seconds["copy"] >= HALF * own:
        found.append(f"memory {seconds['copy'] / own:.0%}")
    if seconds.get("rounded", own) < FASTER * own:
        found.append(f"odd width {seconds['rounded'] / own:.0%}")
    if seconds.get("ungathered", own) < HALF * own:
        found.append(f"gather {seconds['ungathered'] / own:.0%}")
    if seconds.get("larger", 4 * own) < 4 * FLAT * own:
        found.append(f"little work {seconds['larger'] / own:.1f} x")
    return found
