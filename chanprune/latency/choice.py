"""Which widths are worth most within a limit, by Lagrange's multiplier.

The worth of a network is the sum of the scores of the channels that it keeps, so that a group of
some width keeps its best ones and is worth what these are. A price on time turns the limit into a
sum: worth less price times seconds. For a price, one group after the other takes the width that is
best while the others stay as they are, until none changes; as all widths are tried, steps in the
time of a layer are seen. The price is found by bisection: the lowest whose network is quick enough.
What is left of the limit goes to the groups where it buys most.

The time of a layer depends on two groups, so that this is no knapsack whose best solution can be
known; it starts twice, from the whole network and from an even share of it, and the better one is
taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from chanprune.channels import Offer

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SWEEPS, HALVINGS = 12, 24


class Clock(Protocol):
    """Tells how long a network would take."""

    def seconds(self, widths: Floats) -> float:
        """Return the time of the network with these widths (G,) of its groups."""

    def row(self, widths: Floats, group: int, others: Floats) -> Floats:
        """Return the times (W,) with other widths (W,) of one group, up to a common number."""


def most_worth(offers: Sequence[Offer], clock: Clock, limit: float) -> Ints | None:
    """Choose a width of every group.

    Args:
        offers: What each group can be.
        clock: How long that takes.
        limit: Seconds.

    Returns:
        (G,) the places of the widths; None if the narrowest network takes longer.
    """
    narrowest = np.zeros(len(offers), dtype=np.int64)
    if clock.seconds(widths_of(offers, narrowest)) > limit:
        return None
    best, most = narrowest, _worth(offers, narrowest)
    for start in (whole_of(offers), _even(offers, clock, limit)):
        found = _bisect(offers, clock, limit, start)
        found = _filled(offers, clock, limit, narrowest if found is None else found)
        if _worth(offers, found) > most:
            best, most = found, _worth(offers, found)
    return best


def between(offers: Sequence[Offer], clock: Clock, low: Ints, high: Ints) -> list[Ints]:
    """Return the networks on the way from one to another, which differ by a group each.

    The groups change in the order of what they are worth for their time; both ends are among them.
    """
    widths = widths_of(offers, low)
    rates = []
    for group in np.flatnonzero(low != high).tolist():
        offer = offers[group]
        ends = offer.widths[[low[group], high[group]]]
        seconds = max(abs(np.diff(clock.row(widths, group, ends))[0]), 1e-12)
        rates.append((np.diff(offer.worth[[low[group], high[group]]])[0] / seconds, group))
    path = [low]
    for _, group in sorted(rates, reverse=True):
        path.append(path[-1].copy())
        path[-1][group] = high[group]
    return path


def _bisect(offers: Sequence[Offer], clock: Clock, limit: float, start: Ints) -> Ints | None:
    """Find the lowest price whose network is within the limit; None if none is."""
    high = 1.0
    seconds = max(clock.seconds(widths_of(offers, start)), 1e-9)
    scale = max(_worth(offers, start), 1e-30) / seconds
    chosen = _at_price(offers, clock, scale * high, start)
    while clock.seconds(widths_of(offers, chosen)) > limit:
        high *= 4
        if high > 1e9:
            return None
        chosen = _at_price(offers, clock, scale * high, start)
    low, best = 0.0, chosen
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        chosen = _at_price(offers, clock, scale * middle, start)
        if clock.seconds(widths_of(offers, chosen)) <= limit:
            high = middle
            if _worth(offers, chosen) > _worth(offers, best):
                best = chosen
        else:
            low = middle
    return best


def _at_price(offers: Sequence[Offer], clock: Clock, price: float, start: Ints) -> Ints:
    """Let every group in turn take the width that is worth most less what its time costs."""
    chosen = start.copy()
    widths = widths_of(offers, chosen)
    for _ in range(SWEEPS):
        before = chosen.copy()
        for group, offer in enumerate(offers):
            gain = offer.worth - price * clock.row(widths, group, offer.widths)
            chosen[group] = int(gain.argmax())
            widths[group] = offer.widths[chosen[group]]
        if np.array_equal(before, chosen):
            break
    return chosen


def _filled(offers: Sequence[Offer], clock: Clock, limit: float, chosen: Ints) -> Ints:
    """Widen groups, the best use of time first, as long as the limit allows it."""
    chosen, widths = chosen.copy(), widths_of(offers, chosen)
    left = limit - clock.seconds(widths)
    while True:
        best, place, most = -1, -1, 0.0
        for group, offer in enumerate(offers):
            now = chosen[group]
            row = clock.row(widths, group, offer.widths)
            more = np.maximum(row - row[now], 1e-12)
            rate = np.where(more <= left, (offer.worth - offer.worth[now]) / more, 0)
            rate[: now + 1] = 0
            if rate.max() > most:
                best, place, most = group, int(rate.argmax()), float(rate.max())
        if best < 0:
            return chosen
        tried = widths.copy()
        tried[best] = offers[best].widths[place]
        seconds = clock.seconds(tried)
        if seconds > limit:
            return chosen
        chosen[best], widths, left = place, tried, limit - seconds


def at_share(offers: Sequence[Offer], share: float) -> Ints:
    """Return the places (G,) of the widest widths up to a share of the whole ones."""
    below = (np.searchsorted(o.widths, share * o.widths[-1], "right") - 1 for o in offers)
    return np.array([max(0, int(place)) for place in below], dtype=np.int64)


def whole_of(offers: Sequence[Offer]) -> Ints:
    """Return the places (G,) of the whole widths."""
    return np.array([len(offer.widths) - 1 for offer in offers], dtype=np.int64)


def _even(offers: Sequence[Offer], clock: Clock, limit: float) -> Ints:
    """Return the widest network within the limit whose groups keep the same share."""
    chosen = np.zeros(len(offers), dtype=np.int64)
    for share in np.linspace(0.05, 1, 20):
        wider = at_share(offers, share)
        if clock.seconds(widths_of(offers, wider)) > limit:
            break
        chosen = wider
    return chosen


def widths_of(offers: Sequence[Offer], chosen: Ints) -> Floats:
    """Return the widths (G,) at some places."""
    return np.array([offer.widths[place] for offer, place in zip(offers, chosen, strict=True)])


def _worth(offers: Sequence[Offer], chosen: Ints) -> float:
    return float(sum(offer.worth[place] for offer, place in zip(offers, chosen, strict=True)))
