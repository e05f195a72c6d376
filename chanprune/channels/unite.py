"""Number the channels while a network is traced, unite those that go together, form the groups."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

import numpy as np

from chanprune.channels.layers import ChannelGroup, ChannelNumbers


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
    """Channel numbers under construction: a union-find over channels."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._runs: list[_Facts] = []
        self._run_of: list[int] = []
        self._divisions: list[tuple[ChannelNumbers, int, str]] = []

    def new(
        self, size: int, name: str, *, gathered: bool = False, produced: bool = True
    ) -> ChannelNumbers:
        """Make `size` new channels for the layer `name`; `produced` ones have filters."""
        start = len(self._parent)
        self._parent.extend(range(start, start + size))
        self._run_of.extend([len(self._runs)] * size)
        norms = [name] if gathered else []
        self._runs.append(_Facts(name, start, size, gathered, produced, norms=norms))
        return np.arange(start, start + size)

    def zeros(self, size: int, name: str) -> ChannelNumbers:
        """Number channels of zeros that no layer makes and that the code has so many of."""
        if size == 0:
            return np.empty(0, dtype=np.int64)
        numbers = self.new(size, name, produced=False)
        self.freeze(numbers, f"{name} appends a fixed number of zeros to it")
        return numbers

    def is_input(self, numbers: ChannelNumbers) -> bool:
        """Tell whether these are the channels of the image."""
        return all(self._run_of[n] == 0 for n in numbers)

    def unite(self, left: ChannelNumbers, right: ChannelNumbers) -> None:
        """Let left[i] and right[i] go together."""
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            first, second = sorted((self._root(a), self._root(b)))
            self._parent[second] = first

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
        """Note the batch norm that scales these channels."""
        for run in self._runs_of(numbers):
            if name not in run.norms:
                run.norms.append(name)

    def divide(self, numbers: ChannelNumbers, blocks: int, name: str) -> None:
        """Let each of `blocks` equal parts keep equally many channels (a grouped convolution)."""
        if blocks > 1:
            self._divisions.append((numbers, blocks, name))

    def groups(self) -> tuple[dict[str, ChannelGroup], ChannelNumbers]:
        """Form the groups.

        Returns:
            Name -> group, and the final number of every channel by its number so far.
        """
        roots = np.array([self._root(n) for n in range(len(self._parent))])
        parts = self._connected_runs(roots)
        renumbered = np.zeros(len(roots), dtype=np.int64)
        final: dict[int, int] = {}
        groups: dict[str, ChannelGroup] = {}
        for runs in parts:
            start = len(final)
            for run in runs:
                for root in roots[run.start : run.start + run.size].tolist():
                    final.setdefault(root, len(final))
            fixed = [reason for run in runs for reason in run.fixed]
            readers = [run.gathered_from for run in runs if run.gathered_from]
            is_stream = bool(readers) and not fixed
            if is_stream:
                fixed.append(f"it is part of a stream that {readers[0]} reads through a gather")
            groups[runs[0].name] = ChannelGroup(
                name=runs[0].name,
                start=start,
                size=len(final) - start,
                producers=tuple(
                    run.name for run in runs if run.produced and not run.gathered and not run.gates
                ),
                gates=tuple(run.name for run in runs if run.gates),
                norms=tuple(dict.fromkeys(norm for run in runs for norm in run.norms)),
                gathered=any(run.gathered for run in runs),
                fixed=fixed[0] if fixed else None,
                is_stream=is_stream,
            )
        for number, root in enumerate(roots.tolist()):
            renumbered[number] = final[root]
        return self._with_divisions(groups, renumbered), renumbered

    def _with_divisions(
        self, groups: dict[str, ChannelGroup], renumbered: ChannelNumbers
    ) -> dict[str, ChannelGroup]:
        """Enter the blocks of grouped convolutions; a group that they do not fit stays whole."""
        for numbers, blocks, name in self._divisions:
            present = set(renumbered[numbers].tolist())
            for group in list(groups.values()):
                own = range(group.start, group.start + group.size)
                if present.isdisjoint(own):
                    continue
                fits = renumbered[numbers].tolist() == list(own)
                finer, coarser = max(blocks, group.blocks), min(blocks, group.blocks)
                if fits and finer % coarser == 0:
                    groups[group.name] = replace(group, blocks=finer)
                elif group.fixed is None:
                    reason = f"the grouped convolution {name} meets it in another order"
                    groups[group.name] = replace(group, fixed=reason)
        return groups

    def _connected_runs(self, roots: ChannelNumbers) -> list[list[_Facts]]:
        """Collect the runs that share a channel, in the order of the network."""
        leader = list(range(len(self._runs)))

        def lead(run: int) -> int:
            while leader[run] != run:
                run = leader[run]
            return run

        for number, root in enumerate(roots.tolist()):
            first, second = sorted((lead(self._run_of[number]), lead(self._run_of[root])))
            leader[second] = first
        parts: dict[int, list[_Facts]] = defaultdict(list)
        for run, facts in enumerate(self._runs):
            parts[lead(run)].append(facts)
        return list(parts.values())

    def _runs_of(self, numbers: ChannelNumbers) -> list[_Facts]:
        return [self._runs[run] for run in dict.fromkeys(self._run_of[n] for n in numbers.tolist())]

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number
