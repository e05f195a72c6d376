"""Selection: which channels go, given their scores and how many."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Scores(dict[str, Tensor]):
    """Group name -> (C,) scores, high means keep.

    Attributes:
        blocks: Group name -> number of blocks that must keep equally many channels, as grouped
            convolutions demand. The selections below look here if they are not told otherwise.
    """

    def __init__(self, scores: Mapping[str, Tensor], blocks: Mapping[str, int]):
        super().__init__(scores)
        self.blocks = dict(blocks)


@dataclass(frozen=True)
class Selection:
    """What a policy decided.

    Attributes:
        kept: Group name -> ascending kept indices.
        removed: Number of channels that go.
        total: Number of channels that were scored.
        threshold: Largest score that goes; nan if none does.
        at_floor: Groups that would have lost more, had their floor not stopped them.
    """

    kept: dict[str, list[int]]
    removed: int
    total: int
    threshold: float
    at_floor: list[str]


@dataclass(frozen=True)
class _Units:
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


def select_global(
    scores: Mapping[str, Tensor],
    ratio: float,
    *,
    min_channels: int = 1,
    min_share: float = 0.02,
    max_share: float = 1.0,
    round_to: int = 1,
    blocks: Mapping[str, int] | None = None,
    may_be_emptied: Collection[str] = (),
) -> Selection:
    """Drop the lowest-scoring channels of the whole network: exactly floor(ratio * N) of N.

    The order is (score, group, channel), so that ties are decided and the result is deterministic.
    What the floor of a group protects is made up from the others.

    Args:
        scores: Group name -> (C,) finite scores, high means keep.
        ratio: Share of all scored channels to drop, in [0, 1).
        min_channels: Every group keeps at least so many.
        min_share: Every group keeps at least this share of its channels (rounded up), in [0, 1].
        max_share: No group loses more than this share in one pass (rounded down), in (0, 1].
        round_to: Every group keeps a multiple of this (or all its channels); the number dropped
            then falls short of floor(ratio * N) by less than one multiple.
        blocks: Group name -> number of blocks that must keep equally many channels (grouped
            convolutions; see `ChannelGraph.blocks`); their best channels are ranked within each
            block and go together.
        may_be_emptied: Groups that may lose every channel, if the floors let them; the others keep
            one at least.

    Raises:
        ValueError: Scores are not finite, or the floors leave too few channels to drop, or none may
            go at all.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"the prune ratio must be in [0, 1), not {ratio}")
    if not scores and ratio > 0:
        raise ValueError(f"prune.ratio={ratio} asks for channels, but none may go: all stay whole")
    if not scores:
        return Selection({}, 0, 0, math.nan, [])
    total = sum(len(score) for score in scores.values())
    wanted = math.floor(ratio * total + 1e-9)
    floors = [
        _floor(
            len(s),
            min_channels if g in may_be_emptied else max(1, min_channels),
            min_share,
            max_share,
        )
        for g, s in scores.items()
    ]
    units = _units(scores, round_to, _blocks(scores, blocks))
    taken, stopped = _take_lowest(units, floors, wanted, [len(s) for s in scores.values()])
    removed = int(units.size[taken].sum())
    names = list(scores)
    at_floor = [names[g] for g in stopped]
    if wanted - removed >= max(units.size.tolist(), default=1):
        raise ValueError(
            f"prune.ratio={ratio} asks for {wanted} of {total} channels, but the floors leave only "
            f"{removed} to drop; at their floor: {first_of(at_floor)}; lower the "
            f"ratio, prune.min_channels or prune.min_share, or raise prune.max_share"
        )
    goes = np.zeros(len(units.size), dtype=bool)
    goes[taken] = True
    stays = np.ones(total, dtype=bool)
    stays[units.members[goes.repeat(units.size)]] = False
    every = np.concatenate([_as_floats(score) for score in scores.values()])
    threshold = float(every[~stays].max()) if removed else math.nan
    starts = np.cumsum([len(score) for score in scores.values()])[:-1]
    kept = {
        name: np.flatnonzero(part).tolist()
        for name, part in zip(scores, np.split(stays, starts), strict=True)
    }
    return Selection(kept, removed, total, threshold, at_floor)


