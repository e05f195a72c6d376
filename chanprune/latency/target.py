"""A network that is as quick as it was asked to be: chosen, measured, and corrected until it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chanprune.channels import ChannelGraph, Offer, Plan
from chanprune.channels.modes import copied
from chanprune.channels.selection import first_of
from chanprune.channels.shrunk import shrunk
from chanprune.latency.choice import Floats, Ints, most_worth
from chanprune.latency.estimate import Estimate
from chanprune.latency.layers import workload
from chanprune.latency.slowest import slowest
from chanprune.latency.tables import Bench, step_of, tables_of
from chanprune.runtimes import Call, Runtime, Timing, interleaved, prepared, threads_of
from chanprune.runtimes.machine import machine

CLOSE = 0.965  # of what was asked, and not more than that
AIM = 0.985
TRIES = 8
SHARES = (1.0, 0.75, 0.5, 0.25)  # of all widths, of the networks that the estimate is fitted to
SECONDS = 1.0  # for a measurement
Kept = Callable[[Mapping[str, int]], dict[str, list[int]]]


@dataclass(frozen=True)
class Terms:
    """What the time is that of.

    Attributes:
        asked: Milliseconds; or a share of what the whole network takes, as "50%".
        runtime: What runs the network.
        batch: Number of images.
        threads: How many compute.
    """

    asked: float | str
    runtime: Runtime
    batch: int
    threads: int

    def limit(self, whole: float) -> float:
        """Return the seconds that are allowed, where the whole network takes `whole` ones."""
        if isinstance(self.asked, str):
            return float(self.asked.rstrip("%")) / 100 * whole
        return self.asked / 1000


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


@dataclass(frozen=True, eq=False)
class Trial:
    """The whole network, and those that are tried beside it.

    Attributes:
        model: The network, on its device.
        graph: Its channel graph.
        input_shape: (C, H, W).
        terms: What is asked.
        offers: Channel group -> the widths that it can have.
        kept: Widths of all groups -> the channels that stay.
        folder: Where measurements are kept; None: nowhere.
    """

    model: nn.Module
    graph: ChannelGraph
    input_shape: tuple[int, ...]
    terms: Terms
    offers: Mapping[str, Offer]
    kept: Kept
    folder: Path | None = None
    _whole: dict[str, Call] = field(default_factory=dict)

    @cached_property
    def images(self) -> Tensor:
        """A batch (N, C, H, W) of noise on the network's device."""
        return torch.randn((self.terms.batch, *self.input_shape), device=self.device)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.model.parameters()).device

    def call(self, widths: Floats | None) -> Call:
        """Return what runs the network with these widths (G,); None: the whole one."""
        if widths is None and "" in self._whole:
            return self._whole[""]
        whole = copied(self.model).eval()
        names = list(self.offers)
        if widths is None:
            small = whole
        else:
            asked = {name: int(width) for name, width in zip(names, widths, strict=True)}
            small = shrunk(whole, self.graph.cut(Plan(self.kept(asked)))).eval()
        small.to(memory_format=torch.channels_last)
        call = prepared(self.terms.runtime, small, self.images, self.terms.threads)
        if widths is None:
            self._whole[""] = call
        return call

    def share(self, widths: Floats) -> Timing:
        """Time a network in turns with the whole one; in whole networks."""
        calls = {"whole": self.call(None), "small": self.call(widths)}
        timings = interleaved(calls, SECONDS, self.device)
        whole, small = timings["whole"].median, timings["small"]
        return Timing(small.median / whole, small.low / whole, small.high / whole, small.rounds)

    def seconds(self) -> float:
        """Return how long the whole network takes."""
        return interleaved({"whole": self.call(None)}, SECONDS, self.device)["whole"].median


