"""The time that calls take: side by side, so that a busy machine slows all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[], object]
BLOCK = 0.005  # seconds that are timed at once
FEWEST, MOST = 5, 1000  # rounds


@dataclass(frozen=True)
class Timing:
    """How long one call takes.

    Attributes:
        took: (R,) seconds in each round.
    """

    took: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of all rounds."""
        return statistics.median(self.took)

    @property
    def low(self) -> float:
        """The lower quartile."""
        return statistics.quantiles(self.took, n=4, method="inclusive")[0]

    @property
    def high(self) -> float:
        """The upper quartile."""
        return statistics.quantiles(self.took, n=4, method="inclusive")[2]

    @property
    def rounds(self) -> int:
        """How many there were."""
        return len(self.took)

    def times(self, factor: float) -> Timing:
        """Return the timing in another unit."""
        return Timing(tuple(factor * seconds for seconds in self.took))

    def per(self, other: Timing) -> Timing:
        """Return it in units of another that was timed in the same rounds, round by round.

        Other work that slows some rounds slows both.
        """
        return Timing(tuple(own / unit for own, unit in zip(self.took, other.took, strict=True)))


def interleaved(
    calls: Mapping[str, Call], seconds: float, device: torch.device | None = None
) -> dict[str, Timing]:
    """Time calls in rounds, each of which does all of them once, in turns forwards and backwards.

    Args:
        calls: Name -> what is timed.
        seconds: How long this may take in all; five rounds are done in any case.
        device: Where the calls compute; a GPU is timed by its own events.
    """
    with torch.inference_mode():
        repeats = {name: _warm(call, device) for name, call in calls.items()}
        took: dict[str, list[float]] = {name: [] for name in calls}
        order, began = list(calls), time.perf_counter()
        for done in range(MOST):
            if done >= FEWEST and time.perf_counter() - began >= seconds:
                break
            for name in order:
                calls[name]()  # finds its weights in the cache, as in a program of its own
                took[name].append(timed(calls[name], repeats[name], device))
            order.reverse()
    return {name: Timing(tuple(rounds)) for name, rounds in took.items()}


def _warm(call: Call, device: torch.device | None) -> int:
    """Call until nothing is new any more; return how often a block calls."""
    timed(call, 1, device)
    quickest = min(timed(call, 1, device) for _ in range(3))
    return max(1, math.ceil(BLOCK / max(quickest, 1e-6)))


def timed(call: Call, repeats: int, device: torch.device | None = None) -> float:
    """Return the seconds that a call takes, as the mean of some calls in a row."""
    if device is not None and device.type == "cuda":
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        first.record()
        for _ in range(repeats):
            call()
        last.record()
        torch.cuda.synchronize(device)
        return float(first.elapsed_time(last)) / 1000 / repeats
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats
