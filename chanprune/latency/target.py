"""A network that is as quick as it was asked to be: chosen, measured, and corrected until it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chanprune.channels import Offer, Plan
from chanprune.channels.modes import copied
from chanprune.channels.selection import first_of
from chanprune.channels.shrunk import shrunk
from chanprune.latency.choice import Floats, Ints, between, most_worth
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
        measured: Its milliseconds: the median, measured in turns with the whole network, as a share
            of that one's and in its milliseconds.
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
        whole = trial.seconds()
        limit = trial.terms.limit(whole)
        about = trial.terms, machine(trial.device), 1000 * whole, 1000 * limit
        if whole <= limit:
            widths = {name: int(offer.widths[-1]) for name, offer in trial.offers.items()}
            return Certificate(*about, 1000 * whole, 1000 * whole, (0.0, 0.0), (), widths)
        offers = list(trial.offers.values())
        share = _refuse_if_slow(trial, offers, whole, limit)
        estimate = _fitted(trial, offers, whole, whole * share.median)
        tries = _tried(trial, offers, estimate, share, whole, limit)
    quick = [one for one in tries if one.measured.median * whole <= limit]
    best = max(quick, key=lambda one: one.measured.median)
    scale = 1000 * whole
    return Certificate(
        *about,
        1000 * best.predicted,
        scale * best.measured.median,
        (scale * best.measured.low, scale * best.measured.high),
        tuple((1000 * one.predicted, scale * one.measured.median) for one in tries),
        {name: int(width) for name, width in zip(trial.offers, best.widths, strict=True)},
    )


def refuse_out_of_reach(trial: Trial) -> None:
    """Refuse a time that not even the narrowest network meets; raises as `meet` does."""
    with threads_of(trial.terms.threads):
        whole = trial.seconds()
        limit = trial.terms.limit(whole)
        if whole > limit:
            _refuse_if_slow(trial, list(trial.offers.values()), whole, limit)


@dataclass(frozen=True, eq=False)
class _Try:
    chosen: Ints
    widths: Floats
    predicted: float
    measured: Timing


def _tried(
    trial: Trial,
    offers: list[Offer],
    estimate: Estimate,
    narrowest: Timing,
    whole: float,
    limit: float,
) -> list[_Try]:
    """Choose, measure and correct until a network is close to the limit; the narrowest is first."""

    def measured(chosen: Ints, share: Timing | None = None) -> _Try:
        widths = _widths(offers, chosen)
        took = share or trial.share(widths)
        if not share and NEAR[0] * limit <= took.median * whole <= NEAR[1] * limit:
            took = trial.share(widths, times=3)
        return _Try(chosen, widths, estimate.seconds(widths), took)

    def is_close(one: _Try) -> bool:
        return CLOSE * limit <= one.measured.median * whole <= limit

    tries = [measured(_narrowest(offers), narrowest)]
    aim = AIM * limit
    for _ in range(CHOICES):
        chosen = most_worth(offers, estimate, aim)
        if chosen is None or any(np.array_equal(chosen, one.chosen) for one in tries):
            break
        tries.append(measured(chosen))
        if is_close(tries[-1]):
            return tries
        aim *= AIM * limit / (tries[-1].measured.median * whole)
    quick = [one for one in tries if one.measured.median * whole <= limit]
    slow = [one for one in tries if one.measured.median * whole > limit]
    low = max(quick, key=lambda one: one.measured.median).chosen
    high = min(slow, key=lambda one: one.measured.median).chosen if slow else _whole(offers)
    for _ in range(HALVINGS):
        path = between(offers, estimate, low, high)
        if len(path) < 3:
            break
        tries.append(measured(path[len(path) // 2]))
        if is_close(tries[-1]):
            break
        if tries[-1].measured.median * whole <= limit:
            low = tries[-1].chosen
        else:
            high = tries[-1].chosen
    return tries


def _narrowest(offers: list[Offer]) -> Ints:
    return np.zeros(len(offers), dtype=np.int64)


def _whole(offers: list[Offer]) -> Ints:
    return np.array([len(offer.widths) - 1 for offer in offers], dtype=np.int64)


def _fitted(trial: Trial, offers: list[Offer], whole: float, narrowest: float) -> Estimate:
    """Time the layers, and fit the estimate to the whole network, narrower ones, the narrowest."""
    terms = trial.terms
    work = workload(copied(trial.model).eval(), trial.graph, list(trial.offers), trial.images)
    bench = Bench(terms.runtime, terms.threads, trial.device, trial.folder)
    estimate = Estimate(work, tables_of(work.layers, bench))
    ends = _widths(offers, _whole(offers)), _widths(offers, _narrowest(offers))
    timed = list(zip(ends, (whole, narrowest), strict=True))
    for share in SHARES:
        chosen = [
            max(0, int(np.searchsorted(offer.widths, share * offer.widths[-1], "right")) - 1)
            for offer in offers
        ]
        widths = _widths(offers, np.array(chosen))
        timed.append((widths, whole * trial.share(widths).median))
    return estimate.fitted(timed)


def _refuse_if_slow(trial: Trial, offers: list[Offer], whole: float, limit: float) -> Timing:
    """Return the time of the narrowest network; raises ValueError if that is too long."""
    narrowest = _widths(offers, _narrowest(offers))
    share = trial.share(narrowest)
    took = whole * share.median
    if took <= limit:
        return share
    kept = trial.kept({n: int(w) for n, w in zip(trial.offers, narrowest, strict=True)})
    small = shrunk(copied(trial.model).eval(), trial.graph.cut(Plan(kept))).eval()
    raise ValueError(
        f"{_asked(trial.terms)} cannot be met: with all that may go, the network takes "
        f"{1000 * took:.3g} ms of {1000 * whole:.3g}; most of it in "
        f"{first_of(slowest(small, trial.images))}; let more go (prune.min_share, "
        "prune.min_channels, prune.coupled=together, prune.keep), or allow more"
    )


def _widths(offers: list[Offer], chosen: Ints) -> Floats:
    return np.array([offer.widths[place] for offer, place in zip(offers, chosen, strict=True)])


def _asked(terms: Terms) -> str:
    return f"prune.target_latency_ms={terms.asked}"
