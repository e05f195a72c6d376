"""Counting: parameters, multiply-accumulates and activations, by layer and in all.

`params` are weights, biases, batch-norm scales and shifts, and what else is learned; buffers never
count. `macs` are the multiply-accumulates of convolutions, transposed ones too, and of matrix
products for one image, whether a layer does them or a function that a module calls, and those that
a layer says it does besides (`Gathered`): batch norm, activations, pooling and gathers count 0.
`activations` are the elements that convolutions and linear layers put out. What papers print as
"FLOPs" differs by factors of up to six: `CONVENTIONS` names their ways.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from chanprune.channels import operations as ops
from chanprune.channels.emptied import Constant
from chanprune.channels.example import Example
from chanprune.channels.gathered import Gathered
from chanprune.channels.graph import ChannelGraph
from chanprune.channels.layers import Layer
from chanprune.channels.modes import copied
from chanprune.channels.plan import Plan
from chanprune.channels.refusals import UnsupportedNetwork, first_line
from chanprune.channels.shrunk import shrunk
from chanprune.channels.tally import Tally


@dataclass(frozen=True)
class LayerCount:
    """One layer: `input` and `output` are numbers of channels (features of a linear layer)."""

    name: str
    kind: str
    input: int
    output: int
    params: int
    macs: int
    activations: int


@dataclass(frozen=True)
class Counts:
    """What a network has and does.

    Attributes:
        layers: All modules that have parameters or do multiply-accumulates of their own, in the
            order in which they are defined; "" is the network itself.
        tally: What a forward pass of one image does besides; None of a plan.
    """

    layers: list[LayerCount]
    tally: Tally | None = field(default=None, compare=False, repr=False)

    @property
    def params(self) -> int:
        """Learnable scalars."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and linear layers, one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def activations(self) -> int:
        """Elements that convolutions and linear layers put out, one image."""
        return sum(layer.activations for layer in self.layers)

    def macs_of(self, kind: str) -> int:
        """Multiply-accumulates of one kind of layer, "conv" or "linear"."""
        return sum(layer.macs for layer in self.layers if layer.kind == kind)

    def conventions(self) -> dict[str, int]:
        """Return the operations of one image by each of `CONVENTIONS`.

        Raises:
            ValueError: These are the counts of a plan, which runs no image.
        """
        if self.tally is None:
            raise ValueError("the counts of a plan know no operations but macs")
        passed, bias = self.tally, self.tally.bias_adds
        return {
            "macs": self.macs,
            "flops": 2 * self.macs,
            "conv_flops": 2 * self.macs_of("conv"),
            "condensenet": self.macs + passed.activated + passed.averaged + bias["linear"],
            "rethinking": 2 * (self.macs + passed.normalised)
            + sum(bias.values())
            + passed.activated
            + passed.averaged
            + passed.maximised,
            "slimming_imagenet": 6 * self.macs,
        }


CONVENTIONS = {
    "macs": "multiply-accumulates of convolutions and linear layers (Li et al.)",
    "flops": "2 x macs (Network Slimming on CIFAR and SVHN)",
    "conv_flops": "2 x macs of convolutions alone (channel-prioritized CNNs)",
    "condensenet": "macs + ReLU inputs + average-pool windows + biases of linear layers "
    "(CondenseNet, selective convolution)",
    "rethinking": "2 x macs + biases + 2 x batch-norm elements + ReLU inputs + pool windows "
    "(Rethinking the Value of Network Pruning)",
    "slimming_imagenet": "6 x macs (Network Slimming, table 2)",
}


SCALES = (nn.PReLU, nn.GroupNorm, *ops.INSTANCE_NORMS)


def count(model: nn.Module, example: Any) -> Counts:
    """Count a network as it is built, for one image.

    Args:
        model: The network; it is not changed and may live on the meta device.
        example: (C, H, W) of one image, or what else `trace` takes.
    """
    return _count(model, Example.of(example))


def _count(model: nn.Module, example: Example) -> Counts:
    shapes = copied(model, device="meta").eval()
    outputs: dict[str, int] = {}
    positions: dict[str, int] = {}
    tally = Tally()
    for name, module in shapes.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks; counts for what calls it
            continue
        module.register_forward_pre_hook(partial(tally.enter, name))
        module.register_forward_hook(tally.leave)
        if isinstance(module, (*ops.CONVOLUTIONS, *ops.TRANSPOSED, nn.Linear)):
            module.register_forward_hook(partial(_note_output, outputs, tally, name))
        if isinstance(module, Gathered):
            module.register_forward_hook(partial(_note_positions, positions, name))
    _run_one(shapes, example, tally)
    layers, seen = [], set[int]()
    for name, module in shapes.named_modules():
        params = sum(p.numel() for p in _unseen(module, seen).values())
        macs = tally.macs[name]
        if params or macs:
            kind, width_in, width_out = _describe(module)
            elements = outputs.get(name, 0)
            if isinstance(module, Gathered):
                macs += module.further_macs(positions.get(name, 0))
            layers.append(LayerCount(name, kind, width_in, width_out, params, macs, elements))
    return Counts(layers, tally)


