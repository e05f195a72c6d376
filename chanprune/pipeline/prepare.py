"""What comes before a run: the data, the network and its graph, refused where they must be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chanprune import data
from chanprune.channels import ChannelGraph, Fidelity, Plan, UnsupportedNetwork, trace
from chanprune.errors import UserError
from chanprune.models import architecture, build, load_weights
from chanprune.pipeline.table import Row


@dataclass
class Network:
    """The network as it goes through the stages.

    Attributes:
        plan: What it keeps of the original.
        rows: What was measured of it.
        fidelity: Its levels, as they were measured last.
    """

    model: nn.Module
    graph: ChannelGraph
    plan: Plan = field(default_factory=lambda: Plan({}))
    rows: list[Row] = field(default_factory=list)
    fidelity: Fidelity | None = None


@dataclass(frozen=True)
class Prepared:
    """What can be refused before a run directory is touched."""

    dataset: data.Dataset
    network: Network
    device: torch.device
    notes: tuple[str, ...]
    widths: Mapping[str, int] | None


def prepare(config: Mapping[str, Any]) -> Prepared:
    """Load the data, build the network and trace it.

    Args:
        config: The validated configuration as plain values (see configs/config.yaml).

    Raises:
        UserError: The data is not to be had or damaged, the network cannot take it or be followed.
    """
    device = pick_device(config["device"])
    torch.manual_seed(config["seed"])
    dataset = data.load(seed=config["seed"], **config["dataset"]).on(device)
    info = dataset.info
    model = build(**architecture(config["model"], info.input_shape, len(info.class_names)))
    notes = _load_weights(model, config["model"])
    model = model.to(device)
    channels_last(model)
    try:
        graph = trace(model, info.input_shape)
    except UnsupportedNetwork as error:
        raise UserError(str(error)) from error
    widths = _widths_of(config["prune"]["widths"], graph)
    return Prepared(dataset, Network(model, graph), device, notes, widths)


def _widths_of(run_dir: str | None, graph: ChannelGraph) -> dict[str, int] | None:
    """Read how many channels each group kept in another run."""
    if run_dir is None:
        return None
    try:
        plan = json.loads((Path(run_dir) / "plan.json").read_text(encoding="utf-8"))
        widths = {name: len(kept) for name, kept in plan["kept"].items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"prune.widths={run_dir}: there is no plan.json of a finished run"
        ) from error
    for name, width in widths.items():
        if name not in graph.groups or not 1 <= width <= graph.groups[name].size:
            raise UserError(f"prune.widths={run_dir} keeps {width} channels of {name}, not here")
    return widths


def _load_weights(model: nn.Module, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Put in the weights that the configuration asks for; return what to say about it."""
    weights = options.get("weights")
    if weights is None:
        return ()
    fresh = load_weights(model, options["library"], options["name"], weights)
    note = f"weights: {weights}"
    return (note + (f"; {', '.join(fresh)} start at random" if fresh else ""),)


def pick_device(name: str) -> torch.device:
    """Turn "auto", "cpu" or "cuda" into a device.

    Raises:
        UserError: CUDA is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: PyTorch finds no GPU here; use device=cpu or device=auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def channels_last(model: nn.Module) -> None:
    """Store the filters channels-last, which convolves faster on CPU and GPU."""
    model.to(memory_format=torch.channels_last)
