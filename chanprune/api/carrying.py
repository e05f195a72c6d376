"""Optimisers and averages follow a network to its compact form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from chanprune.api.origin import origin_of
from chanprune.api.pruning import compact, refuse_folded, unwrapped
from chanprune.channels import ChannelGraph, Cut, Plan, gather


@torch.no_grad()
def carry(
    model: nn.Module, small: nn.Module, graph: ChannelGraph, plan: Plan, *holders: Any
) -> None:
    """Let what was made for a network go on with its compact form, in place.

    Every moment, and every averaged weight, is cut as the tensor that it belongs to.

    Args:
        model: The network, as it was traced.
        small: What `compact` made of it.
        graph: Its channel graph.
        plan: What stays.
        *holders: Optimisers of torch.optim and their like; averages that hold a network of the
            same form in `module` (torch.optim.swa_utils.AveragedModel, timm's ModelEma); mutable
            mappings, tensor name -> tensor. Schedulers hold their optimiser and need nothing.

    Raises:
        ValueError: A state is not shaped as its parameter, or a holder is of another kind.
    """
    model, small = unwrapped(model), unwrapped(small)
    refuse_folded(model, small)
    cut = graph.cut(plan)
    _refuse_another(model, small, cut)
    steps: list[Callable[[], None]] = []
    for holder in holders:
        if isinstance(holder, torch.optim.Optimizer):
            steps.append(partial(_put, holder, *_optimiser_moved(holder, model, small, cut)))
        elif isinstance(averaged := getattr(holder, "module", None), nn.Module):
            moved = compact(averaged, graph, plan, check=False)
            steps.append(partial(setattr, holder, "module", moved))
        elif isinstance(holder, MutableMapping):
            state = _state_moved(holder, model, small, cut)
            steps += [holder.clear, partial(holder.update, state)]
        else:
            raise ValueError(
                f"{type(holder).__name__} cannot be carried; an average that is a network itself "
                "is compacted by itself: chanprune.compact(average, graph, plan)"
            )
    for step in steps:  # nothing is changed where one of them cannot be
        step()


def _refuse_another(model: nn.Module, small: nn.Module, cut: Cut) -> None:
    """Refuse a network that is not what the plan leaves; raises ValueError."""
    left = dict(small.named_parameters())
    whole = {name: p.detach() for name, p in model.named_parameters() if name in left}
    for name, tensor in whole.items():
        for axis, _ in cut.kept.get(name, ()):
            if axis.blocks == 1 and tensor.shape[axis.dim] != len(axis.channels):
                raise ValueError(
                    f"the network is not the one of the other arguments, by its {name}"
                )
    for name, tensor in gather(whole, cut).items():
        if tensor.shape != left[name].shape:
            raise ValueError(
                f"the small network is not what this plan leaves of the other: {name} is "
                f"{tuple(left[name].shape)}, not {tuple(tensor.shape)}"
            )
    origin, before = origin_of(small), origin_of(model)
    if origin is not None and before is None and origin.plan != cut.complete:
        raise ValueError("the small network was made by another plan")


def _put(
    optimiser: torch.optim.Optimizer, groups: list[list[Tensor]], state: dict[Tensor, Any]
) -> None:
    for group, parameters in zip(optimiser.param_groups, groups, strict=True):
        group["params"] = parameters
    optimiser.state.clear()
    optimiser.state.update(state)


def _optimiser_moved(
    optimiser: torch.optim.Optimizer, model: nn.Module, small: nn.Module, cut: Cut
) -> tuple[list[list[Tensor]], dict[Tensor, Any]]:
    """Return the parameters of each group, and the state of each parameter, of `small`."""
    if hasattr(optimiser, "_params"):
        raise ValueError(f"{type(optimiser).__name__} keeps parameters of its own; make it anew")
    name_of = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
    left = dict(small.named_parameters())
    groups: list[list[Tensor]] = []
    state: dict[Tensor, Any] = {}
    owner_of: dict[str, int] = {}
    for number, group in enumerate(optimiser.param_groups):
        groups.append([])
        for parameter in group["params"]:
            name = name_of.get(id(parameter))
            new = parameter if name is None else left.pop(name, None)
            for owner in _owners(name or ""):
                owner_of.setdefault(owner, number)
            if new is None:
                continue
            groups[-1].append(new)
            if parameter in optimiser.state:
                own = optimiser.state[parameter]
                state[new] = own if name is None else dict(_cut_state(name, parameter, own, cut))
    if not owner_of:
        raise ValueError(f"the {type(optimiser).__name__} holds no parameter of the network")
    known = set(name_of.values())
    for name in sorted(left.keys() - known):  # stands for others, such as those of a weight norm
        groups[next(owner_of[owner] for owner in _owners(name) if owner in owner_of)].append(
            left[name]
        )
    return groups, state


def _owners(name: str) -> Iterator[str]:
    """Yield the names of the modules that a parameter lies in, the innermost first."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _cut_state(
    name: str, parameter: Tensor, state: dict[str, Any], cut: Cut
) -> Iterator[tuple[str, Any]]:
    """Yield what an optimiser knows of a parameter, cut to the channels that stay."""
    for key, value in state.items():
        if not isinstance(value, Tensor) or not value.dim():
            yield key, value
        elif value.shape == parameter.shape:
            yield key, _own(gather({name: value}, cut)[name], value)
        else:
            raise ValueError(
                f"the optimiser's {key} of {name} has the shape {tuple(value.shape)}, the "
                f"parameter {tuple(parameter.shape)}: it cannot be cut; begin with a new optimiser"
            )


def _state_moved(
    state: MutableMapping[str, Tensor], model: nn.Module, small: nn.Module, cut: Cut
) -> dict[str, Tensor]:
    """Return tensors by name, cut; those of layers that are gone are left out."""
    known, left = model.state_dict(keep_vars=True), small.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if name not in known or tensor.shape != known[name].shape:
            raise ValueError(
                f"{name} is no tensor of the network; names and shapes must be its own"
            )
    gathered = gather(dict(state), cut)
    return {name: _own(gathered[name], state[name]) for name in state if name in left}


def _own(tensor: Tensor, before: Tensor) -> Tensor:
    return tensor.clone() if tensor is before else tensor.contiguous()
