"""The channel graph: which channels a network has, and which tensor axes run over them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import fx

from chanprune.channels.emptied import remaining_calls, what_remains
from chanprune.channels.layers import Axis, ChannelGroup, ChannelNumbers, Layer, constant_layer
from chanprune.channels.plan import Plan


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """All channel groups of a network, found by `trace`.

    Attributes:
        groups: Name -> group, in the order of the network; numbers run through them.
        layers: Name -> layer, in the order of the network.
        calls: The traced calls, by module name, so that they fit every compaction of the network.
        in_training: The calls in train mode: the same graph where they are the same; a text where
            they cannot be followed, which says why.
        input_shape: (C, H, W) that was traced.
    """

    groups: dict[str, ChannelGroup]
    layers: dict[str, Layer]
    calls: fx.Graph = field(repr=False)
    in_training: fx.Graph | str = field(repr=False)
    input_shape: tuple[int, ...]

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

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        """Tensor name -> its axes that run over channels."""
        return {name: axes for layer in self.layers.values() for name, axes in layer.axes()}

    def group_axes(self, name: str) -> list[tuple[str, int]]:
        """List the (tensor name, dimension) pairs that run over a group's channels."""
        group = self.groups[name]
        numbers = np.arange(group.start, group.start + group.size)
        return [
            (tensor, axis.dim)
            for tensor, axes in self.axes().items()
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

    def may_be_emptied(self, name: str) -> bool:
        """Tell whether the network still works when a group loses all its channels."""
        try:
            self.after(Plan({name: ()}))
        except ValueError:
            return False
        return True

    def kept_mask(self, plan: Plan) -> npt.NDArray[np.bool_]:
        """Return (num_channels,) True where the channel stays.

        Where a plan keeps no channel of a group, what only this group fed goes as well: the rest of
        a residual branch, the channels that a dense layer appends.

        Raises:
            ValueError: The plan names a group that the graph lacks, prunes a fixed one, keeps a
                channel that the group lacks, or keeps unequal numbers in the blocks of a grouped
                convolution.
        """
        mask = np.ones(self.num_channels, dtype=bool)
        for name, kept in plan.kept.items():
            if name not in self.groups:
                known = ", ".join(self.groups)
                raise ValueError(f"the plan names the channel group {name!r}; known: {known}")
            group = self.groups[name]
            _check_kept(group, kept)
            if not group.is_stream:
                mask[group.start : group.start + group.size] = False
                mask[group.start + np.asarray(kept, dtype=np.int64)] = True
        if self._emptied(plan):
            mask = what_remains(self.layers.values(), mask, self._channels_that_stay())
        unread = mask & ~self._read(mask)
        for name, kept in plan.kept.items():
            group = self.groups[name]
            if not group.is_stream:
                continue
            own = slice(group.start, group.start + group.size)
            left = np.zeros(group.size, dtype=bool)
            left[list(kept)] = True
            if (mask[own] & ~unread[own] & ~left).any() or (left & ~mask[own]).any():
                raise ValueError(f"the channel group {name!r} must stay whole: {group.fixed}")
            mask[own] = left
        return mask

    def unread(self, plan: Plan) -> dict[str, list[int]]:
        """Return, of each stream that has channels which nothing reads, those that are read.

        Such channels arise where a batch norm reads copies of others instead.

        Args:
            plan: What else is kept.

        Returns:
            Group name -> channels that something reads, where that is not all of them; with some
            that nothing reads where the blocks of a grouped convolution must stay equally wide.
        """
        read = self._read(self.kept_mask(plan))
        found = {}
        for name, group in self.groups.items():
            left = _evenly(read[group.start : group.start + group.size], group.blocks)
            if group.is_stream and not left.all():
                found[name] = np.flatnonzero(left).tolist()
        return found

    def _read(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return (num_channels,) True where a layer that stays reads the channel."""
        read = np.zeros(self.num_channels, dtype=bool)
        for layer in self.layers.values():
            stays = mask[layer.outputs]
            if layer.index is not None:
                read[layer.inputs[layer.index[stays]]] = True
            elif stays.any() and not layer.passes_on:
                read[layer.inputs] = True
        return read

    def complete(self, plan: Plan) -> Plan:
        """Return the plan with everything that it implies (see `kept_mask`); raises alike."""
        mask = self.kept_mask(plan)
        kept = {}
        for name, group in self.groups.items():
            left = np.flatnonzero(mask[group.start : group.start + group.size])
            if name in plan.kept or len(left) < group.size:
                kept[name] = left.tolist()
        return Plan(kept)

    def after(self, plan: Plan) -> ChannelGraph:
        """Return the graph of the network that `plan` leaves.

        Raises:
            ValueError: As `kept_mask` does; or the plan cuts the network in two.
        """
        keep = self.kept_mask(plan)
        try:
            calls, in_training, constants = self._remaining_calls(keep)
        except ValueError as error:
            emptied = ", ".join(self._emptied(plan))
            raise ValueError(f"the plan keeps no channel of {emptied}, but {error}") from error
        renumbered = np.cumsum(keep) - 1
        layers = {}
        for name, layer in self.layers.items():
            if name in constants:
                outputs = renumbered[layer.outputs[keep[layer.outputs]]]
                layers[name] = constant_layer(name, outputs, constants[name], layer.rank)
            elif keep[layer.outputs].any() and (layer.made_of or keep[layer.inputs].any()):
                layers[name] = _shrunk(layer, keep, renumbered)
        groups = {}
        for name, group in self.groups.items():
            groups[name] = replace(
                group,
                start=int(keep[: group.start].sum()),
                size=int(keep[group.start : group.start + group.size].sum()),
                producers=tuple(producer for producer in group.producers if producer in layers),
                gates=tuple(gate for gate in group.gates if gate in layers),
                norms=tuple(norm for norm in group.norms if norm in layers),
            )
        return replace(self, groups=groups, layers=layers, calls=calls, in_training=in_training)

    def _remaining_calls(
        self, keep: npt.NDArray[np.bool_]
    ) -> tuple[fx.Graph, fx.Graph | str, dict[str, tuple[str, ...]]]:
        """Return the calls that are left in eval mode and in train mode, and the constants."""
        calls, constants = remaining_calls(self.calls, self.layers, keep)
        if self.trains_alike:
            return calls, calls, constants
        if isinstance(self.in_training, str):
            if calls is self.calls:
                return calls, self.in_training, constants
            raise ValueError(
                "a network without whole layers is built from its calls, and those of this one in "
                f"train mode cannot be followed: {self.in_training}"
            )
        in_training, others = remaining_calls(self.in_training, self.layers, keep)
        if any(constants.get(name, made_of) != made_of for name, made_of in others.items()):
            raise ValueError("a layer would be a constant in eval mode, and another in train mode")
        return calls, in_training, {**others, **constants}

    def _emptied(self, plan: Plan) -> list[str]:
        return [name for name, kept in plan.kept.items() if not kept and self.groups[name].size]

    def _channels_that_stay(self) -> npt.NDArray[np.bool_]:
        """Return (num_channels,) True in the groups that are fixed, streams apart."""
        stay = np.zeros(self.num_channels, dtype=bool)
        for group in self.groups.values():
            if group.fixed is not None and not group.is_stream:
                stay[group.start : group.start + group.size] = True
        return stay


def _shrunk(layer: Layer, keep: npt.NDArray[np.bool_], renumbered: ChannelNumbers) -> Layer:
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


def _check_kept(group: ChannelGroup, kept: tuple[int, ...]) -> None:
    if kept and kept[-1] >= group.size:
        raise ValueError(
            f"the plan keeps channel {kept[-1]} of {group.name!r}, which has {group.size}"
        )
    if group.fixed is not None and not group.is_stream and len(kept) < group.size:
        raise ValueError(f"the channel group {group.name!r} must stay whole: {group.fixed}")
    blocks = np.asarray(kept, dtype=np.int64) * group.blocks // max(1, group.size)
    per_block = np.bincount(blocks, minlength=group.blocks)
    if len(set(per_block.tolist())) > 1:
        raise ValueError(
            f"the channel group {group.name!r} meets a convolution with {group.blocks} groups, "
            f"each of which must keep equally many channels; the plan keeps {per_block.tolist()}"
        )


def _evenly(left: npt.NDArray[np.bool_], blocks: int) -> npt.NDArray[np.bool_]:
    """Add to what is left (C,) the first others, until all blocks have as much as the fullest."""
    by_block = left.reshape(blocks, -1)
    width = by_block.sum(1).max()
    chosen = np.argsort(~by_block, axis=1, kind="stable")[:, :width]
    even = np.zeros_like(by_block)
    np.put_along_axis(even, chosen, True, axis=1)
    return even.reshape(-1)
