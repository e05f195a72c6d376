"""Keep the constants that dropped channels leave behind.

A dropped channel with a batch-norm scale near zero does not emit zero but ReLU of its shift. What
the next layer makes of that constant is added to that layer's bias, or taken from the running mean
of the batch norm behind it. For a linear layer and an unpadded convolution this is exact where the
scale is zero. A padded convolution sees the constant at fewer taps near the border; of all
constants its mean over the output positions errs least (in the sense of squares), and equals the
plain sum of taps where nothing is padded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.graph import ChannelGraph, Layer
from chanprune.channels.plan import Plan


@dataclass(frozen=True)
class Absorption:
    """What became of the constants of one channel group.

    Attributes:
        exact: The network computes what it would with the dropped channels at work.
        border_error: Largest difference between the absorbed constant and what the consumers really
            got from the constant channels, over their output positions; the whole contribution
            where a consumer has neither a bias nor a batch norm behind it.
        spread: Largest standard deviation of a dropped channel's activation, for batch-norm inputs
            that are normally distributed; 0 where the scales are zero.
    """

    exact: bool
    border_error: float
    spread: float


@torch.no_grad()
def absorb_constants(
    model: nn.Module, small: nn.Module, graph: ChannelGraph, plan: Plan
) -> dict[str, Absorption]:
    """Add what the dropped channels' constants contribute to the consumers in `small`.

    Args:
        model: The network before compaction.
        small: The compact network, whose biases or running means are changed.
        graph: Graph of `model`.
        plan: What was kept.

    Returns:
        Group name -> what became of its constants, for every group that lost channels.
    """
    keep = torch.from_numpy(graph.kept_mask(plan))
    constants = _Constants(model, graph, keep)
    constants.run_on_zeros()
    errors = {
        name: _add_to_consumer(small, graph.layers[name], seen, keep)
        for name, seen in constants.contributions.items()
    }
    absorbed = {}
    for group in graph.groups.values():
        numbers = torch.arange(group.start, group.start + group.size)
        lost = numbers[~keep[numbers]]
        if len(lost):
            border = max(
                (e for name, e in errors.items() if _reads(graph.layers[name], lost)), default=0.0
            )
            spread = max((constants.spread.get(n, 0.0) for n in lost.tolist()), default=0.0)
            absorbed[group.name] = Absorption(border <= 1e-6 and spread == 0, border, spread)
    return absorbed


def _reads(layer: Layer, numbers: Tensor) -> bool:
    return bool(torch.isin(torch.from_numpy(layer.inputs), numbers).any())


def _add_to_consumer(small: nn.Module, layer: Layer, seen: Tensor, keep: Tensor) -> float:
    """Add the mean of `seen` (1, C_out, ...) to the consumer; return the largest error left."""
    kept = seen[0, keep[torch.from_numpy(layer.outputs)].to(seen.device)]
    kept = kept.reshape(len(kept), -1)
    constant = kept.mean(dim=1)
    module = small.get_submodule(layer.name)
    norm = small.get_submodule(layer.normalised_by) if layer.normalised_by else None
    if isinstance(module.bias, Tensor):
        module.bias += constant
    elif norm is not None and isinstance(norm.running_mean, Tensor):
        norm.running_mean -= constant
    else:
        constant = torch.zeros_like(constant)
    return (kept - constant[:, None]).abs().max().item()


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
    """Run the network on what the dropped channels emit, with zeros everywhere else.

    Attributes:
        contributions: Consumer -> (1, C_out, ...) what it makes of the constants, without its bias.
        spread: Channel number -> standard deviation of its activation.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, keep: Tensor):
        super().__init__(fx.GraphModule(model, graph.calls), garbage_collect_values=True)
        self.channel_graph = graph
        self.keep = keep
        self.contributions: dict[str, Tensor] = {}
        self.spread: dict[int, float] = {}

    def run_on_zeros(self) -> None:
        """Interpret the network for one image of zeros, in eval mode."""
        was_training = self.module.training
        self.module.eval()
        parameter = next(self.module.parameters())
        shape = (1, *self.channel_graph.input_shape)
        self.run(torch.zeros(shape, dtype=parameter.dtype, device=parameter.device))
        self.module.train(was_training)

    def run_node(self, n: fx.Node) -> Any:
        """Remember the node: what a batch norm emits depends on who reads it."""
        self.node = n
        return super().run_node(n)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Replace what layers emit: nothing but the constants of dropped channels."""
        layer = self.channel_graph.layers.get(str(target))
        if layer is None:
            return super().call_module(target, args, dict(kwargs))
        module = self.fetch_attr(str(target))
        if layer.kind == "norm":
            return self._constants_of(module, layer, args[0])
        seen = _without_bias(module, args[0])
        if seen.any():
            self.contributions[layer.name] = self.contributions.get(layer.name, 0) + seen
        return torch.zeros_like(seen)

    def _constants_of(self, module: nn.Module, layer: Layer, inputs: Tensor) -> Tensor:
        dropped = ~self.keep[torch.from_numpy(layer.outputs)].to(inputs.device)
        shape = (1, len(dropped), *inputs.shape[2:])
        emitted = torch.zeros(shape, dtype=inputs.dtype, device=inputs.device)
        if not dropped.any():
            return emitted
        assert isinstance(module.weight, Tensor)
        assert isinstance(module.bias, Tensor)
        shift, scale = module.bias[dropped], module.weight[dropped]
        mean, spread = (
            rectified_normal(shift, scale) if self._feeds_relu() else (shift, scale.abs())
        )
        numbers = layer.outputs[dropped.cpu().numpy()]
        self.spread.update(zip(numbers.tolist(), spread.tolist(), strict=True))
        rank = [1] * (emitted.dim() - 2)
        emitted[:, dropped] = mean.to(emitted.dtype).view(1, -1, *rank)
        return emitted

    def _feeds_relu(self) -> bool:
        return all(self._is_relu(user) for user in self.node.users)

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.fetch_attr(str(node.target)), nn.ReLU)
        return node.target in ("relu", "relu_", torch.relu, F.relu, F.relu_)


def _without_bias(module: nn.Module, inputs: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return F.linear(inputs, module.weight)
    assert isinstance(module, ops.CONVOLUTIONS)
    output: Tensor = module._conv_forward(inputs, module.weight, None)
    return output
