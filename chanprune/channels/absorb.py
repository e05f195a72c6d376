"""Keep the constants that dropped channels leave behind.

A dropped channel with a batch-norm scale near zero does not emit zero but ReLU of its shift. What
the next layer makes of that constant is added to that layer's bias; where it has none, it travels
on to the batch norms that read the sum or concatenation it becomes part of, and is taken from their
running means. For a linear layer and an unpadded convolution this is exact where the scale is zero.
A padded convolution sees the constant at fewer taps near the border; of all constants its mean over
the output positions errs least (in the sense of squares), and equals the plain sum of taps where
nothing is padded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.emptied import keeps_zero
from chanprune.channels.graph import Cut
from chanprune.channels.layers import ChannelNumbers, Layer
from chanprune.channels.modes import evaluating
from chanprune.channels.operations import name_of
from chanprune.channels.rebuilt import with_constants


@dataclass(frozen=True)
class Absorption:
    """What became of the constants of one channel group.

    Attributes:
        exact: The network computes what it would with the dropped channels at work.
        border_error: Largest difference between the absorbed constant and what the consumers really
            got from the constant channels, over their output positions; the whole contribution
            where it has to be dropped (no bias, and not on the way to a batch norm).
        spread: Largest standard deviation of a dropped channel's activation, for batch-norm inputs
            that are normally distributed; 0 where the scales are zero, and of channels behind no
            batch norm, of which nothing is absorbed.
    """

    exact: bool
    border_error: float
    spread: float


@torch.no_grad()
def absorb_constants(model: nn.Module, small: nn.Module, cut: Cut) -> dict[str, Absorption]:
    """Add what the dropped channels' constants contribute to the layers behind them in `small`.

    Args:
        model: The network before compaction.
        small: The compact network, whose biases and running means are changed.
        cut: Of the graph of `model`.

    Returns:
        Group name -> what became of its constants, for every group that lost channels.
    """
    graph, keep = cut.before, torch.from_numpy(cut.keep)
    constants = _Constants(model, small, cut)
    constants.run_on_zeros()
    absorbed = {}
    for group in graph.groups.values():
        numbers = torch.arange(group.start, group.start + group.size)
        lost = numbers[~keep[numbers]]
        if len(lost):
            border = max(
                (e for name, e in constants.errors.items() if _meets(graph.layers[name], lost)),
                default=0.0,
            )
            spread = max((constants.spread.get(n, 0.0) for n in lost.tolist()), default=0.0)
            is_constant = spread == 0 and constants.unknown.isdisjoint(lost.tolist())
            exact = border <= 1e-6 and is_constant
            absorbed[group.name] = Absorption(exact, border, spread)
    return absorbed


def _meets(layer: Layer, numbers: Tensor) -> bool:
    """Tell whether a layer reads some channels; a norm may stand behind whatever reads them."""
    return layer.kind == "norm" or bool(torch.isin(torch.from_numpy(layer.inputs), numbers).any())


def rectified_normal(shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of ReLU(N(shift, scale^2)), elementwise; exact at scale 0."""
    scale = scale.abs().double()
    shift = shift.double()
    ratio = shift / scale.clamp_min(1e-300)
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    below = torch.special.ndtr(ratio)
    mean = scale * density + shift * below
    second = (shift.square() + scale.square()) * below + shift * scale * density
    spread = (second - mean.square()).clamp_min(0).sqrt()
    is_constant = scale == 0
    return torch.where(is_constant, shift.relu(), mean), spread.masked_fill(is_constant, 0)


