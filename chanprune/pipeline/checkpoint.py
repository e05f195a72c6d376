"""A stage's checkpoint: everything to go on with, in one file, and the one before it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from chanprune.channels import Bank, Plan
from chanprune.files.reading import refuse_irregular
from chanprune.files.tensors import write_tensors
from chanprune.methods import Method
from chanprune.pipeline.cost import Cost
from chanprune.processes import ranks

NEWEST, BEFORE = "state.safetensors", "previous.safetensors"
NUMBERS = ("epoch", "batch", "seconds", "best_score", "best_epoch", "metrics")
FACTS = {*NUMBERS, "cost", "active", "begun_from"}


@dataclass
class Progress:
    """How far a stage has come.

    Attributes:
        epoch: Epochs done.
        batch: Batches of the next epoch done.
        seconds: Wall time of that part of an epoch.
        losses: Loss of each of its steps.
        hits: Share of images classified correctly, of each of its steps.
        best_score: Best validation score so far.
        best_epoch: The epoch (from 1) that reached it.
        best: The network's state after that epoch.
        cost: What the stage has cost so far.
        metrics: Those of each epoch that is done, with its number ("epoch").
    """

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    losses: list[Tensor] = field(default_factory=list)
    hits: list[Tensor] = field(default_factory=list)
    best_score: float = -1.0
    best_epoch: int = 0
    best: dict[str, Tensor] | None = None
    cost: Cost = field(default_factory=Cost)
    metrics: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoints:
    """Saves and restores a stage: network, optimiser, method, random numbers, and progress.

    Attributes:
        begun_from: Names the channels of the network that the stage begins with: a checkpoint of
            other channels is of no use.
    """

    folder: Path
    begun_from: str
    model: nn.Module
    optimiser: torch.optim.Optimizer
    bank: Bank
    method: Method

    def save(self, progress: Progress) -> None:
        """Replace the checkpoint; the one that was newest stays beside it."""
        if not ranks.is_first():
            return
        with self.bank.whole():
            tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
            for name, parameter in self.model.named_parameters():
                for key, value in self.optimiser.state.get(parameter, {}).items():
                    tensors[f"optimiser.{key}.{name}"] = value
        tensors |= {f"method.{name}": value for name, value in self.method.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in (progress.best or {}).items()}
        if progress.losses:
            tensors |= {"losses": torch.stack(progress.losses), "hits": torch.stack(progress.hits)}
        tensors["random.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        facts = {
            **{key: getattr(progress, key) for key in NUMBERS},
            "cost": asdict(progress.cost),
            "active": self.bank.plan.to_json() if self.bank.plan else None,
            "begun_from": self.begun_from,
        }
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        told = json.dumps(facts)
        metadata = {"facts": told, "checksum": f"{_checksum(plain, told)}"}
        write_tensors(self.folder / NEWEST, plain, metadata, keep=self.folder / BEFORE)

    def load(self) -> tuple[Progress, list[str]]:
        """Restore the newest checkpoint that is whole.

        Returns:
            How far the stage has come, and what to say about damaged files.
        """
        warnings = []
        there = [path for path in (self.folder / NEWEST, self.folder / BEFORE) if path.exists()]
        for path in there:
            is_last = path == there[-1]
            instead = "the stage begins anew" if is_last else "the checkpoint before it is taken"
            try:
                tensors, facts = read(path)
            except CheckpointError as error:
                warnings.append(f"{path} is damaged ({error}); {instead}")
                continue
            if facts["begun_from"] != self.begun_from or not self._fits(tensors):
                warnings.append(f"{path} is of a network with other channels; {instead}")
                continue
            return self._restore(tensors, facts), warnings
        return Progress(), warnings

    def _fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Tell whether a checkpoint holds the tensors of this network."""
        own = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        return own == {name: tensor.shape for name, tensor in _part(tensors, "model.").items()}

    def _restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Progress:
        device = next(self.model.parameters()).device
        self.model.load_state_dict(_part(tensors, "model."))
        parameters = dict(self.model.named_parameters())
        for name, value in _part(tensors, "optimiser.").items():
            key, _, of = name.partition(".")
            parameter = parameters[of]
            like = torch.empty_like(parameter).copy_(value) if value.dim() else value.to(device)
            self.optimiser.state[parameter][key] = like
        self.method.load_state_dict(_part(tensors, "method."))
        if facts["active"] is not None:
            plan = Plan.from_json(facts["active"])
            self.bank.activate(self.bank.graph.cut(plan))
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"])
        best = _part(tensors, "best.")
        return Progress(
            **{key: facts[key] for key in NUMBERS},
            losses=list(tensors["losses"].to(device)) if "losses" in tensors else [],
            hits=list(tensors["hits"].to(device)) if "hits" in tensors else [],
            best={name: value.to(device) for name, value in best.items()} or None,
            cost=Cost(**facts["cost"]),
        )


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


class CheckpointError(Exception):
    """A checkpoint cannot be read, or is not what was written."""


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a checkpoint's tensors and facts.

    Raises:
        CheckpointError: It is not whole.
    """
    try:
        refuse_irregular(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts: dict[str, Any] = json.loads(metadata["facts"])
        if not facts.keys() >= FACTS:
            raise ValueError("another version of this program wrote it")
        if metadata["checksum"] != f"{_checksum(tensors, metadata['facts'])}":
            raise ValueError("its checksum is wrong")
        return tensors, facts
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{error}".partition("\n")[0]) from error


def epochs_done(path: Path) -> int:
    """Return how many epochs a checkpoint has done; 0 if it is missing or damaged."""
    try:
        epoch: int = read(path)[1]["epoch"]
    except CheckpointError:
        return 0
    return epoch


def _checksum(tensors: Mapping[str, Tensor], facts: str) -> int:
    """Return a CRC-32 over the facts and all tensors, in the order of their names."""
    value = zlib.crc32(facts.encode())
    for name in sorted(tensors):
        own = np.ascontiguousarray(tensors[name].reshape(-1).view(torch.uint8).numpy())
        value = zlib.crc32(own.data, zlib.crc32(name.encode(), value))
    return value
