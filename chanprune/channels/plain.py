"""Whether a layer with code of its own treats channels as the layer does that it extends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.baked import KINDS, drawn_anew
from chanprune.channels.compared import TOLERANCE
from chanprune.channels.example import Example
from chanprune.channels.gathered import Gathered
from chanprune.channels.graph import ChannelGraph, Cut
from chanprune.channels.layers import ChannelGroup, Layer
from chanprune.channels.plan import Plan
from chanprune.channels.selfcheck import masked
from chanprune.channels.shrunk import shrunk


def has_code_of_its_own(module: nn.Module) -> bool:
    """Tell whether a layer runs other code than the PyTorch layer that it is or extends."""
    kind = next(kind for kind in KINDS if isinstance(module, kind))
    is_other = any(
        getattr(type(module), name, None) is not getattr(kind, name, None)
        for name in ("forward", "_conv_forward")
    )
    return not isinstance(module, Gathered) and (is_other or "forward" in vars(module))


@torch.no_grad()
def treats_channels_alone(module: nn.Module, layer: Layer, positions: Sequence[int]) -> bool:
    """Try with random tensors whether half of a layer's channels make half of its output.

    Args:
        module: The layer, on any device; it is not changed.
        layer: What it is taken for.
        positions: Its input's size, of which a corner is tried.
    """
    with torch.device("cpu"):
        return _is_half(module, _half_of(layer), _corner(module, positions))


def _is_half(module: nn.Module, cut: Cut, positions: Sequence[int]) -> bool:
    holder = nn.Module()
    generator = torch.Generator().manual_seed(0)
    holder.layer = drawn_anew(module, generator)
    own = cut.before.layers["layer"]
    inputs, outputs = (torch.from_numpy(cut.keep[n]) for n in (own.inputs, own.outputs))
    shape = (2, len(inputs), *positions)
    images = torch.randn(shape, dtype=torch.float64, generator=generator)
    images[:, ~inputs] = 0
    try:
        small = shrunk(holder, cut)
        got = small.get_submodule("layer")(images[:, inputs])
        expected = masked(holder, cut).get_submodule("layer")(images)
    except Exception:  # another library's layer raises what it likes
        return False
    wanted = expected.movedim(own.axis, 0)[outputs].movedim(0, own.axis)
    return torch.allclose(wanted, got, rtol=TOLERANCE, atol=TOLERANCE)


def _half_of(layer: Layer) -> Cut:
    """Return the cut of a network that is one layer to half of it."""
    inputs = np.arange(len(layer.inputs))
    groups = [ChannelGroup("inputs", 0, len(inputs), blocks=layer.blocks)]
    if layer.depthwise:
        outputs = inputs.repeat(len(layer.outputs) // len(inputs))
    elif layer.kind == "norm":
        outputs = inputs
    else:
        outputs = len(inputs) + np.arange(len(layer.outputs))
        groups.append(ChannelGroup("outputs", len(inputs), len(outputs), blocks=layer.blocks))
    own = replace(layer, name="layer", inputs=inputs, outputs=outputs, index=None)
    calls = fx.Graph()
    graph = ChannelGraph(
        {g.name: g for g in groups}, {"layer": own}, calls, calls, Example((), {}, None)
    )
    return graph.cut(Plan({group.name: _first_half(group) for group in groups}))


def _first_half(group: ChannelGroup) -> list[int]:
    width = group.size // group.blocks
    return [b * width + c for b in range(group.blocks) for c in range(-(-width // 2))]


def _corner(module: nn.Module, positions: Sequence[int]) -> list[int]:
    if not isinstance(module, ops.CONVOLUTIONS):
        return [min(size, 2) for size in positions]
    facts = zip(positions, module.kernel_size, module.dilation, module.stride, strict=True)
    return [min(size, (k - 1) * d + 1 + s) for size, k, d, s in facts]
