"""Repair without training: layers get new weights, so that they put out what they did.

He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, eq. 3:
the weights solve a least-squares problem whose target is what the whole network's layer puts out
and whose inputs are those of the pruned and already repaired network, so that errors of earlier
layers are made up for; where something is added to the output, the sum is the target (section 3.3).

Differs from the paper: every layer whose inputs changed is solved, not those alone that read pruned
channels; a bias, or the running mean of the batch norm behind, is solved with the weights; and what
the ridge holds on to are the old weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.alongside import Ahead, calls_of, early, picked, summand
from chanprune.channels.baked import bake
from chanprune.channels.fitting import (
    KINDS,
    UNCHANGED,
    CannotBeFittedError,
    Refit,
    Sample,
    fit,
    sampled,
)
from chanprune.channels.gathered import Gathered
from chanprune.channels.graph import Cut
from chanprune.channels.layers import Mask
from chanprune.channels.modes import evaluating
from chanprune.channels.rebuilt import with_constants

IGNORED = 1e-3  # slope of a batch norm relative to its largest


@torch.no_grad()
def refit(
    model: nn.Module, small: nn.Module, cut: Cut, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Refit]:
    """Solve the weights of `small` again, layer by layer, on some hundred images.

    Both networks are run once, call by call, on all images: it takes the memory of what both hold
    at one time. Convolutions of any kind and linear layers are solved; a depthwise one too, whose
    channels are all there but not what they were. A layer that is called several times is solved
    for the whole network's inputs instead. Statistics of batch norms stay, but for running means
    that take a constant: the outputs are again what they describe.

    Args:
        model: The network before the cut; it is not changed.
        small: The compact network, whose weights, biases and running means are changed.
        cut: Of the graph of `model`.
        batches: (images, labels); labels are not used.

    Returns:
        Name -> what was reached, for every layer whose outputs had changed.

    Raises:
        ValueError: There is no image; the networks are on the meta device, or take several inputs.
    """
    images = _all_images(model, cut, batches)
    whole = bake(model, cut.before.baked)
    own = dict(small.named_buffers())
    lacking = {name: t for name, t in cut.after.constants.items() if name not in own}
    constants = with_constants(whole, cut.before.constants), with_constants(small, lacking)
    with evaluating(whole), evaluating(small), constants[0], constants[1]:
        repair = _Repair(whole, small, cut, images)
        repair.run(images)
    return repair.refits


def _all_images(model: nn.Module, cut: Cut, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    parameter = next(model.parameters())
    if parameter.device.type == "meta":
        raise ValueError("weights cannot be solved on the meta device, which holds no values")
    inputs = [node for node in cut.before.calls.nodes if node.op == "placeholder"]
    if sum(not node.args for node in inputs) > 1:
        raise ValueError("the weights of networks with several inputs cannot be solved")
    every = [images for images, _ in batches]
    if not every:
        raise ValueError("weights cannot be solved on no images")
    images = torch.cat(every).to(parameter.device, parameter.dtype)
    is_last = images.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    return images.to(memory_format=torch.channels_last) if is_last else images


class _Repair(fx.Interpreter):
    """The compact network, whose layers are solved one after the other as they are called.

    Attributes:
        refits: Name of a layer -> what was reached.
    """

    def __init__(self, whole: nn.Module, small: nn.Module, cut: Cut, images: Tensor):
        super().__init__(small, graph=cut.after.calls)
        self.cut = cut
        self.refits: dict[str, Refit] = {}
        self.twins: dict[fx.Node, fx.Node] = {}
        self.whole = Ahead(whole, cut.before.calls, images)
        again = self._find_layers()
        if again:
            shared = _Shared(whole, small, cut, again)
            shared.run(images)
            for name in again:
                self._solve(name, None, partial(shared.samples_of, name))

    def _find_layers(self) -> dict[str, int]:
        """Note what is solved and what is left; return the layers that are called several times."""
        ours, theirs = (calls_of(graph) for graph in (self.cut.after.calls, self.cut.before.calls))
        owners = Counter(id(p) for m in self.module.modules() for p in m._parameters.values())
        again = {}
        for name, layer in self.cut.after.layers.items():
            if layer.kind not in ("conv", "linear") or name not in ours:
                continue
            module = self.fetch_attr(name)
            if len(ours[name]) != len(theirs[name]):
                self._leave(name, "the compact network calls it less often")
            elif not isinstance(module, KINDS) or not module.weight.is_floating_point():
                self._leave(name, "its weights are no real numbers of a plain layer")
            elif owners[id(module.weight)] > 1:
                self._leave(name, "it shares its weights with another layer")
            elif len(ours[name]) > 1:
                again[name] = len(ours[name])
            else:
                self.twins[ours[name][0]] = theirs[name][0]
        return again

    def _leave(self, name: str, reason: str) -> None:
        self.refits[name] = Refit(math.nan, math.nan, reason)

    def _solve(self, name: str, norm: Any, samples: Callable[[], list[Sample]]) -> None:
        try:
            fitted = fit(self.fetch_attr(name), norm, samples())
        except CannotBeFittedError as error:
            self._leave(name, str(error))
            return
        before = self.cut.before.layers[name]
        if fitted.before >= UNCHANGED or not self.cut.keep[before.inputs].all():
            self.refits[name] = fitted

    def run_node(self, n: fx.Node) -> Any:
        """Solve a layer before it is called."""
        if n in self.twins:
            norm = self._norm_behind(n)
            self._solve(str(n.target), norm, partial(self._samples, n, norm))
        return super().run_node(n)

    def _samples(self, node: fx.Node, norm: Any) -> list[Sample]:
        twin, before = self.twins[node], self.cut.before.layers[str(node.target)]
        keep = self.cut.keep[before.outputs]
        wanted = picked(self.whole.run_until(twin), before.axis, keep)
        module = self.fetch_attr(str(node.target))
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        output = module(*args, **kwargs)
        beside = self._lacking_beside(node, norm, keep, output)
        if beside is not None:
            wanted = wanted + beside
        return [sampled(module, before.axis, next(iter((*args, *kwargs.values()))), output, wanted)]

    def _norm_behind(self, node: fx.Node) -> Any:
        """Return the batch norm with running statistics that alone reads a layer's output."""
        norms, users = self.cut.after.layers[str(node.target)].normalised_by, list(node.users)
        name = str(users[0].target) if len(users) == 1 else ""
        if name not in norms:
            return None
        norm = self.fetch_attr(name)
        is_plain = isinstance(norm, ops.BATCH_NORMS) and not isinstance(norm, Gathered)
        is_shared = len(calls_of(self.graph)[name]) > 1
        return norm if is_plain and norm.track_running_stats and not is_shared else None

    def _lacking_beside(self, node: fx.Node, norm: Any, keep: Mask, output: Tensor) -> Any:
        """Return what the network lacks in what is added to a layer's output, for it to make up.

        It is taken back through the batch norm, except where this all but ignores its input.
        """
        if norm is None and self.cut.after.layers[str(node.target)].normalised_by:
            return None
        layer, layers = self.cut.before.layers[str(node.target)], self.cut.after.layers
        own, other = (summand(n, norm is not None) for n in (node, self.twins[node]))
        if own is None or other is None or (norm is not None and layer.axis % output.dim() != 1):
            return None
        ours, theirs = early(self, own, layers), early(self.whole, other, layers)
        if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
            return None
        if ours.shape != output.shape or theirs.shape[layer.axis] != len(keep):
            return None
        lacks = picked(theirs, layer.axis, keep) - ours
        if norm is None:
            return lacks
        slope = (norm.running_var + norm.eps).rsqrt()
        slope = slope if norm.weight is None else slope * norm.weight
        ignored = slope.abs() <= IGNORED * slope.abs().max()
        return lacks / slope.masked_fill(ignored, math.inf).view(-1, *[1] * (lacks.dim() - 2))


