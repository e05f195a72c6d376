"""Selection: which channels go, given their scores and how many."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


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
    """Channels that go in one step (one; or a multiple for rounding and grouped convolutions)."""

    score: Floats
    group: Ints
    size: Ints
    members: list[Ints]


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
            convolutions); their best channels are ranked within each block and go together.
        may_be_emptied: Groups that may lose every channel, if the floors let them; the others keep
            one at least.

    Raises:
        ValueError: Scores are not finite, or the floors leave too few channels to drop.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"the prune ratio must be in [0, 1), not {ratio}")
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
    units = _units(scores, round_to, blocks or {})
    taken, stopped = _take_lowest(units, floors, wanted, [len(s) for s in scores.values()])
    removed = int(units.size[taken].sum())
    names = list(scores)
    at_floor = [names[g] for g in stopped]
    if wanted - removed >= max(units.size.tolist(), default=1):
        raise ValueError(
            f"prune.ratio={ratio} asks for {wanted} of {total} channels, but the floors leave only "
            f"{removed} to drop; at their floor: {', '.join(at_floor)}; lower the ratio, "
            f"prune.min_channels or prune.min_share, or raise prune.max_share"
        )
    dropped: list[set[int]] = [set() for _ in names]
    for unit in taken.tolist():
        dropped[units.group[unit]].update(units.members[unit].tolist())
    kept = {
        name: [c for c in range(len(score)) if c not in gone]
        for (name, score), gone in zip(scores.items(), dropped, strict=True)
    }
    threshold = max(
        (float(scores[names[g]][list(gone)].max()) for g, gone in enumerate(dropped) if gone),
        default=math.nan,
    )
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
    kept: dict[str, list[int]] = {}
    at_floor = []
    for name, tensor in scores.items():
        score = tensor.detach().double().cpu().numpy()
        if not np.isfinite(score).all():
            raise ValueError(f"the scores of the channel group {name!r} are not finite")
        parts = score.reshape((blocks or {}).get(name, 1), -1)
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
    kept = {}
    for name, width in widths.items():
        if name not in scores or not 1 <= width <= len(scores[name]):
            sizes = ", ".join(f"{group} {len(score)}" for group, score in scores.items())
            raise ValueError(f"{name} cannot keep {width} channels; there are: {sizes}")
        parts = (
            scores[name].detach().double().cpu().numpy().reshape((blocks or {}).get(name, 1), -1)
        )
        if width % len(parts):
            raise ValueError(f"{name} must keep a multiple of {len(parts)} channels, not {width}")
        best = np.argsort(-parts, axis=1, kind="stable")[:, : width // len(parts)]
        best += np.arange(len(parts))[:, None] * parts.shape[1]
        kept[name] = sorted(best.reshape(-1).tolist())
    total = sum(len(score) for score in scores.values())
    removed = sum(len(scores[name]) - len(channels) for name, channels in kept.items())
    return Selection(kept, removed, total, math.nan, [])


def _floor(size: int, min_channels: int, min_share: float, max_share: float) -> int:
    smallest = max(min_channels, math.ceil(min_share * size - 1e-9))
    return min(size, max(smallest, size - math.floor(max_share * size + 1e-9)))


def _units(scores: Mapping[str, Tensor], round_to: int, blocks: Mapping[str, int]) -> _Units:
    unit_scores: list[float] = []
    groups: list[int] = []
    members: list[Ints] = []
    for g, (name, tensor) in enumerate(scores.items()):
        score = tensor.detach().double().cpu().numpy()
        if not np.isfinite(score).all():
            raise ValueError(f"the scores of the channel group {name!r} are not finite")
        for channels in _units_of(score, round_to, blocks.get(name, 1)):
            members.append(channels)
            unit_scores.append(float(score[channels].mean()))
            groups.append(g)
    sizes = np.array([len(m) for m in members], dtype=np.int64)
    return _Units(np.array(unit_scores), np.array(groups, dtype=np.int64), sizes, members)


def _units_of(score: Floats, round_to: int, blocks: int) -> list[Ints]:
    """Split a group's channels into steps, lowest first; every step leaves a legal width."""
    size = len(score)
    in_blocks = np.argsort(score.reshape(blocks, -1), axis=1, kind="stable")
    in_blocks += np.arange(blocks)[:, None] * (size // blocks)
    ranked = in_blocks.T.reshape(-1)
    step = math.lcm(round_to, blocks)
    first = size % step or step
    return [ranked[:first], *(ranked[i : i + step] for i in range(first, size, step))]


def _take_lowest(
    units: _Units, floors: list[int], wanted: int, widths: list[int]
) -> tuple[Ints, list[int]]:
    """Take units in global order while they fit and no group falls below its floor.

    Returns:
        The units taken, and the groups that were stopped by their floor.
    """
    order = np.lexsort((np.arange(len(units.score)), units.group, units.score))
    left = list(widths)
    taken: list[int] = []
    stopped: dict[int, None] = {}
    closed = np.zeros(len(widths), dtype=bool)
    budget = wanted
    for unit in order.tolist():
        if budget == 0:
            break
        group, size = int(units.group[unit]), int(units.size[unit])
        if closed[group]:
            continue
        if left[group] - size < floors[group]:
            closed[group] = True
            stopped[group] = None
        elif size > budget:
            closed[group] = True
        else:
            left[group] -= size
            budget -= size
            taken.append(unit)
    return np.array(taken, dtype=np.int64), list(stopped)