def select_above(
    scores: Mapping[str, Tensor],
    threshold: float,
    *,
    prefix: bool = False,
    min_channels: int = 1,
    blocks: Mapping[str, int] | None = None,
) -> Selection:
    """Keep the channels whose score is above a threshold; how many go is an outcome.

    Args:
        scores: Group name -> (C,) finite scores, high means keep.
        threshold: Scores up to this one go.
        prefix: Keep all channels up to the last one above the threshold, so that order is kept
            strictly (the channel-prioritized paper).
        min_channels: Every group keeps at least so many, its best.
        blocks: Group name -> number of blocks that must keep equally many channels: as many as the
            block that keeps most.

    Raises:
        ValueError: Scores are not finite.
    """
    blocks = _blocks(scores, blocks)
    kept: dict[str, list[int]] = {}
    at_floor = []
    for name, tensor in scores.items():
        score = _as_floats(tensor)
        if not np.isfinite(score).all():
            raise ValueError(f"the scores of the channel group {name!r} are not finite")
        parts = score.reshape(blocks.get(name, 1), -1)
        last = [np.flatnonzero(part > threshold).max(initial=-1) + 1 for part in parts]
        above = last if prefix else [int((part > threshold).sum()) for part in parts]
        count = max(above)
        floor = min(parts.shape[1], math.ceil(min_channels / len(parts)))
        if count < floor:
            at_floor.append(name)
            count = floor
        width = parts.shape[1]
        order = [np.arange(width) if prefix else np.argsort(-part, kind="stable") for part in parts]
        kept[name] = sorted(
            block * width + int(c) for block, ranked in enumerate(order) for c in ranked[:count]
        )
    total = sum(len(score) for score in scores.values())
    removed = total - sum(len(channels) for channels in kept.values())
    return Selection(kept, removed, total, threshold, at_floor)


def select_widths(
    scores: Mapping[str, Tensor],
    widths: Mapping[str, int],
    *,
    blocks: Mapping[str, int] | None = None,
) -> Selection:
    """Keep a given number of channels in each group, its best.

    Args:
        scores: Group name -> (C,) finite scores, high means keep.
        widths: Group name -> how many stay; groups that are not named keep all.
        blocks: Group name -> number of blocks that must keep equally many channels.

    Raises:
        ValueError: A width is out of range, or names a group that has no scores.
    """
    blocks = _blocks(scores, blocks)
    kept = {}
    for name, width in widths.items():
        if name not in scores or not 1 <= width <= len(scores[name]):
            sizes = ", ".join(f"{group} {len(score)}" for group, score in scores.items())
            raise ValueError(f"{name} cannot keep {width} channels; there are: {sizes}")
        parts = _as_floats(scores[name]).reshape(blocks.get(name, 1), -1)
        if width % len(parts):
            raise ValueError(f"{name} must keep a multiple of {len(parts)} channels, not {width}")
        best = np.argsort(-parts, axis=1, kind="stable")[:, : width // len(parts)]
        best += np.arange(len(parts))[:, None] * parts.shape[1]
        kept[name] = sorted(best.reshape(-1).tolist())
    total = sum(len(score) for score in scores.values())
    removed = sum(len(scores[name]) - len(channels) for name, channels in kept.items())
    return Selection(kept, removed, total, math.nan, [])


def _blocks(scores: Mapping[str, Tensor], told: Mapping[str, int] | None) -> Mapping[str, int]:
    if told is not None:
        return told
    return scores.blocks if isinstance(scores, Scores) else {}


def _floor(size: int, min_channels: int, min_share: float, max_share: float) -> int:
    smallest = max(min_channels, math.ceil(min_share * size - 1e-9))
    return min(size, max(smallest, size - math.floor(max_share * size + 1e-9)))


def _as_floats(score: Tensor) -> Floats:
    values: Floats = score.detach().double().cpu().numpy()
    return values


def _units(scores: Mapping[str, Tensor], round_to: int, blocks: Mapping[str, int]) -> _Units:
    unit_scores, groups, sizes, members = [], [], [], []
    start = 0
    for g, (name, tensor) in enumerate(scores.items()):
        score = _as_floats(tensor)
        if not np.isfinite(score).all():
            raise ValueError(f"the scores of the channel group {name!r} are not finite")
        ranked, starts = _units_of(score, round_to, blocks.get(name, 1))
        size = np.diff(np.append(starts, len(score)))
        unit_scores.append(np.add.reduceat(score[ranked], starts) / size)
        groups.append(np.full(len(starts), g))
        sizes.append(size)
        members.append(start + ranked)
        start += len(score)
    return _Units(*(np.concatenate(parts) for parts in (unit_scores, groups, sizes, members)))


def _units_of(score: Floats, round_to: int, blocks: int) -> tuple[Ints, Ints]:
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


def _take_lowest(
    units: _Units, floors: list[int], wanted: int, widths: list[int]
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


def first_of(names: Sequence[str]) -> str:
    """List the first three of some names, and how many more there are."""
    others = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + others
