"""Repair without training: layers that read pruned channels get new weights on the kept ones.

He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017: the
weights are a least-squares solution whose target is what the whole network's layer puts out, and
whose inputs are those of the pruned and already repaired network, so that errors of earlier layers
are made up for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.baked import bake
from chanprune.channels.graph import Cut
from chanprune.channels.layers import Layer
from chanprune.channels.modes import evaluating
from chanprune.channels.operations import name_of
from chanprune.channels.patches import inputs_at, matrix, outputs_at, places, put_matrix
from chanprune.channels.rebuilt import with_constants
from chanprune.channels.ridge import correction

POSITIONS = 1 << 14
NUMBERS = 1 << 26
KINDS = (*ops.CONVOLUTIONS, *ops.TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class Refit:
    """How well a layer's kept outputs are what they were, before and after its weights were solved.

    Attributes:
        before: Norm of the error at the sampled positions, relative to how much the outputs vary.
        after: The same afterwards.
        left: Why the layer keeps its weights; None if they are new.
    """

    before: float = 0.0
    after: float = 0.0
    left: str | None = None


import os
ALL = os.environ.get("LS_ALL", "1") == "1"
SUMS = os.environ.get("LS_SUMS", "1") == "1"
SYM = os.environ.get("LS_SYM", "0") == "1"
STATS = os.environ.get("LS_STATS", "0") == "1"


@torch.no_grad()
def refit(
    model: nn.Module, small: nn.Module, cut: Cut, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Refit]:
    parameter = next(model.parameters())
    images = torch.cat([batch for batch, _ in batches]).to(parameter.device, parameter.dtype)
    whole = bake(model, cut.before.baked)
    constants = {
        name: tensor
        for name, tensor in cut.after.constants.items()
        if name not in dict(small.named_buffers())
    }
    with (
        evaluating(model),
        evaluating(whole),
        evaluating(small),
        with_constants(whole, cut.before.constants),
        with_constants(small, constants),
    ):
        repair = _Repair(_Ahead(whole, cut.before.calls, images), small, cut)
        repair.run(images)
    return repair.refits


class _Ahead(fx.Interpreter):
    """The whole network, run call by call as far as it is asked for."""

    def __init__(self, model: nn.Module, calls: fx.Graph, images: Tensor):
        super().__init__(model, graph=calls)
        self.args_iter: Iterator[Any] = iter([images])
        self.left = iter(calls.nodes)

    def result_of(self, node: fx.Node) -> Any:
        """Run everything up to a call and return what it returns, before others change it."""
        for current in self.left:
            self.env[current] = self.run_node(current)
            self.was = dict(self.env) if SYM else {}
            for unused in self.user_to_last_uses.get(current, []):
                del self.env[unused]
            if current is node:
                break
        return self.env[node]


class _Repair(fx.Interpreter):
    def __init__(self, whole: _Ahead, small: nn.Module, cut: Cut):
        super().__init__(small, graph=cut.after.calls)
        self.whole = whole
        self.cut = cut
        self.refits: dict[str, Refit] = {}
        self.twins = _twins(cut)

    def run_node(self, n: fx.Node) -> Any:
        twin = self.twins.get(n)
        if twin is None:
            return super().run_node(n)
        name = str(n.target)
        (images,) = self.map_nodes_to_values((*n.args, *n.kwargs.values()), n)
        before, after = self.cut.before.layers[name], self.cut.after.layers[name]
        kept = torch.from_numpy(self.cut.keep[before.outputs].nonzero()[0])
        wanted = self.whole.result_of(twin)
        axis = before.axis % wanted.dim()
        wanted = wanted.index_select(axis, kept)
        seen = images
        if SYM:
            seen = self.whole.was[twin.all_input_nodes[0]]
            k_in = torch.from_numpy(self.cut.keep[before.inputs].nonzero()[0])
            seen = seen.index_select(axis, k_in)
        module = self.fetch_attr(name)
        norm = self._norm(after)
        missing = self._missing_beside(n, twin, kept, norm, axis)
        if missing is not None and missing.shape == wanted.shape:
            wanted = wanted + missing
        reads_pruned = not self.cut.keep[before.inputs].all()
        if ALL or reads_pruned:
            self.refits[name] = _refit(module, norm, after.axis, seen, wanted)
        if STATS and norm is not None:
            out = module(images)
            dims = [d for d in range(out.dim()) if d != 1]
            norm.running_mean.copy_(out.mean(dims)); norm.running_var.copy_(out.var(dims))
            return out
        return super().run_node(n)

    def _norm(self, layer: Layer) -> Any:
        if layer.normalised_by is None or layer.normalised_by not in self.cut.after.layers:
            return None
        if self.cut.after.layers[layer.normalised_by].index is not None:
            return None
        return self.fetch_attr(layer.normalised_by)

    def _missing_beside(self, node: fx.Node, twin: fx.Node, kept: Tensor, norm: Any, axis: int) -> Tensor | None:
        """Return what the small network lacks in what is added to the layer's output."""
        if not SUMS:
            return None
        nn_ = self.cut.after.layers[str(node.target)].normalised_by
        own, other = _summand(node, nn_), _summand(twin, nn_)
        if own is None or other is None:
            return None
        own, other = _early(self, own, self.cut.after.layers), _early(self.whole, other, self.cut.after.layers)
        if own is None or other is None:
            return None
        lacks = other.index_select(axis, kept) - own
        if norm is None:
            return lacks
        slope = norm.weight / (norm.running_var + norm.eps).sqrt()
        is_small = slope.abs() < 1e-3 * slope.abs().max()
        lacks = lacks / slope.masked_fill(is_small, torch.inf).view(-1, *[1] * (lacks.dim() - 2))
        return lacks


