"""What all stages of a run work with: its configuration, data and directory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chanprune import data
from chanprune.channels import count
from chanprune.methods import PruneOptions
from chanprune.pipeline.cost import Cost
from chanprune.pipeline.loop import evaluate
from chanprune.pipeline.network import Network
from chanprune.pipeline.record import Record
from chanprune.processes import ranks
from chanprune.processes.interruption import Interruption
from chanprune.show.report_runs import method_of
from chanprune.show.table import Row

EVAL_BATCH = 500
Watch = Callable[[int, float, int], None]  # epoch of fine-tuning, validation accuracy, MACs


@dataclass(frozen=True)
class Job:
    """One experiment.

    Attributes:
        config: Its configuration (see configs/config.yaml).
        dataset: Its data, on the device.
        architecture: Arguments of `models.build` for the network that all plans refer to.
        select: How channels are selected.
        run_dir: Where everything is written.
        watch: Called after each epoch of fine-tuning.
        cache_dir: Where other runs find what this one measured; None: nowhere.
    """

    config: Mapping[str, Any]
    dataset: data.Dataset
    device: torch.device
    architecture: Mapping[str, Any]
    select: PruneOptions
    run_dir: Path
    record: Record
    interruption: Interruption
    watch: Watch | None
    cache_dir: Path | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.dataset.info.input_shape

    @property
    def title(self) -> str:
        """What the run is called in pictures."""
        network = self.config["model"]["name"]
        return f"{network} on {self.dataset.name}, {method_of(self.config)}"

    def train_batches(self, batch_size: int) -> data.MemoryBatches | data.StreamBatches:
        """Return the batches of the training split, shuffled and augmented anew in every epoch."""
        return data.train_batches(
            self.dataset,
            batch_size=batch_size,
            seed=self.config["seed"],
            device=self.device,
            part=(ranks.number(), ranks.count()),
        )

    def split(self, name: data.SplitName) -> data.MemoryBatches | data.StreamBatches:
        """Return the batches of a split, in order."""
        return data.eval_batches(
            self.dataset,
            name,
            batch_size=EVAL_BATCH,
            device=self.device,
            part=(ranks.number(), ranks.count()),
        )

    def training_images(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of about `number` training images, shuffled and not augmented."""
        size = min(number, EVAL_BATCH)
        seed = self.config["seed"]
        batches = data.sample_batches(self.dataset, batch_size=size, seed=seed, device=self.device)
        return islice(batches.epoch(0), math.ceil(number / batches.batch_size))

    def measured(self, network: Network, stage: str, seconds: float, fidelity: float = 1.0) -> Row:
        """Return a row of the table: the one time that a stage meets the test set."""
        self.interruption.stop_if_any_requested()
        counts = count(network.model, self.input_shape)
        return Row(
            stage,
            self._accuracy(network, "val"),
            self._accuracy(network, "test"),
            network.channels,
            counts.params,
            counts.macs,
            round(seconds, 2),
            fidelity,
        )

    def _accuracy(self, network: Network, split: data.SplitName) -> float | None:
        """Return the share of a split's images that are told right; None where it has no labels."""
        return evaluate(network.model, self.split(split)) if self.dataset.has_labels else None

    def cost_of_a_step(self, network: Network) -> Cost:
        """Measure what a training step of a network costs, on a copy."""
        batches = self.train_batches(self.config["train"]["batch_size"])
        images, _ = next(iter(batches.epoch(0)))
        model = copy.deepcopy(network.model).train()
        cost = Cost()
        is_bf16 = self.config["train"]["precision"] == "bf16"
        with cost.watch(model), torch.autocast(self.device.type, torch.bfloat16, enabled=is_bf16):
            model(images.to(memory_format=torch.channels_last))
        cost.add_step(len(images), count(model, self.input_shape).macs)
        return cost

    def introduce(self, network: Network) -> None:
        """Say what will be done with what."""
        sizes = {key: len(split.labels) for key, split in self.dataset.splits.items()}
        told = ", ".join(f"{size} {key}" for key, size in sizes.items())
        on = f"{self.dataset.name} ({told})" if told else self.dataset.name
        self.record.say(
            f"{self.config['model']['name']} on {on}, "
            f"{sum(network.widths.values())} channels in {len(network.widths)} groups may go, "
            f"on {self.device}"
        )
        if not any(self.config[stage]["epochs"] for stage in ("train", "finetune")):
            return
        decay = {key: self.config["train"][f"weight_decay{key}"] for key in ("", "_norm", "_bias")}
        self.record.say(
            f"weight decay: weights {decay['']:g}, batch-norm scales and shifts "
            f"{decay['_norm']:g}, biases {decay['_bias']:g}"
        )
