"""The bank: all tensors of a network, of which training executes and updates a part.

While a plan is active the modules hold small tensors of their own, cut from the bank, and compute
real, smaller convolutions; nothing is masked. What is not active keeps every bit: weights, batch
norm statistics, and the optimiser's momentum, which no weight decay touches meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from chanprune.channels.counting import executed_macs
from chanprune.channels.graph import ChannelGraph, Cut
from chanprune.channels.plan import Plan
from chanprune.channels.shrunk import put
from chanprune.channels.slicing import State, gather, write


class Bank:
    """Runs part of a network's channels, and trains only those.

    Args:
        model: The network, changed in place.
        graph: Its channel graph.
        optimiser: What trains it, with the network's parameters in it.

    Attributes:
        cut: What is active; None: everything, with the network's own tensors in place.
        macs: Multiply-accumulates of a forward pass of what is active, for one image.
        changes: How often other tensors were put in place, or `note_change` was called.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, optimiser: torch.optim.Optimizer):
        self.model = model
        self.graph = graph
        self.optimiser = optimiser
        self.cut: Cut | None = None
        self.changes = 0
        self.macs = executed_macs(dict(model.named_parameters()), graph)
        self._parameters = dict(model.named_parameters())
        self._tensors: State = {**self._parameters, **dict(model.named_buffers())}
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        self._names = [[names[id(p)] for p in g["params"]] for g in optimiser.param_groups]
        self._moments: dict[str, State] = {}
        self._counters: dict[str, State] = {}

    @property
    def plan(self) -> Plan | None:
        """The plan of what is active; None: everything."""
        return self.cut.plan if self.cut else None

    def activate(self, cut: Cut | None) -> None:
        """Execute and train what `cut` leaves from now on, and nothing else.

        Args:
            cut: Leaves no channel group empty; None: everything, with the network's own tensors.
        """
        if cut is None and self.cut is None:
            return
        self.changes += 1
        if self.cut is None:
            self._lay_out()
        self._store()
        after, state = self.graph, self._tensors
        if cut is not None:
            cut.refuse_other_calls()
        if cut is not None:
            after = cut.after
            detached = {name: tensor.detach() for name, tensor in state.items()}
            state = gather(detached, cut)
        for name, layer in after.layers.items():
            put(self.model.get_submodule(name), layer, state)
        self.cut = cut
        self.macs = executed_macs(dict(self.model.named_parameters()), after)
        self._retarget()

    def note_change(self) -> None:
        """Say that the network computes something else from now on, with the tensors in place."""
        self.changes += 1

    def moments(self, parameter: str) -> list[Tensor]:
        """Return what the optimiser remembers of each entry of a parameter, to be changed."""
        state = self.optimiser.state.get(self.model.get_parameter(parameter), {})
        return [value for value in state.values() if value is not None and value.dim()]

    def with_moments(self, parameter: str) -> list[Tensor]:
        """Return a parameter, as it is executed, and its `moments`."""
        return [self.model.get_parameter(parameter), *self.moments(parameter)]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Put the whole network in place for a while: to save it, or to look at it."""
        cut = self.cut
        if cut is not None:
            self.activate(None)
        try:
            yield
        finally:
            if cut is not None:
                self.activate(cut)

    def _lay_out(self) -> None:
        """Store filters and moments row by row, which is faster to cut than channels-last."""
        for parameter in self._parameters.values():
            parameter.data = parameter.data.contiguous()
            for key, value in self.optimiser.state.get(parameter, {}).items():
                self.optimiser.state[parameter][key] = value.contiguous()

    @torch.no_grad()
    def _store(self) -> None:
        """Write what is active back to the bank."""
        active = dict(self.model.named_parameters())
        moments: dict[str, State] = {}
        for name, parameter in active.items():
            for key, value in self.optimiser.state[parameter].items():
                kind = moments if value.dim() else self._counters
                kind.setdefault(key, {})[name] = value
        if self.cut is None:
            self._moments = moments
            return
        own = {**active, **dict(self.model.named_buffers())}
        write({name: own[name] for name in self._tensors}, self._tensors, self.cut)
        for key, small in moments.items():
            stored = self._moments.setdefault(key, {})
            for name in small:
                if name not in stored:
                    stored[name] = torch.zeros_like(self._parameters[name])
            write(small, stored, self.cut)

    def _retarget(self) -> None:
        """Let the optimiser update the tensors that are in place now."""
        active = dict(self.model.named_parameters())
        for group, names in zip(self.optimiser.param_groups, self._names, strict=True):
            group["params"] = [active[name] for name in names]
        self.optimiser.state.clear()
        for key, stored in self._moments.items():
            state = stored if self.cut is None else gather(stored, self.cut)
            for name, value in state.items():
                self.optimiser.state[active[name]][key] = value
        for key, counters in self._counters.items():
            for name, value in counters.items():
                self.optimiser.state[active[name]][key] = value


class Change(Protocol):
    """What a method does to a network between two steps, and to what its optimiser remembers."""

    def apply(self, bank: Bank) -> None:
        """Do it, and call `Bank.note_change`."""
