"""The time that a trial's network takes, as a share of what the whole network takes beside it.

Other work on the machine slows both, though not exactly alike: what it takes of caches and memory
is felt more by one than by the other. So processes of one host measure one after another, a few
times where the quartiles are far apart; and those that may be best are measured again at the end,
all in turns.
"""

from __future__ import annotations

import getpass
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from chanprune.benchmarking.twins import Twins
from chanprune.benchmarking.variants import Stand
from chanprune.pipeline.prepare import pick_device
from chanprune.runtimes import Call, Runtime, Timing, interleaved, threads_of
from chanprune.runtimes.machine import machine

SECONDS = 2.0  # for the whole network and one other
STEADY, TRIES = 0.1, 4  # quartiles so far apart are steady; so often is waited for that
WAYS: dict[Runtime, tuple[str, str]] = {
    "eager": ("dense", "compact"),
    "compiled": ("dense_compiled", "compiled"),
    "ort": ("dense_onnx", "onnx"),
}


@dataclass(frozen=True)
class Terms:
    """What the time is that of.

    Attributes:
        runtime: What runs the networks.
        batch: Number of images.
        threads: How many compute.
        device: "auto", "cpu" or "cuda"; ONNX Runtime is run on the CPU.
        components: The user's own code that has the network, if any.
        target: The factory of the user's own that makes it, if any.
    """

    runtime: Runtime
    batch: int
    threads: int
    device: str
    components: str | None
    target: str | None

    @classmethod
    def of(cls, config: Mapping[str, Any], threads: int) -> Terms:
        """Return what a configuration says; `threads` where it says none."""
        own = config["prune"]["latency"]
        return cls(
            own["runtime"],
            own["batch"],
            own["threads"] or threads,
            "cpu" if own["runtime"] == "ort" else config["device"],
            config["components"],
            config["model"].get("target"),
        )


def shares(runs: Sequence[Path], terms: Terms) -> list[Timing]:
    """Time the networks of finished runs in turns with the whole one, in whole networks.

    Args:
        runs: Their directories; what was cut from one and the same network.
        terms: How it is run.

    Returns:
        One for each run.

    Raises:
        UserError: What the runtime needs is not installed, or does not take a network.
    """
    device = pick_device(terms.device)
    whole, small = WAYS[terms.runtime]
    with _alone_on_host(), tempfile.TemporaryDirectory() as scratch, threads_of(terms.threads):
        torch.compiler.reset()
        stands = []
        for number, run in enumerate(runs):
            folder = Path(scratch, f"{number}")
            folder.mkdir()
            stands.append(Stand(Twins(run, terms.components, terms.target), device, folder))
        images = stands[0].images(terms.batch)
        calls = {"": stands[0].call(whole, images, terms.threads)}
        for number, stand in enumerate(stands):
            calls[f"{number}"] = stand.call(small, images, terms.threads)
        timed = _steadiest(calls, device)
    unit = timed.pop("")
    return [timing.per(unit) for timing in timed.values()]


def _steadiest(calls: Mapping[str, Call], device: torch.device) -> dict[str, Timing]:
    """Time calls until other work leaves them alone; return the steadiest of some measurements."""
    found: list[tuple[float, dict[str, Timing]]] = []
    while len(found) < TRIES and (not found or found[-1][0] > STEADY):
        timed = interleaved(calls, SECONDS * len(calls) / 2, device)
        found.append((max((t.high - t.low) / t.median for t in timed.values()), timed))
    return min(found, key=lambda one: one[0])[1]


def processor(terms: Terms) -> str:
    """Return the name of what computes here."""
    return str(machine(pick_device(terms.device))["processor"])


@contextmanager
def _alone_on_host() -> Iterator[None]:
    """Let one process of this host measure at a time."""
    with FileLock(Path(tempfile.gettempdir(), f"chanprune-latency-{getpass.getuser()}.lock")):
        yield
