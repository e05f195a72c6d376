"""What comes before a run: the data, the network and its graph, refused where they must be."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chanprune import data
from chanprune.channels import (
    ChannelGraph,
    NearestError,
    Plan,
    UnsupportedNetwork,
    compact,
    keeping_random_numbers,
    trace,
)
from chanprune.components import find, make
from chanprune.criteria import Criterion, Subject
from chanprune.methods import Method, PruneOptions, select
from chanprune.models import architecture, build, load_weights
from chanprune.pipeline.latency import WithinReach, terms_of
from chanprune.pipeline.model_file import compact_afresh, original
from chanprune.pipeline.network import Network
from chanprune.pipeline.optimiser import TrainOptions, setting_of
from chanprune.pipeline.pruning import with_budget
from chanprune.pipeline.widths import kept_widths
from chanprune.processes import ranks
from chanprune.processes.errors import UserError
from chanprune.processes.parallel import first_before_others


@dataclass(frozen=True)
class Prepared:
    """What can be refused before a run directory is touched.

    Attributes:
        architecture: Arguments of `models.build` for the network that all plans refer to.
    """

    dataset: data.Dataset
    network: Network
    device: torch.device
    notes: tuple[str, ...]
    prune: PruneOptions
    architecture: Mapping[str, Any]


def prepare(config: Mapping[str, Any]) -> Prepared:
    """Load the data, build the network and trace it.

    Args:
        config: The validated configuration as plain values (see configs/config.yaml).

    Raises:
        UserError: The data is not to be had or damaged, the network cannot take it or be followed.
    """
    device = pick_device(config["device"])
    torch.manual_seed(config["seed"])
    with first_before_others():
        dataset = data.load(seed=config["seed"], **config["dataset"]).on(device)
    info = dataset.info
    options, plan = original(config["model"])
    built_from = architecture(options, info.input_shape, len(info.class_names))
    model = build(**built_from)
    notes = () if plan.kept else load_given_weights(model, config["model"])
    model = model.to(device)
    channels_last(model)
    try:
        graph = trace(model, info.input_shape)
    except UnsupportedNetwork as error:
        raise UserError(str(error)) from error
    if plan.kept:
        model, graph = compact_afresh(model, graph, plan)
        notes = load_given_weights(model, config["model"])
        channels_last(model)
    try:
        graph = graph.keeping(config["prune"]["keep"])
        selecting = PruneOptions.of(config["prune"], graph)
    except ValueError as error:
        raise UserError(f"prune.keep and prune.shares: {error}") from error
    selecting = replace(selecting, widths=_widths_of(config["prune"]["widths"], graph))
    widths = {group.name: group.size for group in graph.prunable(selecting.coupled)}
    network = Network(model, graph, plan, widths)
    prepared = Prepared(dataset, network, device, (*dataset.notes, *notes), selecting, built_from)
    if config["train"]["epochs"] == 0 and not notes:
        said = "no weights are given (model.weights=FILE): the network is as it is initialised"
        prepared = replace(prepared, notes=(*prepared.notes, said))
    _refuse_missing_labels(config, dataset)
    _refuse_unused(config)
    if config["train"]["epochs"] or config["finetune"]["epochs"]:
        _rehearse(config, prepared)
    if config["train"]["epochs"] == 0:
        _try_selection(config, prepared)
    return prepared


def _refuse_missing_labels(config: Mapping[str, Any], dataset: data.Dataset) -> None:
    """Refuse what needs labelled images, or images, where there are none; raises UserError."""
    name = config["dataset"]["name"]
    if not dataset.has_labels:
        for stage in ("train", "finetune"):
            if config[stage]["epochs"]:
                raise UserError(
                    f"dataset={name} has no labelled images to train with; give {stage}.epochs=0, "
                    "as python -m chanprune.prune does"
                )
        if make_criterion(config).needs == "labels":
            raise UserError(
                f"criterion={config['criterion']['name']} needs labelled images, and dataset={name}"
                " has none; criterion=l1 needs none"
            )
    for repair in ("least_squares", "recalibrate"):
        if not dataset.splits and config["prune"][repair]:
            raise UserError(
                f"prune.{repair}={config['prune'][repair]} needs images, and dataset={name} has "
                "none; dataset=images dataset.root=FOLDER takes images without labels"
            )


def _refuse_unused(config: Mapping[str, Any]) -> None:
    """Refuse options of a selection where no channels are selected; raises UserError."""
    method, prune = make_method(config), config["prune"]
    if method.prunes and not method.converts:
        return
    given = [key for key in ("keep", "shares") if prune[key]]
    given += [key for key in ("least_squares", "recalibrate") if prune[key]]
    given += [key for key in prune if key.startswith("target_") and prune[key] is not None]
    if method.converts and not make_criterion(config).is_own:
        raise UserError(
            f"method={config['method']['name']} decides by itself what goes; leave out criterion="
        )
    if given or not config["train"]["epochs"]:
        asked = f"prune.{given[0]} is about" if given else "this is about"
        raise UserError(
            f"{asked} channels that go, and method={config['method']['name']} selects none; give a "
            "criterion, such as criterion=l1"
        )


def make_method(config: Mapping[str, Any]) -> Method:
    """Make the method that the configuration names, as it is before training."""
    options = dict(config["method"])
    component = find("method", options.pop("name"))
    assert component is not None
    method = make(component, **options)
    if not isinstance(method, Method):
        raise UserError(f"{component.path}: {component.defined} is no Method of chanprune.methods")
    if not make_criterion(config).is_own:
        method.prunes = True
    return method


def make_criterion(config: Mapping[str, Any]) -> Criterion:
    """Make the criterion that the configuration names."""
    options = dict(config["criterion"])
    component = find("criterion", options.pop("name"))
    assert component is not None
    criterion = make(component, **options)
    if not isinstance(criterion, Criterion):
        raise UserError(
            f"{component.path}: {component.defined} is no Criterion of chanprune.criteria"
        )
    return criterion


def _rehearse(config: Mapping[str, Any], prepared: Prepared) -> None:
    """Let the method, and the selection of channels, refuse what they would refuse later.

    Raises:
        UserError: Something in the configuration cannot be.
    """
    graph, prune = prepared.network.graph, prepared.prune
    options = TrainOptions(**config["train"])
    if options.batch_size % ranks.count():
        raise UserError(
            f"train.batch_size={options.batch_size} must be a multiple of the number of processes, "
            f"{ranks.count()}"
        )
    batches = data.train_batches(
        prepared.dataset,
        batch_size=options.batch_size,
        seed=config["seed"],
        device=prepared.device,
    )
    method = make_method(config)
    setting = setting_of(options, len(batches), config["seed"], prune)
    _rehearse_step(prepared, batches.batch_size)
    try:
        method.before_training(copy.deepcopy(prepared.network.model), graph, setting)
        if method.prunes and not method.converts:
            _rehearse_selection(config, prepared)
        method.finetune_hooks(graph)
        if method.prunes and not method.converts:
            compact(prepared.network.model, graph, _halves(graph, prune))
    except ValueError as error:
        raise UserError(f"{config['model']['name']}: {error}") from error


def _rehearse_selection(config: Mapping[str, Any], prepared: Prepared) -> None:
    """Refuse a ratio, or a budget, that no scores can meet; raises ValueError."""
    network, prune = prepared.network, prepared.prune
    prune = with_budget(prune, config["prune"], network.model, network.graph)
    if terms := terms_of(config["prune"]):
        shape = prepared.dataset.info.input_shape
        prune = replace(prune, budget=WithinReach(network.model, network.graph, shape, terms))
    groups = network.graph.prunable(prune.coupled)
    with contextlib.suppress(NearestError):
        select({group.name: torch.zeros(group.size) for group in groups}, network.graph, prune)


def _try_selection(config: Mapping[str, Any], prepared: Prepared) -> None:
    """Select channels of the network as it is given; raises UserError where that cannot be."""
    network, criterion = prepared.network, make_criterion(config)
    try:
        is_timed = config["prune"]["target_latency_ms"] is not None
        if is_timed or criterion.is_own or criterion.needs != "nothing":
            _rehearse_selection(config, prepared)
            return
        options = with_budget(prepared.prune, config["prune"], network.model, network.graph)
        subject = Subject(network.model, network.graph, seed=config["seed"])
        scores = criterion.scores(subject, network.graph.prunable(options.coupled))
        select(scores, network.graph, options)
    except ValueError as error:
        raise UserError(str(error)) from error


def _halves(graph: ChannelGraph, prune: PruneOptions) -> Plan:
    """Keep every second channel of all that may go; and empty a group, if groups may be emptied."""
    kept: dict[str, range | list[int]] = {}
    for group in graph.prunable(prune.coupled):
        width = group.size // group.blocks
        kept[group.name] = [
            block * width + channel
            for block in range(group.blocks)
            for channel in range(0, width, 2)
        ]
    names = kept if prune.min_channels == 0 and prune.min_share == 0 else ()
    emptied = next((name for name in names if graph.may_be_emptied(name)), None)
    return Plan(kept if emptied is None else {**kept, emptied: []})


def _rehearse_step(prepared: Prepared, batch_size: int) -> None:
    """Run the network in train mode on a batch, without values, where that may fail.

    It may where single images meet batch norms, and where train mode calls other things.

    Raises:
        UserError: It puts out something else than a number per class, or cannot be trained on such
            a batch.
    """
    if batch_size > 1 and prepared.network.graph.trains_alike:
        return
    info = prepared.dataset.info
    shapes = copy.deepcopy(prepared.network.model).to("meta").train()
    images = torch.empty((batch_size, *info.input_shape), device="meta")
    name = prepared.architecture["name"]
    try:
        with torch.no_grad(), keeping_random_numbers():
            output = shapes(images)
    except ValueError as error:
        raise UserError(
            f"{name} cannot be trained on batches of {batch_size} images of "
            f"{info.input_shape[1]} x {info.input_shape[2]} pixels: {error}; take a larger "
            "train.batch_size or dataset.image_size"
        ) from error
    expected = (batch_size, len(info.class_names))
    if not isinstance(output, Tensor) or output.shape != expected:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"{name} puts out {found} in train mode, not {expected}, a number per image and class; "
            "take a network without auxiliary outputs"
        )


def _widths_of(run_dir: str | None, graph: ChannelGraph) -> dict[str, int] | None:
    """Read how many channels each group kept in another run."""
    if run_dir is None:
        return None
    widths = kept_widths(Path(run_dir))
    for name, width in widths.items():
        if name not in graph.groups or not 1 <= width <= graph.groups[name].size:
            raise UserError(f"prune.widths={run_dir} keeps {width} channels of {name}, not here")
    return widths


def load_given_weights(model: nn.Module, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Put in the weights that the configuration asks for; return what to say about it."""
    weights = options.get("weights")
    if weights is None:
        return ()
    fresh = load_weights(model, options.get("library"), options["name"], weights)
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
    return torch.device(name, ranks.number_on_host()) if name == "cuda" else torch.device(name)


def channels_last(model: nn.Module) -> None:
    """Store the filters channels-last, which convolves faster on CPU and GPU."""
    model.to(memory_format=torch.channels_last)
