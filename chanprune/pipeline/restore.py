"""A compact network from its description and its file of tensors, neither of which is trusted.

It is built on the meta device, where nothing takes memory, and compared with the header of the file
before a tensor is read.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from chanprune import rewiring
from chanprune.channels import (
    ChannelGraph,
    Plan,
    State,
    compact,
    index_widths,
    refuse_odd_indices,
    trace,
)
from chanprune.channels.refusals import first_line
from chanprune.files.reading import refuse_irregular
from chanprune.models import build_skeleton
from chanprune.processes.errors import UserError
from chanprune.records.schemas import Architecture, Model

LEVEL = "level:"
KINDS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
KINDS |= {"I64": torch.int64, "BOOL": torch.bool}
MOST_TOGETHER = 2**22  # channels of all layers together, read and written
Header = dict[str, tuple[torch.dtype | None, tuple[int, ...]]]


def restore(description: Model, path: Path) -> tuple[nn.Module, ChannelGraph, dict[float, State]]:
    """Build a compact network and read its tensors.

    Args:
        description: What model.json says of it.
        path: Its file of tensors.

    Returns:
        The network, its channel graph, and fidelity level -> batch-norm statistics of its own.

    Raises:
        UserError: The file is missing or cannot be read, or network and file do not belong
            together.
    """
    header = read_header(path)
    try:
        model, graph = _built(description, header)
        widths = index_widths(model, description.input_shape)
        tensors = read_tensors(path)
        statistics = _levels(tensors, model)
        model.load_state_dict(tensors, assign=True)
        refuse_odd_indices(model, widths)
    except UserError as error:
        raise UserError(f"the model in {path.parent} is damaged: {error}") from error
    except Exception as error:  # what the files say may go wrong anywhere in a network
        reason = first_line(error)
        raise UserError(f"the model in {path.parent} is damaged: {reason}") from error
    return model, graph, statistics


def read_header(path: Path) -> Header:
    """Return name -> type and shape of the tensors in a file, without reading them.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        refuse_irregular(path)
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: (KINDS.get(own.get_dtype()), tuple(own.get_shape()))
                for name, own in slices.items()
            }
    except FileNotFoundError as error:
        raise UserError(f"{path} cannot be read: it is missing") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {f'{error}'.splitlines()[0]}") from error


def _built(description: Model, header: Header) -> tuple[nn.Module, ChannelGraph]:
    """Build the network on the meta device; raises ValueError if the file holds another."""
    _refuse_unseen_sizes(description.architecture, header)
    whole = build_skeleton(**description.architecture.model_dump())
    refuse_monsters(whole)
    rewiring.restore(whole, description.form)
    graph = trace(whole, description.input_shape)
    small = compact(whole, graph, Plan(description.plan), check=False)
    compare(small.model.state_dict(), header)
    return small.model, small.graph


def refuse_monsters(whole: nn.Module) -> None:
    """Refuse a network on the meta device that is wider than any; raises ValueError."""
    channels = sum(sum(tensor.shape[:2]) for tensor in whole.state_dict().values())
    if channels > MOST_TOGETHER:
        raise ValueError(f"its layers have {channels:,} channels, more than any network")


def _refuse_unseen_sizes(architecture: Architecture, header: Header) -> None:
    """Refuse numbers of classes and of image channels that no tensor has: no plan changes them."""
    shapes = [shape for _, shape in header.values()]
    for what, number, dimension in (
        ("classes", architecture.num_classes, 0),
        ("image channels", architecture.in_channels, 1),
    ):
        if not any(len(shape) > dimension and shape[dimension] == number for shape in shapes):
            raise ValueError(f"model.json has {number} {what}, and no tensor is of that size")


def compare(state: State, header: Header) -> None:
    """Compare a network's tensors with the header of a file; raises ValueError."""
    names = {name for name in header if not name.startswith(LEVEL)}
    odd = sorted(names.symmetric_difference(state))
    if odd:
        where = "is missing" if odd[0] in state else "is not of this network"
        raise ValueError(f"{odd[0]} {where}")
    for name, tensor in state.items():
        if header[name] != (tensor.dtype, tuple(tensor.shape)):
            kind, shape = header[name]
            raise ValueError(
                f"{name} is {kind} {shape} in the file, and {tensor.dtype} {tuple(tensor.shape)} "
                "in the network of model.json"
            )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors, whose header was looked at."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _levels(tensors: dict[str, Tensor], model: nn.Module) -> dict[float, State]:
    """Take the statistics of fidelity levels out of a file's tensors; raises ValueError."""
    buffers = {name: own for name, own in model.named_buffers() if "running_" in name}
    statistics: dict[float, State] = {}
    for name in [name for name in tensors if name.startswith(LEVEL)]:
        told, _, own = name.removeprefix(LEVEL).partition(":")
        tensor, level = tensors.pop(name), float(told)
        if not 0 < level <= 1 or own not in buffers:
            raise ValueError(f"{name} is not of this network")
        if (tensor.shape, tensor.dtype) != (buffers[own].shape, buffers[own].dtype):
            raise ValueError(f"{name} has not the shape of {own}")
        statistics.setdefault(level, {})[own] = tensor
    return statistics
