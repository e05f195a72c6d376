"""Counting: parameters and multiply-accumulates, by layer and in all.

`params` are weights, biases, batch-norm scales and shifts; buffers never count. `macs` are the
multiply-accumulates of convolutions and linear layers for one image: batch norm, activations,
pooling and gathers count 0. Papers that print "FLOPs" often mean 2 x MACs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from chanprune.channels import operations as ops
from chanprune.channels.graph import ChannelGraph, Layer
from chanprune.channels.plan import Plan


@dataclass(frozen=True)
class LayerCount:
    """One layer: `input` and `output` are numbers of channels (features of a linear layer)."""

    name: str
    kind: str
    input: int
    output: int
    params: int
    macs: int


@dataclass(frozen=True)
class Counts:
    """All layers that have parameters, in the order in which they are defined."""

    layers: list[LayerCount]

    @property
    def params(self) -> int:
        """Learnable scalars."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and linear layers, one image."""
        return sum(layer.macs for layer in self.layers)


def count(model: nn.Module, input_shape: Sequence[int]) -> Counts:
    """Count a network as it is built.

    Args:
        model: The network; it is not changed and may live on the meta device.
        input_shape: (C, H, W) of one image.
    """
    shapes = copy.deepcopy(model).to("meta").eval()
    macs: dict[str, int] = {}
    for name, module in shapes.named_modules():
        if isinstance(module, (*ops.CONVOLUTIONS, nn.Linear)):
            module.register_forward_hook(partial(_add_macs, macs, name))
    with torch.no_grad():
        shapes(torch.empty((1, *input_shape), device="meta", dtype=_dtype(shapes)))
    layers = []
    for name, module in shapes.named_modules():
        params = sum(p.numel() for p in module.parameters(recurse=False))
        if params:
            kind, inputs, outputs = _describe(module)
            layers.append(LayerCount(name, kind, inputs, outputs, params, macs.get(name, 0)))
    return Counts(layers)


def count_plan(model: nn.Module, graph: ChannelGraph, plan: Plan) -> Counts:
    """Count the network that a plan would leave, without building it.

    Args:
        model: The network that `graph` describes.
        graph: Its channel graph.
        plan: What is kept.
    """
    keep = graph.kept_mask(plan)
    layers = []
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        kind, inputs, outputs = _describe(module)
        params, macs = sum(p.numel() for p in own.values()), 0
        if name in graph.layers:
            layer = graph.layers[name]
            outputs = int(keep[layer.outputs].sum())
            inputs = outputs if layer.kind == "norm" else int(keep[layer.inputs].sum())
            sizes = {
                key: _numel(tensor, key, layer, inputs, outputs) for key, tensor in own.items()
            }
            params = sum(sizes.values())
            macs = layer.positions * sizes["weight"] if layer.kind != "norm" else 0
        layers.append(LayerCount(name, kind, inputs, outputs, params, macs))
    return Counts(layers)


def _numel(tensor: Tensor, key: str, layer: Layer, inputs: int, outputs: int) -> int:
    if key != "weight" or layer.kind == "norm":
        return outputs
    columns = 1 if layer.depthwise else inputs // layer.blocks
    return outputs * columns * math.prod(tensor.shape[2:])


def _add_macs(
    macs: dict[str, int], name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
) -> None:
    assert isinstance(module.weight, Tensor)
    positions = output.numel() // module.weight.shape[0]
    macs[name] = macs.get(name, 0) + positions * module.weight.numel()


def _describe(module: nn.Module) -> tuple[str, int, int]:
    if isinstance(module, ops.CONVOLUTIONS):
        return "conv", module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return "linear", module.in_features, module.out_features
    if isinstance(module, ops.BATCH_NORMS):
        return "batch_norm", module.num_features, module.num_features
    return type(module).__name__, 0, 0


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters()), torch.float32)
