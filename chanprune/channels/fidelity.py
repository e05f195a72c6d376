"""Fidelity levels: one network that runs with the first share of every layer's channels.

The channels of a trained multi-fidelity network are in order of their worth (Chang et al. 2018). At
level p every convolution computes with the first floor(p N) of its N channels; the smaller filters
are views of the whole ones, so that one set of tensors serves all levels and a level costs about
p^2 of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from chanprune.channels.batchnorm import recalibrate
from chanprune.channels.graph import ChannelGraph, Cut
from chanprune.channels.plan import Plan
from chanprune.channels.shrunk import put, shrunk
from chanprune.channels.slicing import State, gather, narrow, scatter


def fidelity_groups(graph: ChannelGraph) -> list[str]:
    """Name the channel groups that a level narrows: those that a convolution makes."""
    return [
        group.name
        for group in graph.prunable("keep")
        if any(graph.layers[producer].kind == "conv" for producer in group.producers)
    ]


def prefix_plan(graph: ChannelGraph, level: float) -> Plan:
    """Keep the first floor(level * N) channels, at least one, of every group that levels narrow.

    Where a grouped convolution splits a group into blocks, the first channels of each block stay.

    Args:
        graph: The network's channel graph.
        level: Share of the channels, in (0, 1].

    Raises:
        ValueError: The level is out of range.
    """
    if not 0 < level <= 1:
        raise ValueError(f"a fidelity level must be in (0, 1], not {level}")
    kept = {}
    for name in fidelity_groups(graph):
        group = graph.groups[name]
        width = group.size // group.blocks
        first = max(1, math.floor(level * width + 1e-9))
        kept[name] = [b * width + c for b in range(group.blocks) for c in range(first)]
    return Plan(kept)


class _PackedConv2d(nn.Conv2d):
    """A convolution whose filter is a view of a larger one.

    PyTorch copies a filter with gaps at every call before it convolves. Outside training the copy
    is made at the first call and kept until the filter changes.
    """

    _kept: tuple[tuple[int, int], Tensor] | None = None

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        if not torch.is_grad_enabled():
            key = (weight.data_ptr(), weight._version)
            if self._kept is None or self._kept[0] != key:
                is_last = weight.stride(1) == 1
                form = torch.channels_last if is_last else torch.contiguous_format
                self._kept = key, weight.contiguous(memory_format=form)
            weight = self._kept[1]
        output: Tensor = super()._conv_forward(input, weight, bias)
        return output


def _pack(module: nn.Module, wanted: bool) -> None:
    """Let a convolution keep its packed filter, or forget it."""
    if type(module) is nn.Conv2d and wanted:
        module.__class__ = _PackedConv2d
    elif type(module) is _PackedConv2d:
        module._kept = None
        if not wanted:
            del module._kept
            module.__class__ = nn.Conv2d  # type: ignore[assignment]


class Fidelity:
    """The switch of a network between levels.

    Levels share all tensors. A level may have batch-norm statistics of its own (see `estimate`);
    one that has none takes those of the next higher level that has.

    Args:
        model: The network, whole; `set` changes it in place.
        graph: Its channel graph.
        statistics: Level -> tensor name -> running statistics, as wide as the whole network's.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        statistics: Mapping[float, State] | None = None,
    ):
        self.model = model
        self.graph = graph
        self.statistics = dict(statistics or {})
        self.level = 1.0
        self._whole: dict[str, Tensor] = {}

    def set(self, level: float) -> None:
        """Compute with the first share of the channels from now on.

        The tensors are views of the whole network's, which stays as it is, and returns, the same
        parameters, at level 1. Move or train the network there.

        Raises:
            ValueError: The level is not in (0, 1].
        """
        cut = self._cut(level)
        if level == self.level:
            return
        cut.refuse_other_calls()
        if self.level == 1.0:
            self._whole = {
                **dict(self.model.named_parameters()),
                **dict(self.model.named_buffers()),
            }
        state = self._whole
        if level < 1:
            tensors = {**state, **self._statistics_of(level)}
            detached = {name: tensor.detach() for name, tensor in tensors.items()}
            state = narrow(detached, cut)
        for name, layer in cut.after.layers.items():
            module = self.model.get_submodule(name)
            put(module, layer, state)
            _pack(module, level < 1)
        self.level = level

    def extract(self, level: float) -> nn.Module:
        """Return the stand-alone smaller network; it shares nothing with this one."""
        before = self.level
        self.set(1.0)
        cut = self._cut(level)
        small = shrunk(self.model, cut)
        small.load_state_dict(gather(self._statistics_of(level), cut), strict=False)
        self.set(before)
        return small

    def estimate(
        self, level: float, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device | str
    ) -> None:
        """Estimate batch-norm statistics of a level's own.

        Args:
            level: In (0, 1).
            batches: See `recalibrate`.
            device: Where the model lives.
        """
        before = self.level
        self.set(1.0)
        small = self.extract(level)
        recalibrate(small, batches, device)
        own = {name: tensor for name, tensor in small.named_buffers() if "running_" in name}
        whole = dict(self.model.named_buffers())
        self.statistics[level] = scatter(own, whole, self._cut(level))
        self.set(before)

    def _cut(self, level: float) -> Cut:
        return self.graph.cut(prefix_plan(self.graph, level))

    def _statistics_of(self, level: float) -> State:
        higher = [known for known in self.statistics if level <= known]
        return self.statistics[min(higher)] if higher and level < 1 else {}
