"""Trace a network, select the channels that stay, and compact it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chanprune import channels
from chanprune.api.origin import note_origin
from chanprune.channels import Budget, ChannelGraph, Plan, Refit
from chanprune.channels.budget import COSTS, Cost
from chanprune.channels.trace import WRAPPERS
from chanprune.criteria import CRITERIA, Criterion, Subject
from chanprune.latency import Terms
from chanprune.methods import PruneOptions
from chanprune.methods import select as select_channels
from chanprune.pipeline.latency import Latency
from chanprune.runtimes import Runtime

GIVE_ONE = "give one of ratio, target_macs, target_params, target_memory and target_latency_ms"
Batches = Iterable[tuple[Tensor, Tensor]]


def trace(model: nn.Module, example: Any) -> ChannelGraph:
    """Find the channel groups of a network: channels that must go together.

    Args:
        model: The network; it is not changed. What DistributedDataParallel, DataParallel or
            torch.compile wrapped is traced, and a warning says so.
        example: What it is called with: (C, H, W) of one image, a tensor (N, ...), a tuple of
            arguments, or a mapping of arguments by name.

    Returns:
        The channel graph: `graph.groups` says of each group which layers make it, and why it stays
        whole (`fixed`) if it does.

    Raises:
        UnsupportedNetwork: The network cannot be followed; the message names the layer.
    """
    inner = unwrapped(model)
    if inner is not model:
        warnings.warn(
            f"the network is wrapped in {type(model).__name__}; what it wraps is pruned, so wrap "
            "the compact network again",
            stacklevel=2,
        )
    return channels.trace(inner, example)


def select(
    model: nn.Module,
    graph: ChannelGraph,
    *,
    ratio: float | None = None,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_memory: float | None = None,
    target_latency_ms: float | str | None = None,
    latency: Mapping[str, Any] = {},
    criterion: str | Criterion = "l1",
    images: Batches | Callable[[int], Batches] | None = None,
    scope: Literal["global", "layer"] = "global",
    coupled: Literal["together", "keep"] = "together",
    keep: Sequence[str] = (),
    shares: Mapping[str, float] = {},
    round_to: int = 1,
    min_channels: int = 1,
    min_share: float = 0.02,
    max_share: float = 1.0,
    seed: int = 0,
) -> Plan:
    """Select the channels that stay. One of ratio and the targets is given.

    Args:
        model: The network.
        graph: What `trace` returned of it.
        ratio: Share of the channels that goes, in [0, 1); met to the channel.
        target_macs: Multiply-accumulates that may be left: up to 1 a share of the network's, above
            an amount. Met from below, within 1 %.
        target_params: The same of parameters.
        target_memory: The same of the bytes of parameters and of what is alive at once, for one
            image.
        target_latency_ms: Milliseconds that a forward pass may take, measured on this machine; or
            a share of what the whole network takes, as "50%". The networks that are tried are
            timed in turns with the whole one, see `chanprune.latency`.
        latency: What that is the time of: "runtime" (eager, compiled, ort), "batch" (1) and
            "threads" (all). "said" takes a line about what was measured.
        criterion: What ranks channels: the name of a criterion (l1, l2, scale, scale_gradient,
            taylor, lamp, median, random), or a `Criterion`.
        images: Batches (images, labels) on the network's device, for a criterion that needs them;
            or a function of how many images are wanted.
        scope: Whether channels of all groups compete, or every group loses the same share.
        coupled: Whether channels behind a residual sum go together, or stay whole.
        keep: Regular expressions for whole names of layers that stay whole.
        shares: Such an expression -> the share of a layer's own channels that goes.
        round_to: Widths are multiples of this.
        min_channels: Every group keeps at least so many.
        min_share: Every group keeps at least this share of its channels.
        max_share: No group loses more than this share.
        seed: Of a random criterion.

    Returns:
        The plan: group -> the channels that stay. It holds no weights.

    Raises:
        ValueError: So many cannot go; the message says what stands in the way.
    """
    inner = unwrapped(model)
    _check("scope", scope, ("global", "layer"))
    _check("coupled", coupled, ("together", "keep"))
    if round_to < 1 or min_channels < 0 or not 0 <= min_share <= 1 or not 0 < max_share <= 1:
        raise ValueError(
            "round_to must be 1 or more, min_channels 0 or more, min_share in [0, 1], max_share "
            "in (0, 1]"
        )
    graph = graph.keeping(keep)
    options = PruneOptions(
        ratio or 0.0,
        scope=scope,
        shares=graph.matching_shares(shares),
        min_channels=min_channels,
        min_share=min_share,
        max_share=max_share,
        round_to=round_to,
        coupled=coupled,
        budget=None
        if target_latency_ms is not None
        else _budget(inner, graph, ratio, (target_macs, target_params, target_memory)),
    )
    if target_latency_ms is not None:
        if any(other is not None for other in (ratio, target_macs, target_params, target_memory)):
            raise ValueError(GIVE_ONE)
        options = replace(options, budget=_latency(inner, graph, target_latency_ms, **latency))
    chosen = _criterion(criterion)
    if chosen.needs == "labels" and images is None:
        raise ValueError(f"criterion={criterion!r} needs images=, batches (images, labels)")
    subject = Subject(inner, graph, _source(images), seed)
    scores = chosen.scores(subject, graph.prunable(coupled))
    return Plan(select_channels(scores, graph, options).kept)


def compact(
    model: nn.Module,
    graph: ChannelGraph,
    plan: Plan,
    *,
    absorb: Literal["none", "bias"] = "none",
    check: bool = True,
) -> nn.Module:
    """Build the smaller network, and prove that it computes what the masked one does.

    Args:
        model: The network that was traced; it is not changed.
        graph: Its channel graph.
        plan: What stays.
        absorb: "bias" adds the constants that dropped channels emit, ReLU of the shift of their
            batch norm, to what follows; that helps where nothing is trained afterwards.
        check: Compare with the network whose layers read zeros in place of dropped channels, on
            random input in float64.

    Returns:
        A network of its own, in the modes of `model`. Its class is the same unless calls had to be
        rewritten.

    Raises:
        ValueError: The plan does not fit the graph.
        CompactionError: They differ by more than 1e-9; it names the layer where they part.
    """
    inner = unwrapped(model)
    _check("absorb", absorb, ("none", "bias"))
    done = channels.compact(inner, graph, plan, absorb=absorb, check=check)
    note_origin(done.model, inner, graph, graph.cut(plan).complete)
    return done.model


def refit(
    model: nn.Module, small: nn.Module, graph: ChannelGraph, plan: Plan, images: Batches
) -> dict[str, Refit]:
    """Solve the weights of a compact network again, so that its layers put out what they did.

    Repair without training, by least squares on some hundred images; see
    `chanprune.channels.refit` (He et al., ICCV 2017).

    Args:
        model: The network that was traced; it is not changed.
        small: What `compact` made of it; its weights, biases and running means are changed.
        graph: The network's channel graph.
        plan: What stays.
        images: Batches (images, labels) on the network's device; labels are not used.

    Returns:
        Layer -> the relative error of its outputs before and after.

    Raises:
        ValueError: There is no image, or the network takes several inputs.
    """
    model, small = unwrapped(model), unwrapped(small)
    refuse_folded(model, small)
    return channels.refit(model, small, graph.cut(plan), images)


def refuse_folded(*networks: nn.Module) -> None:
    """Refuse networks without the batch norms that the other arguments have; raises ValueError."""
    if any(map(channels.is_folded, networks)):
        raise ValueError(
            "the batch norms of this network are folded; take the one that load gives without "
            "fold=True"
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """Return what DistributedDataParallel, DataParallel and torch.compile wrap."""
    while (name := type(model).__name__) in WRAPPERS and name != "AveragedModel":
        model = getattr(model, WRAPPERS[name])
    return model


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(known)}")


def _budget(
    model: nn.Module,
    graph: ChannelGraph,
    ratio: float | None,
    targets: tuple[float | None, float | None, float | None],
) -> Budget | None:
    given: list[tuple[Cost, float]] = [
        (cost, target) for cost, target in zip(COSTS, targets, strict=True) if target is not None
    ]
    if len(given) + (ratio is not None) != 1:
        raise ValueError(GIVE_ONE)
    if given and not (isinstance(given[0][1], int | float) and math.isfinite(given[0][1])):
        raise ValueError(f"target_{given[0][0]}={given[0][1]} is no amount")
    return Budget.of(model, graph, *given[0]) if given else None


def _latency(
    model: nn.Module,
    graph: ChannelGraph,
    asked: float | str,
    *,
    runtime: Runtime = "eager",
    batch: int = 1,
    threads: int | None = None,
    said: Callable[[str], None] = lambda line: None,
) -> Latency:
    if not graph.example.is_one_image:
        raise ValueError("target_latency_ms: the network must take one tensor (N, C, H, W)")
    terms = Terms(asked, runtime, batch, threads or torch.get_num_threads())
    return Latency(model, graph, graph.example.shape, terms, None, None, said)


def _criterion(named: str | Criterion) -> Criterion:
    if isinstance(named, Criterion):
        return named
    known = sorted(set(CRITERIA) - {"own"})
    if named not in known:
        raise ValueError(f"criterion={named!r}: must be one of {', '.join(known)}")
    made: Criterion = CRITERIA[named]()
    return made


def _source(images: Batches | Callable[[int], Batches] | None) -> Callable[[int], Batches] | None:
    if images is None or callable(images):
        return images
    return lambda number: _first(images, number)


def _first(batches: Batches, number: int) -> Batches:
    """Yield batches until there are about so many images."""
    seen = 0
    for images, labels in batches:
        yield images, labels
        seen += len(images)
        if seen >= number:
            return
