"""One network in a process of its own, so that a hang or a crash costs one row of the table."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch._dynamo  # noqa: F401 - tracing imports it, which takes a second

from chanprune.channels import (
    Plan,
    UnsupportedNetwork,
    compact,
    count,
    filter_scores,
    select_global,
    trace,
)
from chanprune.channels.graph import ChannelGraph
from chanprune.survey.networks import build_network

OUTCOMES = ("proven", "refused", "fault", "timeout", "memory")
GIB = 2**30
# Forks have what is imported here; nothing is computed here, as threads would not be there.
_forks = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Terms:
    """What every network is put to.

    Attributes:
        ratio: Share of the channels that goes.
        seconds: How long a network may take, in all.
        memory: How much memory it may ask for, in GiB.
        image_size: Height and width of the images; None for the network's own.
    """

    ratio: float
    seconds: float
    memory: float
    image_size: int | None = None


def attempt(name: str, terms: Terms) -> dict[str, Any]:
    """Build a network, trace it, prune it by the L1 norm, and prove what is left.

    Args:
        name: See `networks.full_name`.
        terms: Ratio and limits.

    Returns:
        What was found: `outcome` is one of `OUTCOMES`, `said` the reason if it is not proven, and
        `stage` how far it came.
    """
    row: dict[str, Any] = {"network": name, "ratio": terms.ratio}
    deadline = time.monotonic() + terms.seconds
    receiver, sender = _forks.Pipe(duplex=False)
    process = _forks.Process(target=_work, args=(name, terms, sender), daemon=True)
    process.start()
    sender.close()
    try:
        while "outcome" not in row and receiver.poll(max(0.0, deadline - time.monotonic())):
            row |= receiver.recv()
    except EOFError:
        process.join()
        row |= {"outcome": "fault", "said": _ended(process.exitcode or 0)}
    finally:
        process.kill()
        process.join()
        receiver.close()
    return {"outcome": "timeout", "said": f"not done after {terms.seconds:g} s", **row}


def _ended(code: int) -> str:
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"its process ended: {how}"


def _work(name: str, terms: Terms, sender: Connection) -> None:
    """Tell what is found as it is found: nobody may be there to tell it at the end."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    most = int(terms.memory * GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        for facts in _steps(name, terms):
            sender.send(facts)
        ending = {"outcome": "proven", "said": ""}
    except UnsupportedNetwork as error:
        ending = {"outcome": "refused", "said": " ".join(str(error).split())}
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        is_memory = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        outcome = "memory" if is_memory else "fault"
        ending = {"outcome": outcome, "said": f"{type(error).__name__}: {first}"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    sender.send({**ending, "peak_gib": round(peak, 2)})


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _steps(name: str, terms: Terms) -> Iterator[dict[str, Any]]:
    yield {"stage": "build"}
    network = build_network(name, terms.image_size)
    model, shape = network.model, network.input_shape
    params = sum(parameter.numel() for parameter in model.parameters())
    yield {"family": network.family, "input": shape, "params": params, "stage": "trace"}
    began = time.perf_counter()
    graph = trace(model, shape)
    groups = graph.prunable("together")
    yield {
        "trace_seconds": time.perf_counter() - began,
        "channels": graph.num_channels - shape[0],
        "prunable": sum(group.size for group in groups),
        "stage": "select",
    }
    if not groups:
        raise UnsupportedNetwork(f"no channel may go: {_main_reason(graph)}")
    plan = Plan(select_global(filter_scores(model, graph, groups), terms.ratio).kept)
    yield {"stage": "compact"}
    began = time.perf_counter()
    result = compact(model, graph, plan)
    seconds = time.perf_counter() - began
    yield {"compact_seconds": seconds, "error": result.max_error, "stage": "count"}
    yield {"macs": count(model, shape).macs, "macs_left": count(result.model, shape).macs}
    yield {"stage": "end"}


def _main_reason(graph: ChannelGraph) -> str:
    """Return why most channels stay whole."""
    reasons: Counter[str] = Counter()
    for group in graph.groups.values():
        reasons[group.fixed or "they are none"] += group.size
    return max(reasons, key=reasons.__getitem__, default="there are none")
