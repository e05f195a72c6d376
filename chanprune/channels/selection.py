"""Selection: which channels go, given their scores and how many."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
from torch import Tensor

from chanprune.channels.budget import WITHIN, Budget, Target
from chanprune.channels.steps import Ints, Units, as_floats, take_lowest, units_of


class Scores(dict[str, Tensor]):
    """Group name -> (C,) scores, high means keep.

    Attributes:
        blocks: Group name -> number of blocks that must keep equally many channels, as grouped
            convolutions demand. The selections below look here if they are not told otherwise.
    """

    def __init__(self, scores: Mapping[str, Tensor], blocks: Mapping[str, int]):
        super().__init__(scores)
        self.blocks = dict(blocks)


NEAR = 16  # units before and behind the place of a budget that are exchanged


class NearestError(ValueError):
    """A budget can be met, but not within 1 %, with the steps that rounding leaves."""


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

    def beside(self, given: Selection) -> Selection:
        """Return this selection and what was decided of other groups."""
        return replace(
            self,
            kept={**given.kept, **self.kept},
            removed=self.removed + given.removed,
            total=self.total + sum(map(len, given.kept.values())) + given.removed,
        )


def select_global(
    scores: Mapping[str, Tensor],
    goal: float | Budget | Target,
    *,
    min_channels: int = 1,
    min_share: float = 0.02,
    max_share: float = 1.0,
    round_to: int = 1,
    blocks: Mapping[str, int] | None = None,
    may_be_emptied: Collection[str] = (),
    besides: Mapping[str, list[int]] = {},
) -> Selection:
    """Drop the lowest-scoring channels of the whole network until a goal is met.

    The order is (score, group, channel), so that ties are decided and the result is deterministic.
    What the floor of a group protects is made up from the others.

    Args:
        scores: Group name -> (C,) finite scores, high means keep.
        goal: A ratio in [0, 1): exactly floor(ratio * N) of all N scored channels go. Or a budget:
            as few go as bring the cost down to it; it is met from below, within 1 %. Or a target,
            which chooses how many of each group go.
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
        besides: What groups that are not scored keep, where they lose channels too.

    Raises:
        ValueError: Scores are not finite, or the floors or the rounding leave too few channels to
            drop, or none may go at all.
    """
    if isinstance(goal, float | int) and not 0 <= goal < 1:
        raise ValueError(f"the prune ratio must be in [0, 1), not {goal}")
    if not scores:
        if goal and not (isinstance(goal, Budget) and goal.cost_of(besides) <= goal.limit):
            raise ValueError(f"{_asked(goal)} asks for channels, but none may go: all stay whole")
        return Selection({}, 0, 0, math.nan, [])
    floors = [
        _floor(
            len(s),
            min_channels if g in may_be_emptied else max(1, min_channels),
            min_share,
            max_share,
        )
        for g, s in scores.items()
    ]
    units = units_of(scores, round_to, _blocks(scores, blocks))
    widths = [len(s) for s in scores.values()]
    names = list(scores)

    def chosen(taken: Ints, stopped: list[int]) -> Selection:
        stays = units.stay(taken)
        every = np.concatenate([as_floats(score) for score in scores.values()])
        threshold = float(every[~stays].max()) if len(taken) else math.nan
        parts = np.split(stays, np.cumsum(widths)[:-1])
        kept = {n: np.flatnonzero(part).tolist() for n, part in zip(names, parts, strict=True)}
        at_floor = [names[g] for g in stopped]
        return Selection(kept, int((~stays).sum()), len(stays), threshold, at_floor)

    if isinstance(goal, Target):
        whole = dict(zip(names, widths, strict=True))
        return _by_target(goal, besides, units, whole, floors, chosen)
    if isinstance(goal, Budget):
        order, stopped = take_lowest(units, floors, len(units.members), widths)
        most = np.bincount(units.group[order], minlength=len(names))

        def by_budget(taken: Ints) -> Selection:
            number = np.bincount(units.group[taken], minlength=len(names))
            return chosen(taken, [g for g in stopped if number[g] == most[g] > 0])

        return _within(goal, besides, units, order, by_budget)
    wanted = math.floor(goal * len(units.members) + 1e-9)
    selection = chosen(*take_lowest(units, floors, wanted, widths))
    smallest, largest = int(units.size.min()), int(units.size.max())
    if wanted - selection.removed >= largest:
        raise ValueError(
            f"{_asked(goal)} asks for {wanted} of {selection.total} channels, but the floors leave "
            f"only {selection.removed} to drop; at their floor: {first_of(selection.at_floor)}; "
            "lower the ratio, prune.min_channels or prune.min_share, or raise prune.max_share"
        )
    if wanted and not selection.removed:
        raise ValueError(
            f"{_asked(goal)} asks for {wanted} of {selection.total} channels, but they go by at "
            f"least {smallest} at a time (prune.round_to={round_to}, and blocks of grouped "
            "convolutions); raise the ratio, or lower prune.round_to"
        )
    return selection


def _by_target(
    target: Target,
    besides: Mapping[str, list[int]],
    units: Units,
    widths: Mapping[str, int],
    floors: Sequence[int],
    chosen: Callable[[Ints, list[int]], Selection],
) -> Selection:
    """Let a target choose how wide each group stays; raises ValueError where it cannot."""
    offers = {
        name: units.offer(group, width, max(1, floors[group]))
        for group, (name, width) in enumerate(widths.items())
    }

    def selection(asked: Mapping[str, int]) -> Selection:
        taken = []
        for group, (name, width) in enumerate(widths.items()):
            own = units.of(group)
            gone = np.cumsum(units.size[own])
            taken.append(own[: np.searchsorted(gone, width - asked[name], side="right")])
        stopped = [
            group
            for group, (name, width) in enumerate(widths.items())
            if asked[name] == offers[name].widths[0] < width
        ]
        return chosen(np.concatenate(taken), stopped)

    def kept(asked: Mapping[str, int]) -> dict[str, list[int]]:
        return {**besides, **selection(asked).kept}

    return selection(target.meet(offers, kept))


def _within(
    budget: Budget,
    besides: Mapping[str, list[int]],
    units: Units,
    order: Ints,
    chosen: Callable[[Ints], Selection],
) -> Selection:
    """Take the first units in their order that bring the cost within the budget.

    Where the last one takes more than it need, others are put back, the best first; if that does
    not do, one is put back for another.

    Raises:
        ValueError: The budget cannot be met.
    """

    def cost(taken: Ints) -> int:
        return budget.cost_of({**besides, **chosen(taken).kept})

    number = bisect_left(range(len(order) + 1), True, key=lambda n: cost(order[:n]) <= budget.limit)
    if number > len(order):
        floors = first_of(chosen(order).at_floor)
        raise ValueError(
            f"{_asked(budget)} cannot be met: with all that may go, {budget.told(cost(order))} are "
            + (f"left; at their floor: {floors}; lower prune.min_share, " if floors else "left; ")
            + "let more go (prune.coupled=together, prune.keep), or allow more"
        )
    taken, nearest = order[:number], cost(order[:number])
    for other in _nearby(units, order, number) if number else ():
        if nearest >= (1 - WITHIN) * budget.limit:
            break
        changed = other(taken)
        if nearest < (other_cost := cost(changed)) <= budget.limit:
            taken, nearest = changed, other_cost
    if number and nearest < (1 - WITHIN) * budget.limit:
        raise NearestError(
            f"{_asked(budget)} cannot be met within 1 % by whole channels, or the steps that "
            f"prune.round_to leaves: the nearest below that was found is {budget.told(nearest)}; "
            "ask for that"
        )
    return chosen(taken)


def _nearby(units: Units, order: Ints, number: int) -> Iterator[Callable[[Ints], Ints]]:
    """Yield changes to the first units that were taken: one is put back, or exchanged.

    Of a group, the last one that was taken is put back, and the next one taken.
    """

    def without(unit: int, taken: Ints) -> Ints:
        later = (units.group == units.group[unit]) & (np.arange(len(units.group)) >= unit)
        kept: Ints = taken[~later[taken]]
        return kept

    def instead(back: int, goes: int, taken: Ints) -> Ints:
        left = without(back, taken)
        own = np.flatnonzero(units.group == units.group[goes])
        return np.append(left, np.setdiff1d(own[own <= goes], left))

    for unit in order[:number][::-1].tolist():
        yield partial(without, unit)
    backs = order[:number][::-1][:NEAR].tolist()
    for back, goes in product(backs, order[number:][:NEAR].tolist()):
        if units.group[back] != units.group[goes]:
            yield partial(instead, back, goes)


def _asked(goal: float | Budget | Target) -> str:
    if isinstance(goal, Budget):
        return f"prune.target_{goal.cost}, {goal.told(goal.limit)},"
    if isinstance(goal, Target):
        return f"{goal}"
    return f"prune.ratio={goal}"


def by_rank(scores: Mapping[str, Tensor], blocks: Mapping[str, int]) -> dict[str, Tensor]:
    """Replace scores by each channel's place among those of its group, as a share in [0, 1).

    With these every group loses the same share of its channels, its lowest-scoring ones.

    Args:
        scores: Group name -> (C,) scores.
        blocks: Group name -> number of blocks, each of which is ranked for itself.
    """
    ranks = {}
    for name, score in scores.items():
        parts = score.double().reshape(blocks.get(name, 1), -1)
        places = parts.argsort(stable=True, dim=1).argsort(dim=1)
        ranks[name] = (places / parts.shape[1]).reshape(-1)
    return ranks


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
        score = as_floats(tensor)
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
        parts = as_floats(scores[name]).reshape(blocks.get(name, 1), -1)
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


def first_of(names: Sequence[str]) -> str:
    """List the first three of some names, and how many more there are."""
    others = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + others