class _Constants(fx.Interpreter):
    """Compute what the compact network lacks, tensor by tensor, and add it where that is possible.

    The tensors have the original shapes: on a dropped channel stands the constant that it emits, on
    a kept one what its value in the compact network falls short of.

    Attributes:
        lost: Layer -> what its kept channels lack (C, positions), in each of its calls.
        errors: Consumer -> largest difference to the contribution of the constants that it reads.
        spread: Channel number -> standard deviation of its activation; the largest where several
            layers emit the channel.
        unknown: Numbers of the dropped channels that others than batch norms read as they are.
        of_images: The calls whose results the images decide.
        factors: Those of them that lack nothing, and are what they are for an image of zeros.
    """

    def __init__(self, model: nn.Module, small: nn.Module, cut: Cut):
        super().__init__(model, graph=cut.before.calls)
        self.small = small
        self.layers = cut.before.layers
        self.constants = cut.before.constants
        self.example = cut.before.example
        self.traced_keep = cut.traced_keep
        self.keep = torch.from_numpy(cut.keep)
        self.lost: dict[str, list[Tensor]] = {}
        self.errors: dict[str, float] = {}
        self.spread: dict[int, float] = {}
        self.unknown: set[int] = set()
        self.of_images: set[fx.Node] = set()
        self.factors: set[fx.Node] = set()

    def run_on_zeros(self) -> None:
        """Interpret the network for one image of zeros, in eval mode."""
        parameter = next(self.module.parameters())
        example = self.example if self._squeezes_a_batch_of_one() else self.example.of_one
        inputs = example.inputs(torch.zeros, parameter.dtype, parameter.device)
        with evaluating(self.module), with_constants(self.module, self.constants):
            self.run(*inputs)

    def _squeezes_a_batch_of_one(self) -> bool:
        """Tell whether a call takes out every dimension of length 1, whichever it is."""
        squeezes = [node for node in self.graph.nodes if name_of(node) == "squeeze"]
        return any(len(node.args) + len(node.kwargs) == 1 for node in squeezes)

    def run_node(self, n: fx.Node) -> Any:
        """Remember the node: what becomes of an output depends on who reads it.

        Where nothing lacks in front of an operation, nothing lacks behind it, though it may make
        something of zeros; only what a product multiplies others with is kept as it is. Whether it
        lacks is asked before, as an operation may write its result over what it reads.
        """
        self.node = n
        sources = [source for source in n.all_input_nodes if source in self.of_images]
        read = [self.env[source] for source in sources if source not in self.factors]
        lacking = [value for value in read if isinstance(value, Tensor)]
        lacks = any(value.any() for value in lacking)
        result = super().run_node(n)
        is_layer = self._layer_of(n) is not None
        if sources or is_layer or n.op == "placeholder":
            self.of_images.add(n)
        if is_layer or not sources or not isinstance(result, Tensor):
            return result
        if lacks:
            return self._of_dropped(n, result)
        if self._is_factor(n):
            self.factors.add(n)
            return result
        lost = self._of_dropped(n, result) if self._makes_something(n) else torch.zeros_like(result)
        for value in lacking:
            if value is result:
                value.copy_(lost)
            else:
                value.zero_()
        return lost

    def _makes_something(self, node: fx.Node) -> bool:
        """Tell whether a call makes something of zeros, on channels that are followed."""
        return isinstance(node.meta.get("channels"), np.ndarray) and not keeps_zero(node)

    def _of_dropped(self, node: fx.Node, result: Tensor) -> Tensor:
        """Let kept channels lack nothing behind what makes something of zeros."""
        if not self._makes_something(node):
            return result
        dropped = torch.from_numpy(~self.traced_keep[node.meta["channels"]])
        return result * dropped.to(result.device)

    def _is_factor(self, node: fx.Node) -> bool:
        """Tell whether a product alone reads what an operation makes of zeros."""
        return all(
            user.op != "call_module"
            and (
                name_of(user) in ops.PRODUCTS
                or (name_of(user) in ops.RESHAPING and self._is_factor(user))
            )
            for user in node.users
        )

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Replace what layers emit by what the compact network lacks of it."""
        layer = self.layers.get(str(target))
        if layer is None:
            return super().call_module(target, args, dict(kwargs))
        module = self.fetch_attr(str(target))
        if layer.kind == "constant":
            return torch.zeros_like(module())
        if layer.kind == "scale":
            return super().call_module(target, args, dict(kwargs))
        lacking = next(iter((*args, *kwargs.values())))
        if layer.kind == "norm":
            return self._behind_norm(module, layer, lacking)
        return self._behind_consumer(module, layer, lacking)

    def _behind_consumer(self, module: nn.Module, layer: Layer, lacking: Tensor) -> Tensor:
        """Absorb what a convolution or linear layer makes of the constants, or pass it on."""
        whole = module(lacking).movedim(layer.axis, 1)
        bias = _per_channel(module.bias, whole) if isinstance(module.bias, Tensor) else None
        seen = whole if bias is None else whole - bias
        kept = self._kept(layer.outputs).to(seen.device)
        result = torch.zeros_like(seen)
        if not self._kept(layer.inputs).any():
            result[:, ~kept] = whole[:, ~kept]
        elif not self._reaches_norms_alone():
            self.unknown.update(layer.outputs[~self._kept(layer.outputs).numpy()].tolist())
        if not kept.any():
            return result.movedim(1, layer.axis)
        lost = _positions(seen[0, kept])
        own = self._parameters_left(layer.name).get("bias")
        if own is not None:
            self._add_mean(layer.name, own, lost)
        elif self._reaches_layers_linearly():
            result[:, kept] = seen[:, kept]
            self._note_error(layer.name, lost - lost.mean(1, keepdim=True))
        else:
            self._note_error(layer.name, lost)
        return result.movedim(1, layer.axis)

    def _behind_norm(self, module: nn.Module, layer: Layer, lacking: Tensor) -> Tensor:
        """Take what the kept inputs lack from the running mean; emit the dropped channels.

        A batch norm without running statistics takes the mean of the batch, and lacks nothing.
        """
        kept = self._kept(layer.outputs).to(lacking.device)
        if layer.index is not None:
            lacking = lacking[:, torch.from_numpy(layer.index).to(lacking.device)]
        missing = _positions(lacking[0, kept]).mean(1, keepdim=True)
        left = self._parameters_left(layer.name)
        if module.running_mean is not None:
            if "running_mean" in left:
                self._add_mean(layer.name, left["running_mean"], -missing)
            elif "bias" in left:
                self._add_mean(layer.name, left["bias"], missing * _slope(module)[kept, None])
        result = torch.zeros_like(lacking)
        if not kept.all():
            result[:, ~kept] = self._emitted(module, layer, lacking)[:, ~kept]
        return result

    def _add_mean(self, name: str, own: Tensor, lost: Tensor) -> None:
        """Add the mean of what a layer lacks, over positions and over the calls so far."""
        calls = self.lost.setdefault(name, [])
        means = [each.mean(1) for each in (*calls, lost)]
        mean = torch.stack(means).mean(0)
        own += mean - torch.stack(means[:-1]).mean(0) if calls else mean
        calls.append(lost)
        for each in calls:
            self._note_error(name, each - mean[:, None])

    def _note_error(self, name: str, off: Tensor) -> None:
        error = off.abs().max().item() if off.numel() else 0.0
        self.errors[name] = max(error, self.errors.get(name, 0.0))

    def _emitted(self, module: nn.Module, layer: Layer, lacking: Tensor) -> Tensor:
        """Return what the batch norm's dropped channels emit; the others hold nothing of use."""
        ones = lacking.new_ones(lacking.shape[1])
        scale = ones if module.weight is None else module.weight
        shift = 0 * ones if module.bias is None else module.bias
        assert isinstance(shift, Tensor)
        assert isinstance(scale, Tensor)
        inner = getattr(module, "act", nn.Identity())
        if isinstance(inner, nn.ReLU) or self._feeds_relu():
            mean, spread = rectified_normal(shift, scale)
        else:
            mean, spread = inner(shift), scale.abs()
        mean = _per_channel(mean.to(lacking.dtype), lacking).expand_as(lacking)
        starved = self._is_starved(layer).to(lacking.device)
        if starved.any():
            known = inner(_normalised(module, lacking) + _per_channel(shift, lacking))
            mean = torch.where(_per_channel(starved, lacking), known, mean)
            spread = spread.masked_fill(starved, 0)
        for number, value in zip(layer.outputs.tolist(), spread.tolist(), strict=True):
            self.spread[number] = max(value, self.spread.get(number, 0.0))
        return mean

    def _is_starved(self, layer: Layer) -> Tensor:
        """Tell of each output (C_out,) whether the input is nothing but a known constant."""
        if layer.index is not None:
            return ~self._kept(layer.inputs[layer.index])
        producer = self._layer_of(self.node.all_input_nodes[0])
        dead = (
            producer is not None
            and not producer.passes_on
            and not self._kept(producer.inputs).any()
        )
        return torch.full((len(layer.outputs),), dead)

    def _kept(self, numbers: ChannelNumbers) -> Tensor:
        return self.keep[torch.from_numpy(numbers)]

    def _parameters_left(self, name: str) -> dict[str, Tensor]:
        """Return the compact network's tensors of a layer; none if it is gone."""
        try:
            module = self.small.get_submodule(name)
        except AttributeError:
            return {}
        return dict([*module.named_parameters(), *module.named_buffers()])

    def _reaches_layers_linearly(self) -> bool:
        """Tell whether sums, concatenations and poolings alone lie before the next layers."""
        return all(self._is_linear(node) for node in self._way()[0])

    def _reaches_norms_alone(self) -> bool:
        """Tell whether all that reads it, whatever lies before, are batch norms."""
        between, layers = self._way()
        return all(layer.kind == "norm" for layer in layers) and all(n.users for n in between)

    def _way(self) -> tuple[list[fx.Node], list[Layer]]:
        """Return the calls that lie before the next layers, or the output, and these layers."""
        between: dict[fx.Node, None] = {}
        layers, frontier = [], [self.node]
        while frontier:
            for user in frontier.pop().users:
                layer = self._layer_of(user)
                if layer is not None:
                    layers.append(layer)
                elif user not in between:
                    between[user] = None
                    frontier.append(user)
        return list(between), layers

    def _layer_of(self, node: fx.Node) -> Layer | None:
        return self.layers.get(str(node.target)) if node.op == "call_module" else None

    def _is_linear(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.fetch_attr(str(node.target)), ops.LINEAR_MODULES)
        return name_of(node) in ops.LINEAR_CALLS

    def _feeds_relu(self) -> bool:
        return all(self._is_relu(user) for user in self.node.users)

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.fetch_attr(str(node.target)), nn.ReLU)
        return name_of(node) == "relu"


def _slope(norm: nn.Module) -> Tensor:
    """Return (C,) what a batch norm multiplies its input with in eval mode."""
    assert isinstance(norm, ops.BATCH_NORMS)
    assert norm.running_var is not None
    scale = 1.0 if norm.weight is None else norm.weight
    slope: Tensor = scale / (norm.running_var + norm.eps).sqrt()
    return slope


def _normalised(norm: nn.Module, constant: Tensor) -> Tensor:
    """Return what a batch norm makes of a constant (1, C, ...), without its shift."""
    running_mean = norm.running_mean
    if running_mean is None:
        return torch.zeros_like(constant)
    assert isinstance(running_mean, Tensor)
    centred = constant - _per_channel(running_mean, constant)
    return centred * _per_channel(_slope(norm), constant)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """View (C,) so that it broadcasts over (N, C, ...)."""
    return values.view(1, -1, *[1] * (like.dim() - 2))


def _positions(values: Tensor) -> Tensor:
    """View (C, ...) as (C, positions)."""
    return values.flatten(1) if values.dim() > 1 else values[:, None]
