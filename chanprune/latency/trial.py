"""A network and the narrower ones that are timed beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from chanprune.channels import ChannelGraph, Offer, Plan
from chanprune.channels.modes import copied
from chanprune.channels.shrunk import shrunk
from chanprune.latency.choice import Floats
from chanprune.latency.tables import is_step
from chanprune.runtimes import RUNTIMES, Call, Runtime, Timing, interleaved, prepared
from chanprune.runtimes.machine import cores

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

    def __post_init__(self) -> None:
        """Refuse what is no time, runtime or number; raises ValueError."""
        try:
            amount = float(str(self.asked).removesuffix("%"))
        except ValueError:
            amount = math.nan
        if not 0 < amount < (100 if isinstance(self.asked, str) else math.inf):
            raise ValueError(
                f"target_latency_ms={self.asked!r}: must be milliseconds > 0, as 5, or a share of "
                'the whole network\'s below 100%, as "50%"'
            )
        if self.threads > cores():
            raise ValueError(f"threads={self.threads}: this machine has {cores()} cores")
        if self.runtime not in RUNTIMES or self.batch < 1 or self.threads < 1:
            raise ValueError(
                f"runtime={self.runtime!r} must be one of {', '.join(RUNTIMES)}; "
                f"batch={self.batch} and threads={self.threads} 1 or more"
            )

    def limit(self, whole: float) -> float:
        """Return the seconds that are allowed, where the whole network takes `whole` ones."""
        if isinstance(self.asked, str):
            return float(self.asked.rstrip("%")) / 100 * whole
        return self.asked / 1000


@dataclass(frozen=True, eq=False)
class Trial:
    """The whole network, and those that are tried beside it.

    Attributes:
        model: The network, on its device.
        graph: Its channel graph.
        input_shape: (C, H, W).
        terms: What is asked.
        offers: Channel group -> the widths that it can have, see `in_steps`.
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

    @cached_property
    def images(self) -> Tensor:
        """A batch (N, C, H, W) of noise on the network's device."""
        return torch.randn((self.terms.batch, *self.input_shape), device=self.device)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.model.parameters()).device

    @cached_property
    def whole(self) -> Call:
        """What runs the whole network."""
        return self._prepared(copied(self.model).eval())

    def narrowed(self, widths: Floats) -> nn.Module:
        """Return the network with these widths (G,)."""
        asked = {name: int(width) for name, width in zip(self.offers, widths, strict=True)}
        return shrunk(copied(self.model).eval(), self.graph.cut(Plan(self.kept(asked)))).eval()

    def call(self, widths: Floats) -> Call:
        """Return what runs the network with these widths (G,)."""
        return self._prepared(self.narrowed(widths))

    def _prepared(self, model: nn.Module) -> Call:
        return prepared(self.terms.runtime, model, self.images, self.terms.threads)

    def share(self, call: Call, times: int = 1) -> Timing:
        """Time a network in turns with the whole one, in whole networks.

        Args:
            call: What runs it.
            times: How many times as long as usual.
        """
        calls = {"whole": self.whole, "small": call}
        timings = interleaved(calls, times * SECONDS, self.device)
        return timings["small"].per(timings["whole"])

    def seconds(self) -> Timing:
        """Return how long the whole network takes."""
        return interleaved({"whole": self.whole}, SECONDS, self.device)["whole"]


def in_steps(offers: Mapping[str, Offer], runtime: Runtime) -> dict[str, Offer]:
    """Leave the widths that are worth a measurement: whole ones, and steps that vectors have."""
    left = {}
    for name, offer in offers.items():
        whole = int(offer.widths[-1])
        taken = [is_step(int(width), whole, runtime) for width in offer.widths]
        left[name] = Offer(offer.widths[taken], offer.worth[taken])
    return left
