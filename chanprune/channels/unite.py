"""Number the channels while a network is traced, unite those that go together, form the groups."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

import numpy as np

from chanprune.channels.layers import ChannelGroup, ChannelNumbers
from chanprune.channels.spread import axes_of


@dataclass
class _Facts:
    """What is known of a run of channels that one layer made."""

    name: str
    start: int
    size: int
    gathered: bool = False
    produced: bool = True
    gates: bool = False
    norms: list[str] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)
    gathered_from: str = ""


class Numbering:
    """Channel numbers under construction, and which of them go together."""

    def __init__(self) -> None:
        self._runs: list[_Facts] = []
        self._run_of = np.empty(0, dtype=np.int64)
        self._pairs: list[tuple[ChannelNumbers, ChannelNumbers]] = []
        self._known = np.empty(0, dtype=np.int64)
        self._divisions: list[tuple[ChannelNumbers, int, str]] = []

    def new(
        self, size: int, name: str, *, gathered: bool = False, produced: bool = True
    ) -> ChannelNumbers:
        """Make `size` new channels for the layer `name`; `produced` ones have filters."""
        start = len(self._run_of)
        self._run_of = np.append(self._run_of, np.full(size, len(self._runs)))
        norms = [name] if gathered else []
        self._runs.append(_Facts(name, start, size, gathered, produced, norms=norms))
        return np.arange(start, start + size)

    def fixed(self, size: int, name: str, reason: str) -> ChannelNumbers:
        """Number channels that no layer makes, and that stay."""
        again = sum(run.name.partition(" (")[0] == name for run in self._runs)
        name = f"{name} ({again + 1})" if again else name
        numbers = self.new(size, name, produced=False)
        self.freeze(numbers, reason)
        return numbers

    def is_input(self, numbers: ChannelNumbers) -> bool:
        """Tell whether these are the channels of the first input."""
        return bool((self._run_of[numbers] == 0).all())

    def unite(self, left: ChannelNumbers, right: ChannelNumbers) -> None:
        """Let the numbers at the same places go together; the arrays may be broadcast."""
        if left is not right:
            a, b = np.broadcast_arrays(left, right)
            self._pairs.append((a.ravel(), b.ravel()))

    def freeze(self, numbers: ChannelNumbers, reason: str) -> None:
        """Keep the groups of these channels whole."""
        for run in self._runs_of(numbers):
            run.fixed.append(reason)

    def gates(self, numbers: ChannelNumbers) -> None:
        """Note that these channels only scale others that they go together with."""
        for run in self._runs_of(numbers):
            run.gates = True

    def gathered_from(self, numbers: ChannelNumbers, reader: str) -> None:
        """Keep the groups of these channels whole, as `reader` gathers from them."""
        for run in self._runs_of(numbers):
            run.gathered_from = run.gathered_from or reader

    def normed_by(self, numbers: ChannelNumbers, name: str) -> None:
        """Note the norm that scales these channels."""
        for run in self._runs_of(numbers):
            if name not in run.norms:
                run.norms.append(name)

    def divide(self, numbers: ChannelNumbers, blocks: int, name: str) -> None:
        """Let each of `blocks` equal parts keep equally many channels (a grouped convolution)."""
        if blocks > 1:
            self._divisions.append((numbers, blocks, name))

    def settle(self, grids: list[ChannelNumbers]) -> None:
        """Leave every array of numbers only one axis along which channels may go.

        Where several are left, the last one is: of (groups, C / groups) each group then loses the
        same places.
        """
        for numbers in grids:
            left = without_repeats(self._roots()[numbers])
            axes = axes_of(left)
            if len(axes) > 1:
                first = left[
                    tuple(slice(0, 1) if d in axes[:-1] else slice(None) for d in range(left.ndim))
                ]
                self.unite(left, first)

    def groups(self) -> tuple[dict[str, ChannelGroup], ChannelNumbers]:
        """Form the groups.

        Returns:
            Name -> group, and the final number of every channel by its number so far.
        """
        roots = self._roots()
        parts = self._connected_runs(roots)
        renumbered = np.zeros(len(roots), dtype=np.int64)
        final: dict[int, int] = {}
        groups: dict[str, ChannelGroup] = {}
        for runs in parts:
            start = len(final)
            for run in runs:
                for root in roots[run.start : run.start + run.size].tolist():
                    final.setdefault(root, len(final))
            groups[runs[0].name] = _group(runs, start, len(final) - start)
        for root, number in final.items():
            renumbered[root] = number
        renumbered = renumbered[roots]
        return self._with_divisions(groups, renumbered), renumbered

    def _with_divisions(
        self, groups: dict[str, ChannelGroup], renumbered: ChannelNumbers
    ) -> dict[str, ChannelGroup]:
        """Enter the blocks of grouped convolutions; a group that they do not fit stays whole."""
        for numbers, blocks, name in self._divisions:
            by_block = renumbered[numbers].reshape(blocks, -1)
            for group in [g for g in groups.values() if _meets(g, by_block)]:
                of_group = (by_block >= group.start) & (by_block < group.start + group.size)
                own = [np.sort(row[mask]) for row, mask in zip(by_block, of_group, strict=True)]
                if all(np.array_equal(own[0], other) for other in own[1:]):
                    continue
                finer, coarser = max(blocks, group.blocks), min(blocks, group.blocks)
                if _are_consecutive(own, group) and finer % coarser == 0:
                    groups[group.name] = replace(group, blocks=finer)
                elif group.fixed is None:
                    reason = f"the grouped convolution {name} meets it in another order"
                    groups[group.name] = replace(group, fixed=reason)
        return groups

    def _connected_runs(self, roots: ChannelNumbers) -> list[list[_Facts]]:
        """Collect the runs that share a channel, in the order of the network."""
        leaders = _smallest_connected(len(self._runs), self._run_of, self._run_of[roots])
        parts: dict[int, list[_Facts]] = defaultdict(list)
        for leader, facts in zip(leaders.tolist(), self._runs, strict=True):
            parts[leader].append(facts)
        return list(parts.values())

    def _runs_of(self, numbers: ChannelNumbers) -> list[_Facts]:
        return [self._runs[run] for run in np.unique(self._run_of[numbers]).tolist()]

    def _roots(self) -> ChannelNumbers:
        """Return the smallest channel that each one goes together with."""
        count = len(self._run_of)
        if self._pairs or len(self._known) < count:
            pairs = [*self._pairs, (np.arange(len(self._known)), self._known)]
            left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
            self._known = _smallest_connected(count, left, right)
            self._pairs = []
        return self._known


def _group(runs: list[_Facts], start: int, size: int) -> ChannelGroup:
    fixed = [reason for run in runs for reason in run.fixed]
    readers = [run.gathered_from for run in runs if run.gathered_from]
    is_stream = bool(readers) and not fixed
    if is_stream:
        fixed.append(f"it is part of a stream that {readers[0]} reads through a gather")
    is_producer = [run.produced and not run.gathered and not run.gates for run in runs]
    return ChannelGroup(
        name=runs[0].name,
        start=start,
        size=size,
        producers=tuple(run.name for run, yes in zip(runs, is_producer, strict=True) if yes),
        gates=tuple(run.name for run in runs if run.gates),
        norms=tuple(dict.fromkeys(norm for run in runs for norm in run.norms)),
        gathered=any(run.gathered for run in runs),
        fixed=fixed[0] if fixed else None,
        is_stream=is_stream,
    )


def _smallest_connected(count: int, left: ChannelNumbers, right: ChannelNumbers) -> ChannelNumbers:
    """Return, for each of `count` nodes, the smallest one that edges connect it with."""
    smallest = np.arange(count)
    while True:
        least = np.minimum(smallest[left], smallest[right])
        before = smallest.copy()
        np.minimum.at(smallest, before[left], least)
        np.minimum.at(smallest, before[right], least)
        smallest = smallest[smallest]
        if np.array_equal(smallest, before):
            return smallest


def without_repeats(numbers: ChannelNumbers) -> ChannelNumbers:
    """Give an array of numbers length 1 along the dimensions that it does not vary along."""
    for dim in axes_of(numbers):
        first = numbers.take([0], dim)
        if (numbers == first).all():
            numbers = first
    return numbers


def _meets(group: ChannelGroup, numbers: ChannelNumbers) -> bool:
    return bool(((numbers >= group.start) & (numbers < group.start + group.size)).any())


def _are_consecutive(parts: list[ChannelNumbers], group: ChannelGroup) -> bool:
    """Tell whether sorted parts are equal runs of a group, with its channels equally often."""
    own = np.concatenate(parts)
    times = len(own) // group.size
    return len({len(part) for part in parts}) == 1 and np.array_equal(
        own, np.arange(group.start, group.start + group.size).repeat(times)
    )
