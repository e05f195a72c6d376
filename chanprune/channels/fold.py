"""Batch norms folded into the layers in front of them, or behind: the same outputs, fewer passes.

In eval mode a batch norm scales and shifts each channel. The convolution, transposed convolution or
linear layer in front does so at no cost, if nothing else reads what it puts out, also across a
gather, a shuffle of channels or a sum of two layers. The layer behind does so where nothing bends
the values in between and it reads no zeros beyond an image's edge. The others stay: those that read
a stream that others read as well, and those between a sum and an activation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.affine import (
    Affine,
    affine_of,
    has_copies,
    scale_inputs,
    scale_outputs,
    select_outputs,
    selects_outputs,
)
from chanprune.channels.calls import record_calls
from chanprune.channels.compared import TOLERANCE, CompactionError, compared
from chanprune.channels.double import InDouble
from chanprune.channels.example import Example
from chanprune.channels.gathered import Gathered, select
from chanprune.channels.modes import copied, keeping_random_numbers
from chanprune.channels.plain import has_code_of_its_own
from chanprune.channels.selfcheck import enliven
from chanprune.channels.way import Calls, Edit


@dataclass(frozen=True)
class Folded:
    """A network whose batch norms are folded.

    Attributes:
        model: The network, in eval mode; it shares nothing with the original.
        into: Batch norm -> the layers that do its work.
        left: The batch norms that stay.
        max_error: Largest difference to the original's outputs in float64, relative to the largest
            value of each.
    """

    model: nn.Module
    into: dict[str, tuple[str, ...]]
    left: tuple[str, ...]
    max_error: float


def fold(model: nn.Module, example: Any) -> Folded:
    """Fold all batch norms that can be, exactly.

    What is folded are the norms' running statistics, so that the result is of no use in train mode,
    in which it refuses to run.

    Args:
        model: The network; it is not changed. Layers with hooks or with code of their own stay, as
            do those that compute their weights.
        example: What it is called with, see `trace`.

    Raises:
        UnsupportedNetwork: The network cannot be traced.
        CompactionError: The folded network puts out something else in float64, by more than 1e-9.
    """
    example = Example.of(example)
    network = copied(model).eval()
    max_error = _check(network, example)
    into, left = _fold(network, example)
    network.register_forward_pre_hook(_refuse_training)
    return Folded(network, into, left, max_error)


def is_folded(model: nn.Module) -> bool:
    """Tell whether `fold` returned a network, or it is a copy of such a one."""
    return _refuse_training in model._forward_pre_hooks.values()


class Pick(nn.Module):
    """Picks channels: what is left of a batch norm behind a gather.

    Args:
        index: (K,) the channels.
    """

    index: Tensor

    def __init__(self, index: Tensor):
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, ...) to (N, K, ...)."""
        return select(images, self.index)


@dataclass(frozen=True)
class _Norm:
    """A batch norm, the layers that can do its work, and how."""

    names: list[str]
    calls: list[fx.Node]
    index: Tensor | None
    edits: list[Edit]
    change: Callable[[nn.Module, Affine], None]


def _check(model: nn.Module, example: Example) -> float:
    """Fold a copy in float64 and compare it, as it is and with lively parameters.

    Raises:
        CompactionError: They differ.
    """
    generator = torch.Generator().manual_seed(0)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    images = example.filled(partial(torch.randn, generator=generator), torch.float64, device)
    errors = []
    with InDouble(), torch.no_grad(), keeping_random_numbers():
        whole = copied(model, dtype=torch.float64).eval()
        for _ in range(2):
            other = copied(whole)
            _fold(other, example)
            place, error = compared(whole, other, images)
            if not error <= TOLERANCE:
                raise CompactionError(
                    f"with batch norms folded the network differs by {error:.2g} (allowed "
                    f"{TOLERANCE:g}){' in output' + place if place else ''}"
                )
            errors.append(error)
            if not enliven(whole, images):
                break
    return max(errors)


def _fold(model: nn.Module, example: Example) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Fold in place; return batch norm -> layers, and the norms that stay."""
    into: dict[str, tuple[str, ...]] = {}
    graph = record_calls(model, example, {})
    calls = Calls(model, graph)
    names = {id(module): name for name, module in model.named_modules()}
    left = []
    for name, module in list(model.named_modules()):
        if isinstance(module, ops.BATCH_NORMS) and id(module) in calls.of:
            norm = _found(module, calls)
            if norm is None:
                left.append(name)
                continue
            layers = _carry_out(model, norm)
            into[name] = tuple(names[id(layer)] for layer in layers)
    return into, tuple(left)


def _found(module: nn.Module, calls: Calls) -> _Norm | None:
    """Find out how a batch norm can be folded; None: it cannot be."""
    nodes = calls.of[id(module)]
    affine = affine_of(module)
    if affine is None or has_copies(module) or has_code_of_its_own(module):
        return None
    if any(calls.module(node) is None or len(node.args) != 1 for node in nodes):
        return None
    index = module.index if isinstance(module, Gathered) else None
    found = [_edits_in_front(node, affine, index, calls) for node in nodes]
    edits, change = _together(found, calls), scale_outputs
    if edits is None:
        edits = _together([calls.behind(node, affine) for node in nodes], calls)
        change = scale_inputs
    names = [name for name, other in calls.modules.items() if other is module]
    return None if edits is None else _Norm(names, nodes, index, edits, change)


def _edits_in_front(
    node: fx.Node, affine: Affine, index: Tensor | None, calls: Calls
) -> list[Edit] | None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before = affine.spread(index, source.meta["shape"][1])
    return None if before is None else calls.in_front(source, before)


def _together(found: list[list[Edit] | None], calls: Calls) -> list[Edit] | None:
    """Return one edit of each layer, if every call of every layer asks for the same."""
    edits: dict[int, Edit] = {}
    reached: dict[int, list[fx.Node]] = {}
    for own in found:
        for edit in own or ():
            first = edits.setdefault(id(edit.layer), edit)
            if first.affine != edit.affine:
                return None
            reached.setdefault(id(edit.layer), []).append(edit.call)
    if any(own is None for own in found):
        return None
    are_all = all(
        len(set(nodes)) == len(nodes) == len(calls.of[key]) for key, nodes in reached.items()
    )
    return list(edits.values()) if are_all else None


def _carry_out(model: nn.Module, norm: _Norm) -> list[nn.Module]:
    """Let the layers do a batch norm's work, and take it out; return them."""
    for edit in norm.edits:
        norm.change(edit.layer, edit.affine)
    rest = nn.Identity() if norm.index is None else Pick(norm.index)
    first = norm.edits[0]
    is_next = all(call.args[0] in [edit.call for edit in norm.edits] for call in norm.calls)
    if norm.index is not None and is_next and selects_outputs(first.layer):
        select_outputs(first.layer, norm.index)
        rest = nn.Identity()
    for name in norm.names:
        model.set_submodule(name, rest.eval())
    return [edit.layer for edit in norm.edits]


def _refuse_training(model: nn.Module, _: Any) -> None:
    if model.training:
        raise RuntimeError(
            "this network's batch norms are folded, so that it cannot be trained; load it without "
            "fold=True, or call eval()"
        )
