"""The channel graph, and a cut: what is left of it when a plan is carried out.

They have one file, as each is made from the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from torch import Tensor, fx, nn

from chanprune.channels.contexts import lost_context
from chanprune.channels.emptied import remaining_calls
from chanprune.channels.example import Example
from chanprune.channels.kept import emptied, evenly, kept_mask, read_mask
from chanprune.channels.layers import (
    Axis,
    ChannelGroup,
    ChannelNumbers,
    Layer,
    Mask,
    constant_layer,
)
from chanprune.channels.operations import MULTIPLY, name_of
from chanprune.channels.plan import Plan
from chanprune.channels.refusals import UnsupportedNetwork, refusing
from chanprune.channels.resized import resized

KeptPositions = tuple[tuple[Axis, ChannelNumbers], ...]


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """All channel groups of a network, found by `trace`.

    Attributes:
        groups: Name -> group, in the order of the network; numbers run through them.
        layers: Name -> layer, in the order of the network.
        calls: The traced calls, by module name, so that they fit every compaction of the network.
        in_training: The calls in train mode: the same graph where they are the same; a text where
            they cannot be followed, which says why.
        example: What was traced.
        tensors: Name of a parameter or buffer that no layer holds -> its axis of channels.
        baked: Names of the layers that compute their weights, or are called as plain ones: a
            compact network has plain ones (see `baked`).
        constants: Tensors that the calls read and the network has not, by name.
        numbered: (channels when it was traced,) the number that each has now; -1 if it is gone.
            The calls have the numbers of then, in `meta["channels"]`.
        is_exported: A compact network is built from the calls, whatever the plan.
    """

    groups: dict[str, ChannelGroup]
    layers: dict[str, Layer]
    calls: fx.Graph = field(repr=False)
    in_training: fx.Graph | str = field(repr=False)
    example: Example
    tensors: dict[str, Axis] = field(default_factory=dict)
    baked: frozenset[str] = frozenset()
    constants: dict[str, Tensor] = field(default_factory=dict, repr=False)
    numbered: ChannelNumbers = field(default_factory=lambda: np.arange(0), repr=False)
    is_exported: bool = False

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return self.example.shape

    @property
    def trains_alike(self) -> bool:
        """The same is called in train mode as in eval mode."""
        return self.in_training is self.calls

    @property
    def blocks(self) -> dict[str, int]:
        """Group name -> number of its blocks, each of which must keep equally many channels."""
        return {name: group.blocks for name, group in self.groups.items()}

    @property
    def num_channels(self) -> int:
        """Number of channels, the fixed ones included."""
        return sum(group.size for group in self.groups.values())

    @cached_property
    def axes(self) -> dict[str, tuple[Axis, ...]]:
        """Tensor name -> its axes that run over channels."""
        bare = {name: (axis,) for name, axis in self.tensors.items()}
        return bare | {name: axes for layer in self.layers.values() for name, axes in layer.axes()}

    def group_axes(self, name: str) -> list[tuple[str, int]]:
        """List the (tensor name, dimension) pairs that run over a group's channels."""
        group = self.groups[name]
        numbers = np.arange(group.start, group.start + group.size)
        return [
            (tensor, axis.dim)
            for tensor, axes in self.axes.items()
            for axis in axes
            if np.isin(axis.channels, numbers).any()
        ]

    def prunable(self, coupled: Literal["keep", "together"] = "keep") -> list[ChannelGroup]:
        """List the groups that may lose channels.

        Args:
            coupled: Whether groups behind a residual sum are left whole or pruned together.
        """
        return [
            group
            for group in self.groups.values()
            if group.size and group.fixed is None and (coupled == "together" or not group.coupled)
        ]

    def matching(self, pattern: str) -> list[ChannelGroup]:
        """List the groups of which the name, or that of one of their layers, matches.

        Args:
            pattern: Regular expression for a whole name.

        Raises:
            ValueError: It is none, or matches nothing.
        """
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        found = [
            group
            for group in self.groups.values()
            if any(map(expression.fullmatch, (group.name, *group.producers, *group.norms)))
        ]
        if not found:
            known = ", ".join(group.name for group in self.prunable("together"))
            raise ValueError(
                f"{pattern!r} matches no layer whose channels are known; there are {known}"
            )
        return found

    def matching_shares(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Return group -> the share that goes of it, by the first pattern that matches.

        Args:
            shares: Pattern, see `matching` -> share.

        Raises:
            ValueError: As `matching`, or a share is not in [0, 1).
        """
        found: dict[str, float] = {}
        for pattern, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(f"{pattern!r} is to lose {share}, which is not in [0, 1)")
            for group in self.matching(pattern):
                found.setdefault(group.name, share)
        return found

    def keeping(self, patterns: Iterable[str]) -> ChannelGraph:
        """Return the graph with some groups left whole; raises as `matching` does."""
        groups = dict(self.groups)
        for group in [group for pattern in patterns for group in self.matching(pattern)]:
            reason = group.fixed or "prune.keep names it"
            groups[group.name] = replace(group, fixed=reason)
        return replace(self, groups=groups)

    def has_other_work(self, model: nn.Module) -> bool:
        """Tell whether anything but the layers multiplies, or has parameters that a plan cuts."""
        modules = dict(model.named_modules())
        for node in self.calls.nodes:
            if node.op in ("call_function", "call_method") and name_of(node) in MULTIPLY:
                return True
            is_other = node.op == "call_module" and str(node.target) not in self.layers
            if is_other and any(p.dim() > 1 for p in modules[str(node.target)].parameters()):
                return True
        return bool(self.tensors) or self.is_exported or bool(self.baked)

    def may_be_emptied(self, name: str) -> bool:
        """Tell whether the network still works when a group loses all its channels."""
        try:
            return bool(self.cut(Plan({name: ()})).after)
        except ValueError:
            return False

    def cut(self, plan: Plan) -> Cut:
        """Return what a plan means for this graph; it is made once and passed on.

        Raises:
            ValueError: The plan does not fit (`kept_mask`).
        """
        return Cut(self, plan, kept_mask(self.groups, self.layers, plan))


@dataclass(frozen=True, eq=False)
class Cut:
    """What a plan means for one graph.

    Attributes:
        before: The graph.
        plan: What it keeps.
        keep: (num_channels,) True where the channel stays, with all that the plan implies.
    """

    before: ChannelGraph
    plan: Plan
    keep: Mask

    @cached_property
    def kept(self) -> dict[str, KeptPositions]:
        """Tensor name -> its axes that run over channels, each with the positions that stay."""
        return {
            name: tuple((axis, np.flatnonzero(self.keep[axis.channels])) for axis in axes)
            for name, axes in self.before.axes.items()
        }

    @property
    def complete(self) -> Plan:
        """The plan with everything that it implies."""
        kept = {}
        for name, group in self.before.groups.items():
            left = np.flatnonzero(self.keep[group.numbers])
            if name in self.plan.kept or len(left) < group.size:
                kept[name] = left.tolist()
        return Plan(kept)

    @property
    def still_read(self) -> dict[str, list[int]]:
        """Of each stream that has channels which nothing reads, those that are read.

        Such channels arise where batch norms read others several times instead (`Gathered`). Some
        stand with those that are read where the blocks of a grouped convolution stay equally wide.
        """
        read = read_mask(self.before.layers, self.keep)
        found = {}
        for name, group in self.before.groups.items():
            left = evenly(read[group.numbers], group.blocks)
            if group.is_stream and not left.all():
                found[name] = np.flatnonzero(left).tolist()
        return found

    @cached_property
    def after(self) -> ChannelGraph:
        """The graph of the network that is left.

        Raises:
            ValueError: The plan cuts the network in two.
            UnsupportedNetwork: The calls of what is left cannot be built.
        """
        before, keep = self.before, self.keep
        try:
            with refusing("this plan cannot be carried out", ValueError):
                calls, in_training, constants = self._remaining_calls()
        except ValueError as error:
            names = ", ".join(emptied(before.groups, self.plan))
            if not names:
                raise UnsupportedNetwork(f"this plan cannot be carried out: {error}") from error
            raise ValueError(f"the plan keeps no channel of {names}, but {error}") from error
        called = _called(calls, in_training) if calls is not before.calls else before.layers.keys()
        renumbered = np.cumsum(keep) - 1
        layers = {}
        for name, layer in before.layers.items():
            if name not in called:
                continue
            if name in constants:
                outputs = renumbered[layer.outputs[keep[layer.outputs]]]
                layers[name] = constant_layer(name, outputs, constants[name], layer.rank)
            elif keep[layer.outputs].any() and (layer.made_of or keep[layer.inputs].any()):
                layers[name] = _shrunk(layer, keep, renumbered)
        groups = {}
        for name, group in before.groups.items():
            groups[name] = replace(
                group,
                start=int(keep[: group.start].sum()),
                size=int(keep[group.numbers].sum()),
                producers=tuple(producer for producer in group.producers if producer in layers),
                gates=tuple(gate for gate in group.gates if gate in layers),
                norms=tuple(norm for norm in group.norms if norm in layers),
            )
        tensors = {
            name: replace(axis, channels=renumbered[axis.channels[keep[axis.channels]]])
            for name, axis in before.tensors.items()
        }
        return replace(
            before,
            groups=groups,
            layers=layers,
            calls=calls,
            in_training=in_training,
            tensors=tensors,
            baked=frozenset(),
            numbered=np.where(self.traced_keep, renumbered[before.numbered], -1),
        )

    @cached_property
    def of_plain(self) -> Cut:
        """The same cut of the network whose layers compute no weights any more."""
        return replace(self, before=replace(self.before, baked=frozenset()))

    def refuse_other_calls(self) -> None:
        """Refuse a cut that the network's own code cannot run with smaller tensors in place.

        Raises:
            UnsupportedNetwork: Its calls have to be others.
        """
        before = self.before
        if before.is_exported or before.baked or self.after.calls is not before.calls:
            raise UnsupportedNetwork(
                "part of the channels cannot be run in place: sizes are written into the network's "
                "code, or its layers compute their weights; prune it after training instead"
            )

    @cached_property
    def traced_keep(self) -> Mask:
        """(channels when the graph was traced,) True where the channel stays."""
        numbered = self.before.numbered
        return (numbered >= 0) & self.keep[numbered]

    def _remaining_calls(self) -> tuple[fx.Graph, fx.Graph | str, dict[str, tuple[str, ...]]]:
        """Return the calls that are left in eval mode and in train mode, and the constants."""
        before = self.before
        calls = resized(before.calls, self.traced_keep)
        fills = not emptied(before.groups, self.plan)
        facts = (before.layers, self.keep, self.traced_keep, fills)
        calls, constants = remaining_calls(calls, *facts)
        if calls is not before.calls and (lost := lost_context(before.calls)):
            raise ValueError(f"the network that is left has to be built from its calls, but {lost}")
        if before.trains_alike:
            return calls, calls, constants
        if isinstance(before.in_training, str):
            if calls is before.calls:
                return calls, before.in_training, constants
            raise ValueError(
                "the network that is left has to be built from its calls, and those of this one in "
                f"train mode cannot be followed: {before.in_training}"
            )
        in_training = resized(before.in_training, self.traced_keep)
        in_training, others = remaining_calls(in_training, *facts)
        if any(constants.get(name, made_of) != made_of for name, made_of in others.items()):
            raise ValueError("a layer would be a constant in eval mode, and another in train mode")
        return calls, in_training, {**others, **constants}


def _called(*modes: fx.Graph | str) -> set[str]:
    """Name the layers that are called in any mode."""
    graphs = [calls for calls in modes if isinstance(calls, fx.Graph)]
    return {
        str(node.target) for calls in graphs for node in calls.nodes if node.op == "call_module"
    }


def _shrunk(layer: Layer, keep: Mask, renumbered: ChannelNumbers) -> Layer:
    reads, writes = keep[layer.inputs], keep[layer.outputs]
    index = layer.index
    if index is not None:
        index = (np.cumsum(reads) - 1)[index[writes]]
    return replace(
        layer,
        inputs=renumbered[layer.inputs[reads]],
        outputs=renumbered[layer.outputs[writes]],
        index=index,
    )