def _summand(node: fx.Node, norm: str | None) -> fx.Node | None:
    """Return what else is added to what a layer puts out, behind its batch norm if it has one."""
    users = list(node.users)
    if norm is not None and len(users) == 1 and str(users[0].target) == norm:
        node, users = users[0], list(users[0].users)
    if len(users) == 1 and name_of(users[0]) == "add" and len(users[0].all_input_nodes) == 2:
        return next(source for source in users[0].all_input_nodes if source is not node)
    return None


def _early(run: fx.Interpreter, node: fx.Node, layers: Any) -> Any:
    """Return what a call returns that comes later; None if that cannot be had yet."""
    if node in run.env:
        return run.env[node]
    if str(node.target) in layers or node.op not in ("call_module", "call_function", "call_method"):
        return None
    module = run.fetch_attr(str(node.target)) if node.op == "call_module" else None
    if ops.is_in_place(node) or getattr(module, "inplace", False):
        return None
    if any(_early(run, source, layers) is None for source in node.all_input_nodes):
        return None
    run.env[node] = fx.Interpreter.run_node(run, node)
    return run.env[node]


def _twins(cut: Cut) -> dict[fx.Node, fx.Node]:
    """Map the calls of layers in the small network to those in the whole one."""
    def calls(graph: fx.Graph) -> dict[str, list[fx.Node]]:
        found: dict[str, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "call_module" and str(node.target) in cut.after.layers:
                found.setdefault(str(node.target), []).append(node)
        return found

    ours, theirs = calls(cut.after.calls), calls(cut.before.calls)
    return {
        node: twin
        for name, nodes in ours.items()
        if cut.after.layers[name].kind in ("conv", "linear") and len(nodes) == len(theirs[name]) == 1
        for node, twin in zip(nodes, theirs[name], strict=True)
    }


def _refit(module: Any, norm: Any, axis: int, images: Tensor, wanted: Tensor) -> Refit:
    count = places(axis, wanted)
    per = matrix(module)[0, 0].numel()
    limit = min(int(os.environ.get("LS_POS", POSITIONS)), NUMBERS // (per * getattr(module, "groups", 1)))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(count, generator=generator)[:limit].sort().values.to(images.device)
    size = tuple(wanted.shape[2:]) if axis == 1 else ()
    rows = inputs_at(module, images, size, chosen).double()
    target = outputs_at(axis, wanted, chosen).double()
    image = chosen * len(images) // count
    weights = matrix(module).double()
    groups = len(weights)
    predicted = (rows @ weights.mT).transpose(0, 1).flatten(1)
    if module.bias is not None:
        predicted += module.bias
    missing = target - predicted
    spread = (target - target.mean(0)).norm().item() or 1.0
    before = missing.norm().item() / spread
    if before < 1e-5:
        return Refit(before, before, "reads what it did")
    split = missing.unflatten(1, (groups, -1)).transpose(0, 1).clone()
    means = norm is not None and norm.running_mean is not None
    delta, shift = correction(rows, split, image % 5 == 4, module.bias is not None or means)
    new = (weights + delta).to(module.weight.dtype)
    put_matrix(module, new)
    rest = split
    shift = shift.flatten()
    if module.bias is not None:
        module.bias += shift
    elif means:
        norm.running_mean -= shift
    again = inputs_at(module, images, size, chosen).double()
    predicted = (again @ new.double().mT).transpose(0, 1).flatten(1)
    if module.bias is not None:
        predicted += module.bias
    elif means:
        predicted += shift
    after = (target - predicted).norm().item() / spread
    return Refit(before, after)
