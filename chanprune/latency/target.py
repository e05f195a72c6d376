"""A network that is as quick as it was asked to be: chosen, measured, and corrected until it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chanprune.channels import Offer
from chanprune.channels.modes import copied
from chanprune.channels.selection import first_of
from chanprune.latency.choice import (
    Floats,
    Ints,
    at_share,
    between,
    most_worth,
    whole_of,
    widths_of,
)
from chanprune.latency.estimate import Estimate
from chanprune.latency.layers import workload
from chanprune.latency.slowest import slowest
from chanprune.latency.tables import Bench, tables_of
from chanprune.latency.trial import Terms, Trial
from chanprune.runtimes import Timing, threads_of
from chanprune.runtimes.machine import machine

CLOSE = 0.965  # of what was asked, and not more than that
AIM = 0.985
NEAR = (0.9, 1.05)  # of what was asked: measured once more, for longer
CHOICES, HALVINGS = 4, 6  # networks that are chosen, and those between two of them
SHARES = (0.7, 0.4)  # of all widths, of networks that the estimate is fitted to


@dataclass(frozen=True)
class Certificate:
    """What was asked, and what was measured.

    Attributes:
        terms: What was asked.
        machine: What computed.
        whole: Milliseconds of the whole network, before anything else was measured.
        limit: Milliseconds that were allowed.
        predicted: Milliseconds of the network that is left, by its layers' times.
        measured: Its milliseconds, measured in turns with the whole network: the median over all
            rounds of its share of that one's time, times `whole`.
        quartiles: The same of the quartiles.
        tries: Predicted and measured milliseconds of all networks that were tried.
        widths: Channel group -> how many channels it keeps.
    """

    terms: Terms
    machine: Mapping[str, str | int]
    whole: float
    limit: float
    predicted: float
    measured: float
    quartiles: tuple[float, float]
    tries: tuple[tuple[float, float], ...]
    widths: Mapping[str, int]

    def line(self) -> str:
        """Return what to say of it."""
        terms = self.terms
        how = f"{terms.runtime}, batch {terms.batch}, threads {terms.threads}"
        if not self.tries:
            return (
                f"latency ({how}): the whole network takes {self.whole:.3g} ms, within the "
                f"{self.limit:.3g} ms that are asked for; nothing has to go"
            )
        low, high = self.quartiles
        return (
            f"latency ({how}): {self.whole:.3g} -> {self.measured:.3g} ms (quartiles {low:.3g} to "
            f"{high:.3g}), {self.limit:.3g} asked, {self.predicted:.3g} predicted, "
            f"{len(self.tries)} networks measured"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as JSON values."""
        return asdict(self)


def meet(trial: Trial) -> Certificate:
    """Choose the widths whose channels are worth most in the time that is allowed.

    The layers are timed over their widths, the estimate that follows is fitted to networks of even
    shares, and the widths are chosen by it (`most_worth`). That network is measured in turns with
    the whole one; where it takes too long, or much less than it may, the limit of the estimate is
    moved by what it was wrong, and the widths are chosen anew. If that does not do, the way from
    the nearest quick network to the nearest slow one, a group at a time, is halved.

    Raises:
        ValueError: No network is quick enough.
        UserError: What the runtime needs is not installed.
    """
    with threads_of(trial.terms.threads):
        timing = trial.seconds()
        whole = timing.median
        limit = trial.terms.limit(whole)
        about = trial.terms, machine(trial.device), 1000 * whole, 1000 * limit
        if whole <= limit:
            widths = {name: int(offer.widths[-1]) for name, offer in trial.offers.items()}
            took = timing.times(1000)
            return Certificate(*about, took.median, took.median, (took.low, took.high), (), widths)
        offers = list(trial.offers.values())
        narrowest = _refuse_if_slow(trial, offers, whole, limit)
        estimate = _fitted(trial, offers, whole, narrowest.median)
        places = _narrowest(offers)
        ends = widths_of(offers, places)
        first = _Try(places, ends, estimate.seconds(ends), narrowest)
        search = _Search(trial, offers, estimate, whole, limit, [first])
        best = search.run()
    took = best.seconds.times(1000)
    return Certificate(
        *about,
        1000 * best.predicted,
        took.median,
        (took.low, took.high),
        tuple((1000 * one.predicted, 1000 * one.seconds.median) for one in search.tries),
        {name: int(width) for name, width in zip(trial.offers, best.widths, strict=True)},
    )