def _run_one(shapes: nn.Module, example: Example, tally: Tally) -> None:
    """Run a network on the meta device for one image.

    Raises:
        UnsupportedNetwork: It cannot be.
    """
    args, kwargs = example.of_one.filled(torch.empty, _dtype(shapes), "meta")
    with torch.no_grad(), torch.device("meta"), tally:
        for images in tree_leaves((args, kwargs)):
            if isinstance(images, Tensor):
                tally.hold(images)
        try:
            shapes(*args, **kwargs)
        except Exception as error:
            raise UnsupportedNetwork(
                f"{type(shapes).__name__} cannot be counted, as it does not run for one image "
                f"without values: {first_line(error)}"
            ) from error


def count_plan(model: nn.Module, graph: ChannelGraph, plan: Plan) -> Counts:
    """Count the network that a plan would leave, without building it.

    Args:
        model: The network that `graph` describes.
        graph: Its channel graph.
        plan: What is kept.
    """
    cut = graph.cut(plan)
    if graph.has_other_work(model):
        small = shrunk(copied(model, device="meta"), cut)
        return replace(_count(small, graph.example), tally=None)
    after = cut.after
    layers, seen = [], set[int]()
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        kind, inputs, outputs = _describe(module)
        unseen = _unseen(module, seen)
        params, macs, elements = sum(p.numel() for p in unseen.values()), 0, 0
        layer = after.layers.get(name)
        if layer is not None:
            own = {key: own[key] for key in layer.parameters if key in own}
            sizes = {key: _numel(tensor, key, layer) for key, tensor in own.items()}
            outputs = len(layer.outputs)
            inputs = outputs if layer.kind in ("norm", "scale") else len(layer.inputs)
            kind = "constant" if layer.kind == "constant" else kind
            params = sum(sizes[key] for key in unseen if key in sizes)
            if layer.kind in ("conv", "linear"):
                macs = layer.positions * sizes["weight"]
                elements = layer.output_positions * outputs
            if isinstance(module, Gathered):
                read = layer.positions * math.prod(getattr(module, "stride", ()))
                params += module.further_params()
                macs += module.further_macs(read)
        elif name in graph.layers:
            continue
        layers.append(LayerCount(name, kind, inputs, outputs, params, macs, elements))
    return Counts(layers)


def _unseen(module: nn.Module, seen: set[int]) -> dict[str, nn.Parameter]:
    """Return a module's own parameters that no module before has, and note them."""
    own = {k: p for k, p in module.named_parameters(recurse=False) if id(p) not in seen}
    seen.update(map(id, own.values()))
    return own


def executed_macs(parameters: Mapping[str, Tensor], graph: ChannelGraph) -> int:
    """Count the multiply-accumulates of a forward pass of one image, without running it.

    Args:
        parameters: Tensor name -> tensor, as wide as they are executed.
        graph: The channel graph of the network; its widths may be larger.
    """
    layers = [layer for layer in graph.layers.values() if layer.kind in ("conv", "linear")]
    return sum(layer.positions * parameters[f"{layer.name}.weight"].numel() for layer in layers)


def _numel(tensor: Tensor, key: str, layer: Layer) -> int:
    if key != "weight" or layer.kind in ("norm", "scale", "constant"):
        return len(layer.outputs)
    columns = 1 if layer.depthwise else len(layer.inputs) // layer.blocks
    return len(layer.outputs) * columns * math.prod(tensor.shape[2:])


def _note_output(
    outputs: dict[str, int],
    tally: Tally,
    name: str,
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    output: Tensor,
) -> None:
    outputs[name] = outputs.get(name, 0) + output.numel()
    if module.bias is not None:
        tally.bias_adds["linear" if isinstance(module, nn.Linear) else "conv"] += output.numel()


def _note_positions(
    positions: dict[str, int], name: str, module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor
) -> None:
    positions[name] = positions.get(name, 0) + math.prod(inputs[0].shape[2:])


def _describe(module: nn.Module) -> tuple[str, int, int]:
    if isinstance(module, (*ops.CONVOLUTIONS, *ops.TRANSPOSED)):
        return "conv", module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return "linear", module.in_features, module.out_features
    if isinstance(module, ops.BATCH_NORMS):
        return "batch_norm", module.num_features, module.num_features
    if isinstance(module, Constant):
        return "constant", 0, len(module.bias)
    if isinstance(module, SCALES):
        width = next(module.parameters()).numel()
        return type(module).__name__, width, width
    return type(module).__name__, 0, 0


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters()), torch.float32)
