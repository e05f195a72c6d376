"""The steps in which channels go: one channel, or as many as rounding and blocks demand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Units:
    """Channels that go in one step (one; or a multiple for rounding and grouped convolutions).

    Attributes:
        score: (U,) mean score of each unit.
        group: (U,) number of its group.
        size: (U,) number of its channels.
        members: (C,) the channels of all units, one unit after the other, numbered through all
            groups.
    """

    score: Floats
    group: Ints
    size: Ints
    members: Ints

    def of(self, group: int) -> Ints:
        """Return the units of a group in the order in which they go."""
        return np.flatnonzero(self.group == group)

    def offer(self, group: int, width: int, floor: int) -> Offer:
        """Return the widths that a group of `width` channels can have, from its floor on."""
        units = self.of(group)
        gone = np.append(0, np.cumsum(self.size[units]))
        worth = (self.score * self.size)[units]
        kept = worth.sum() - np.append(0.0, np.cumsum(worth))
        is_legal = width - gone >= floor
        return Offer((width - gone[is_legal])[::-1].astype(float), kept[is_legal][::-1])

    def stay(self, taken: Ints) -> npt.NDArray[np.bool_]:
        """Tell of every channel (C,) whether it stays when some units are taken."""
        goes = np.zeros(len(self.size), dtype=bool)
        goes[taken] = True
        stays = np.ones(len(self.members), dtype=bool)
        stays[self.members[goes.repeat(self.size)]] = False
        return stays


@dataclass(frozen=True, eq=False)
class Offer:
    """What a group can be.

    Attributes:
        widths: (W,) numbers of channels, ascending.
        worth: (W,) sum of the scores that each keeps.
    """

    widths: Floats
    worth: Floats


def as_floats(score: Tensor) -> Floats:
    """Return scores (C,) in float64."""
    values: Floats = score.detach().double().cpu().numpy()
    return values


def units_of(scores: Mapping[str, Tensor], round_to: int, blocks: Mapping[str, int]) -> Units:
    """Split all groups into units; raises ValueError where scores are not finite."""
    unit_scores, groups, sizes, members = [], [], [], []
    start = 0
    for g, (name, tensor) in enumerate(scores.items()):
        score = as_floats(tensor)
        if not np.isfinite(score).all():
            raise ValueError(f"the scores of the channel group {name!r} are not finite")
        ranked, starts = _ranked(score, round_to, blocks.get(name, 1))
        size = np.diff(np.append(starts, len(score)))
        unit_scores.append(np.add.reduceat(score[ranked], starts) / size)
        groups.append(np.full(len(starts), g))
        sizes.append(size)
        members.append(start + ranked)
        start += len(score)
    return Units(*(np.concatenate(parts) for parts in (unit_scores, groups, sizes, members)))


def _ranked(score: Floats, round_to: int, blocks: int) -> tuple[Ints, Ints]:
    """Rank a group's channels, lowest first, and split them into steps to legal widths.

    Returns:
        The channels in the order in which they go, and where each unit starts in it.
    """
    size = len(score)
    in_blocks = np.argsort(score.reshape(blocks, -1), axis=1, kind="stable")
    in_blocks += np.arange(blocks)[:, None] * (size // blocks)
    step = math.lcm(round_to, blocks)
    starts = np.arange(size % step, size, step)
    return in_blocks.T.reshape(-1), starts if size % step == 0 else np.append(0, starts)


def take_lowest(
    units: Units, floors: list[int], wanted: int, widths: list[int]
) -> tuple[Ints, list[int]]:
    """Take units in global order, but none that does not fit or takes a group below its floor.

    The units of a group do not become smaller, so that no unit is taken before a lower one.

    Returns:
        The units taken, and the groups that were stopped by their floor.
    """
    order = np.lexsort((np.arange(len(units.score)), units.group, units.score))
    groups, sizes = units.group.tolist(), units.size.tolist()
    left = list(widths)
    taken: list[int] = []
    stopped: dict[int, None] = {}
    budget = wanted
    for unit in order.tolist():
        if budget == 0:
            break
        group, size = groups[unit], sizes[unit]
        if size > budget:
            continue
        if left[group] - size < floors[group]:
            stopped[group] = None
        else:
            left[group] -= size
            budget -= size
            taken.append(unit)
    return np.array(taken, dtype=np.int64), list(stopped)