class _Shared(fx.Interpreter):
    """The whole network, watched at the layers that are called several times."""

    def __init__(self, whole: nn.Module, small: nn.Module, cut: Cut, calls: Mapping[str, int]):
        super().__init__(whole, graph=cut.before.calls)
        self.small = small
        self.cut = cut
        self.calls = calls
        self.samples: dict[str, list[Sample]] = {name: [] for name in calls}
        self.refused: dict[str, CannotBeFittedError] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note what a layer reads of the channels that stay, and what it puts out."""
        result, name = super().call_module(target, args, kwargs), str(target)
        if name not in self.calls:
            return result
        layer, module = self.cut.before.layers[name], self.small.get_submodule(name)
        images, *others = (*args, *kwargs.values())
        images = picked(images, layer.axis, self.cut.keep[layer.inputs])
        wanted = picked(result, layer.axis, self.cut.keep[layer.outputs])
        output = module(images, *others)
        try:
            sample = sampled(module, layer.axis, images, output, wanted, self.calls[name])
        except CannotBeFittedError as error:
            self.refused[name] = error
        else:
            self.samples[name].append(sample)
        return result

    def samples_of(self, name: str) -> list[Sample]:
        """Return what was seen of a layer; raises CannotBeFittedError."""
        if name in self.refused:
            raise self.refused[name]
        return self.samples[name]