def meet(trial: Trial) -> Certificate:
    """Choose the widths whose channels are worth most in the time that is allowed.

    The layers are timed over their widths, the estimate that follows is fitted to networks of even
    shares, and the widths are chosen by it (`most_worth`). That network is measured in turns with
    the whole one; where it takes too long, or much less than it may, the limit of the estimate is
    moved by what it was wrong, and the widths are chosen anew.

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
        offers = [_in_steps(offer) for offer in trial.offers.values()]
        _refuse_if_slow(trial, offers, whole, limit)
        estimate = _fitted(trial, offers, whole)
        tries = _tried(trial, offers, estimate, whole, limit)
    quick = [one for one in tries if one.measured.median * whole <= limit]
    if not quick:
        nearest = min(1000 * whole * one.measured.median for one in tries)
        raise ValueError(
            f"{_asked(trial.terms)}: none of {len(tries)} networks met {1000 * limit:.3g} ms when "
            f"they were measured, the nearest {nearest:.3g} ms; ask for a little more"
        )
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
    widths: Floats
    predicted: float
    measured: Timing


def _tried(
    trial: Trial, offers: list[Offer], estimate: Estimate, whole: float, limit: float
) -> list[_Try]:
    """Choose, measure and correct until a network is close to the limit."""
    tries: list[_Try] = []
    aim, seen = AIM * limit, set[bytes]()
    while len(tries) < TRIES:
        chosen = most_worth(offers, estimate, aim)
        if chosen is None:
            chosen = np.zeros(len(offers), dtype=np.int64)
        widths = _widths(offers, chosen)
        predicted = estimate.seconds(widths)
        if widths.tobytes() in seen:  # the limit moved by less than a step
            aim *= 0.99 if tries[-1].measured.median * whole > limit else 1.01
            seen.discard(widths.tobytes())
            continue
        seen.add(widths.tobytes())
        tries.append(_Try(widths, predicted, trial.share(widths)))
        took = tries[-1].measured.median * whole
        if CLOSE * limit <= took <= limit:
            break
        aim = AIM * limit * predicted / took
    return tries


def _fitted(trial: Trial, offers: list[Offer], whole: float) -> Estimate:
    """Time the layers, and networks of even shares that the estimate is fitted to."""
    terms = trial.terms
    work = workload(trial.model, trial.graph, list(trial.offers), trial.images)
    bench = Bench(terms.runtime, terms.threads, trial.device, trial.folder)
    estimate = Estimate(work, tables_of(work.layers, bench))
    timed = []
    for share in SHARES:
        chosen = [
            max(0, int(np.searchsorted(offer.widths, share * offer.widths[-1], "right")) - 1)
            for offer in offers
        ]
        widths = _widths(offers, np.array(chosen))
        timed.append((widths, whole * trial.share(widths).median))
    return estimate.fitted(timed)


def _refuse_if_slow(trial: Trial, offers: list[Offer], whole: float, limit: float) -> None:
    narrowest = _widths(offers, np.zeros(len(offers), dtype=np.int64))
    took = whole * trial.share(narrowest).median
    if took <= limit:
        return
    kept = trial.kept({n: int(w) for n, w in zip(trial.offers, narrowest, strict=True)})
    small = shrunk(copied(trial.model).eval(), trial.graph.cut(Plan(kept))).eval()
    raise ValueError(
        f"{_asked(trial.terms)} cannot be met: with all that may go, the network takes "
        f"{1000 * took:.3g} ms of {1000 * whole:.3g}; most of it in "
        f"{first_of(slowest(small, trial.images))}; let more go (prune.min_share, "
        "prune.min_channels, prune.coupled=together, prune.keep), or allow more"
    )


def _in_steps(offer: Offer) -> Offer:
    """Leave the widths in steps that vectors have, the whole one and the narrowest."""
    step = step_of(int(offer.widths[-1]))
    is_taken = offer.widths % step == 0
    is_taken[[0, -1]] = True
    return Offer(offer.widths[is_taken], offer.worth[is_taken])


def _widths(offers: list[Offer], chosen: Ints) -> Floats:
    return np.array([offer.widths[place] for offer, place in zip(offers, chosen, strict=True)])


def _asked(terms: Terms) -> str:
    return f"prune.target_latency_ms={terms.asked}"