def refuse_out_of_reach(trial: Trial) -> None:
    """Refuse a time that not even the narrowest network meets; raises as `meet` does."""
    with threads_of(trial.terms.threads):
        whole = trial.seconds().median
        limit = trial.terms.limit(whole)
        if whole > limit:
            _refuse_if_slow(trial, list(trial.offers.values()), whole, limit)


@dataclass(frozen=True, eq=False)
class _Try:
    chosen: Ints
    widths: Floats
    predicted: float
    seconds: Timing


@dataclass(frozen=True, eq=False)
class _Search:
    """Networks that are tried, until one is close to the limit.

    Attributes:
        estimate: What they are chosen by.
        whole: Seconds of the whole network.
        limit: Seconds that are allowed.
        tries: What was measured; the narrowest network is first.
    """

    trial: Trial
    offers: list[Offer]
    estimate: Estimate
    whole: float
    limit: float
    tries: list[_Try]

    def run(self) -> _Try:
        """Return the slowest network within the limit."""
        self._by_estimate()
        if not self._is_close():
            self._between_two()
        return max(self._quick(), key=lambda one: one.seconds.median)

    def _by_estimate(self) -> None:
        aim = AIM * self.limit
        for _ in range(CHOICES):
            chosen = most_worth(self.offers, self.estimate, aim)
            if chosen is None or any(np.array_equal(chosen, one.chosen) for one in self.tries):
                return
            aim *= AIM * self.limit / self._measure(chosen)
            if self._is_close():
                return

    def _between_two(self) -> None:
        slow = [one for one in self.tries if one.seconds.median > self.limit]
        low = max(self._quick(), key=lambda one: one.seconds.median).chosen
        high = whole_of(self.offers)
        if slow:
            high = min(slow, key=lambda one: one.seconds.median).chosen
        for _ in range(HALVINGS):
            path = between(self.offers, self.estimate, low, high)
            if len(path) < 3 or self._is_close():
                return
            middle = path[len(path) // 2]
            low, high = (middle, high) if self._measure(middle) <= self.limit else (low, middle)

    def _measure(self, chosen: Ints) -> float:
        widths = widths_of(self.offers, chosen)
        call = self.trial.call(widths)
        seconds = self.trial.share(call).times(self.whole)
        if NEAR[0] * self.limit <= seconds.median <= NEAR[1] * self.limit:
            seconds = self.trial.share(call, times=3).times(self.whole)
        self.tries.append(_Try(chosen, widths, self.estimate.seconds(widths), seconds))
        return seconds.median

    def _quick(self) -> list[_Try]:
        return [one for one in self.tries if one.seconds.median <= self.limit]

    def _is_close(self) -> bool:
        return CLOSE * self.limit <= self.tries[-1].seconds.median <= self.limit


def _narrowest(offers: list[Offer]) -> Ints:
    return np.zeros(len(offers), dtype=np.int64)


def _fitted(trial: Trial, offers: list[Offer], whole: float, narrowest: float) -> Estimate:
    """Time the layers, and fit the estimate to the whole network, narrower ones, the narrowest."""
    terms = trial.terms
    work = workload(copied(trial.model).eval(), trial.graph, list(trial.offers), trial.images)
    bench = Bench(terms.runtime, terms.threads, trial.device, trial.folder)
    estimate = Estimate(work, tables_of(work.layers, bench))
    ends = widths_of(offers, whole_of(offers)), widths_of(offers, _narrowest(offers))
    timed = list(zip(ends, (whole, narrowest), strict=True))
    for share in SHARES:
        widths = widths_of(offers, at_share(offers, share))
        timed.append((widths, whole * trial.share(trial.call(widths)).median))
    return estimate.fitted(timed)


def _refuse_if_slow(trial: Trial, offers: list[Offer], whole: float, limit: float) -> Timing:
    """Return the time of the narrowest network; raises ValueError if that is too long."""
    narrowest = widths_of(offers, _narrowest(offers))
    took = trial.share(trial.call(narrowest)).times(whole)
    if took.median <= limit:
        return took
    layers = first_of(slowest(trial.narrowed(narrowest), trial.images))
    raise ValueError(
        f"{_asked(trial.terms)} cannot be met: with all that may go, the network takes "
        f"{1000 * took.median:.3g} ms of {1000 * whole:.3g}; slowest: "
        f"{layers}; let more go (prune.min_share, "
        "prune.min_channels, prune.coupled=together, prune.keep), or allow more"
    )


def _asked(terms: Terms) -> str:
    return f"prune.target_latency_ms={terms.asked}"
