"""Selective convolution: channels are re-allocated while training (Jeong and Shin, ICML 2019).

After each epoch of the first half, every convolution behind batch norm and ReLU releases the inputs
that its outputs would not miss: those that make up at most a small share, the threshold, of each
output's expected channel damage. With re-allocation, the released columns then read shifted copies
of the inputs that matter most, which widens the kernel there and costs no further weights; without,
the network shrinks while it trains.

Follows the authors' code where it differs from their slides (order of release, 1x1 convolutions
alone have copies), less its defects: copies of one channel are counted while they are given away,
the columns begin without the momentum of what they were, an output that nothing reads any more
holds back no input, and at least one input stays open.

A channel that is released for good is zero from then on: column, scale, shift and their gradients.
So it may still be executed, where leaving it out would cost time (`executed`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chanprune.channels import ChannelGraph, Cut, Plan, Selection
from chanprune.channels.selection import first_of
from chanprune.components import Count, Share, ShareOrAll, method
from chanprune.methods.base import Method, PruneOptions, Setting, Step
from chanprune.processes.errors import UserError
from chanprune.rewiring import (
    Copying,
    Rewiring,
    Unit,
    allow_copies,
    expected_damage,
    selective_units,
)
from chanprune.rewiring.allocation import copies_for, executed, released
from chanprune.rewiring.charts import fields, rewirings
from chanprune.rewiring.damage import shares
from chanprune.show.charts import Chart

SHIFT_DECAY = 1e-5  # weight decay of shifts, the authors'


@method("selectconv")
class SelectiveConvolution(Method):
    """Release and re-allocate the inputs of convolutions.

    Args:
        realloc: Whether released columns read copies (accuracy), or go (compression).
        threshold: Share of each output's damage that may be released in a call (tau).
        top: A copy's source is one of so many inputs (K).
        max_copies: Copies that one channel may have (N_max); null: any number.
        until: Share of the training after which nothing is rewired.
        shift: Whether copies are made in front of batch norm and activation ("pre", the authors'),
            or behind ("post": they share their source's normalisation, so that what comes of it
            are larger kernels).
        scope: Which convolutions have copies: "pointwise" ones (the authors' code), or "all"; the
            others release only.
    """

    prunes = True
    repeats = True
    score = "largest share of an output's expected damage"

    def __init__(
        self,
        realloc: bool = True,
        threshold: Share = 1e-3,
        top: Count = 3,
        max_copies: Count | None = None,
        until: ShareOrAll = 0.5,
        shift: Literal["pre", "post"] = "pre",
        scope: Literal["pointwise", "all"] = "pointwise",
    ):
        self.realloc = realloc
        self.threshold = threshold
        self.top = top
        self.max_copies = max_copies
        self.until = until
        self.shift = shift
        self.scope = scope
        self.units: list[Unit] = []
        self._open: dict[str, list[int]] = {}
        self._epoch = 0
        self._is_new = False
        self._counts: dict[str, dict[str, int]] = {"released": {}, "reallocated": {}}

    def before_training(
        self, model: nn.Module, graph: ChannelGraph, setting: Setting
    ) -> dict[str, float]:
        """Find the selective convolutions, and let them have copies.

        Raises:
            UserError: There is none, or copies behind the activation cannot become kernels.
        """
        if self.shift == "post" and self.scope == "all" and self.realloc:
            raise UserError(
                "method.shift=post makes larger kernels of 1x1 convolutions; those of others would "
                "differ at the border, so take method.scope=pointwise, or method.shift=pre"
            )
        self.model, self.graph, self.seed = model, graph, setting.seed
        self.units, others = selective_units(model, graph)
        if not self.units:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(others.items())[:3])
            raise UserError(
                f"{type(model).__name__} has no convolution that only reads a batch norm and "
                f"ReLU, whose inputs this method could release ({reasons})"
            )
        for unit in self.units:
            reader = model.get_submodule(self._reader(unit))
            if self._may_copy(unit) and not isinstance(reader, Copying):
                assert isinstance(reader, nn.BatchNorm2d | nn.Conv2d)
                allow_copies(reader)
        sizes = {unit.group: graph.groups[unit.group].size for unit in self.units}
        self._open = {
            u.group: list(range(sizes[u.group])) for u in self.units if not self._may_copy(u)
        }
        self.advice = " ".join(filter(None, (_left_alone(others), self._too_short(sizes, setting))))
        return {
            "selective_convolutions": len(self.units),
            "with_copies": sum(map(self._may_copy, self.units)),
        }

    def weight_decays(self) -> dict[float, list[nn.Parameter]]:
        """Return the shifts, which decay less than weights."""
        shifts = [layer.shift for layer in self._readers()]
        return {SHIFT_DECAY: shifts} if shifts else {}

    def rewirings(self, step: Step) -> list[Rewiring]:
        """Decide once after each epoch of the first part of the training."""
        if step.epoch <= self._epoch:
            return []
        self._epoch = step.epoch
        if step.progress * (step.epoch - 1) / step.epoch >= self.until:
            return []
        return [self._rewire(unit) for unit in self.units]

    def active_channels(self, step: Step) -> Cut | None:
        """Leave out what was released for good, where that is faster."""
        if not self._is_new:
            return None
        self._is_new = False
        return self.graph.cut(executed(self._open, self.graph))

    def after_epoch(self, step: Step) -> dict[str, float]:
        """Report what was released and re-allocated in front of this epoch, and shifts so far."""
        shifts = [layer.moved_by().detach().abs() for layer in self._readers()]
        moved = torch.cat([shift.flatten() for shift in shifts]) if shifts else torch.zeros(0)
        counts: dict[str, float] = {}
        for what, layers in self._counts.items():
            counts[what] = sum(layers.values())
            counts |= {f"{what}.{name}": number for name, number in layers.items()}
        self._counts = {"released": {}, "reallocated": {}}
        return {
            **counts,
            "copies": len(moved) // 2,
            "mean_shift": moved.mean().item() if len(moved) else 0.0,
        }

    def charts(
        self, model: nn.Module, graph: ChannelGraph, metrics: Sequence[Mapping[str, Any]]
    ) -> list[Chart]:
        """Show what was released and re-allocated, and where kernels look."""
        convs = {unit.norm: unit.conv for unit in selective_units(model, graph)[0]}
        return [*rewirings(metrics), *fields(model, convs)]

    def select_channels(
        self, model: nn.Module, graph: ChannelGraph, options: PruneOptions
    ) -> tuple[Selection, dict[str, Tensor]]:
        """Keep what is open, and of what copies are read from, what is read."""
        group_of = {norm: group.name for group in graph.groups.values() for norm in group.norms}
        releasing = [unit for unit in self.units if unit.group in self._open]
        kept = {group_of[unit.norm]: list(self._open[unit.group]) for unit in releasing}
        scores = {
            group_of[unit.norm]: shares(self._damage(model, unit)).amax(1) for unit in releasing
        }
        self.remarks = (self._layer_local(model),)
        for name, left in graph.cut(Plan(kept)).still_read.items():
            scores[name] = torch.zeros(graph.groups[name].size, dtype=torch.float64)
            scores[name][left] = 1.0
            kept[name] = left
        total = sum(len(score) for score in scores.values())
        removed = total - sum(len(own) for own in kept.values())
        return Selection(kept, removed, total, math.nan, []), scores

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is open, and the last epoch that was decided about."""
        return {
            "epoch": torch.tensor(self._epoch),
            **{f"open.{name}": torch.tensor(own) for name, own in self._open.items()},
            **{
                f"{what}.{name}": torch.tensor(number)
                for what, layers in self._counts.items()
                for name, number in layers.items()
            },
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up where `state_dict` left off."""
        for key, value in state.items():
            what, _, name = key.partition(".")
            if what == "open":
                self._open[name] = value.tolist()
            elif what in self._counts:
                self._counts[what][name] = int(value)
        self._epoch = int(state["epoch"])

    def _may_copy(self, unit: Unit) -> bool:
        return self.realloc and (unit.is_pointwise or self.scope == "all")

    def _reader(self, unit: Unit) -> str:
        """Name the layer that has the copies."""
        return unit.norm if self.shift == "pre" else unit.conv

    def _readers(self) -> list[Copying]:
        layers = [
            self.model.get_submodule(self._reader(u)) for u in self.units if self._may_copy(u)
        ]
        return [layer for layer in layers if isinstance(layer, Copying)]

    def _damage(self, model: nn.Module, unit: Unit) -> Tensor:
        conv, norm = model.get_submodule(unit.conv), model.get_submodule(unit.norm)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        index = conv.index if isinstance(conv, Copying) else None
        return expected_damage(conv, norm, unit.map_size, index).cpu()

    def _rewire(self, unit: Unit) -> Rewiring:
        """Decide about one convolution, whose tensors hold all its inputs, or what is open."""
        damage = self._damage(self.model, unit)
        if not self._may_copy(unit):
            return self._release(unit, damage)
        free = released(damage, self.threshold)
        self._counts["released"][unit.conv] = len(free)
        reader = self.model.get_submodule(self._reader(unit))
        assert isinstance(reader, Copying)
        copies = copies_for(
            damage,
            free,
            reader.index.cpu(),
            reader.is_copy.cpu(),
            top=self.top,
            max_copies=self.max_copies,
            generator=self._generator(unit),
        )
        self._counts["reallocated"][unit.conv] = len(copies.slots)
        return Rewiring(unit.conv, self._reader(unit), copies.slots, copies)

    def _release(self, unit: Unit, damage: Tensor) -> Rewiring:
        """Release inputs of one convolution for good."""
        own = self._open[unit.group]
        places = own if len(damage) > len(own) else list(range(len(own)))
        free = released(damage[places], self.threshold)
        self._counts["released"][unit.conv] = len(free)
        if free:
            gone = set(free)
            self._open[unit.group] = [c for i, c in enumerate(own) if i not in gone]
            self._is_new = True
        return Rewiring(unit.conv, unit.norm, [places[i] for i in free])

    def _generator(self, unit: Unit) -> torch.Generator:
        """Return random numbers that depend on seed, epoch and layer alone."""
        text = f"{self.seed} {self._epoch} {unit.conv}"
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        return torch.Generator().manual_seed(number)

    def _layer_local(self, model: nn.Module) -> str:
        """Say how small the convolutions alone would be, all filters kept that fed them."""
        params = macs = 0
        for unit in self.units:
            if unit.group not in self._open:
                continue
            conv = model.get_submodule(unit.conv)
            assert isinstance(conv, nn.Conv2d)
            gone = conv.in_channels - len(self._open[unit.group])
            weights = gone * conv.weight[:, 0].numel()
            positions = math.prod(
                (size - 1) // stride + 1
                for size, stride in zip(unit.map_size, conv.stride, strict=True)
            )
            params += weights + 2 * gone
            macs += weights * positions
        return (
            f"  released inputs alone, the filters that made them kept: {params:,} parameters and "
            f"{macs:,} MACs less"
        )

    def _too_short(self, sizes: dict[str, int], setting: Setting) -> str:
        """Say whether an unused scale can decay under the threshold in the time there is."""
        decayed = setting.norm_decay * setting.lr_travel * min(1.0, 2 * self.until) * 0.8
        share = 1 / max(sizes.values())
        needed = math.log(max(1.0, share / self.threshold)) if self.threshold else math.inf
        if decayed >= needed:
            return ""
        return (
            f"in so short a training an unused scale decays to {math.exp(-decayed):.3g} of itself, "
            f"and method.threshold={self.threshold:g} releases hardly anything; train longer, or "
            f"take a threshold near {share / 2:.1g}"
        )


def _left_alone(others: dict[str, str]) -> str:
    """List the convolutions that are not selective, by reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in others.items():
        by_reason.setdefault(reason, []).append(name)
    listed = [f"{reason}: {first_of(names)}" for reason, names in by_reason.items()]
    return f"left alone: {'; '.join(listed)}." if listed else ""
