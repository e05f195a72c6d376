"""The networks that are compared: what a folder holds, and the whole one that it was cut from."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from chanprune import rewiring
from chanprune.api.saving import load
from chanprune.api.shapes import as_example
from chanprune.channels import Plan, copied, keeping_random_numbers, trace, widened
from chanprune.components import factory_of
from chanprune.models import build
from chanprune.processes.errors import UserError
from chanprune.records.run_dir import recorded_config
from chanprune.records.schemas import read_made, read_model

SAME = 1e-9  # of the largest output, in float64
IMAGES = 2


class Twins:
    """A compact network and the whole one; what is asked for is built, in eval mode on the CPU.

    Args:
        folder: A finished run, or what `chanprune.save` wrote.
        components: The user's own code that has the network, see `chanprune.load`.
        target: The factory of the user's own that makes it, see `chanprune.load`.

    Attributes:
        input_shape: (C, H, W) of an image.

    Raises:
        UserError: There is no such network, it is damaged, its code must be given, or it takes
            something else than images.
    """

    def __init__(self, folder: Path, components: str | None = None, target: str | None = None):
        if recorded_config(folder) is not None and not (folder / "summary.json").exists():
            raise UserError(f"run={folder}: no finished run is there; its command goes on with it")
        if not (folder / "model.json").exists():
            raise UserError(f"run={folder}: no finished run is there, nor a saved network")
        self.compact = load(folder, components, target)
        self._make, self._form, self._plan, self.input_shape = _whole(folder)

    @cached_property
    def dense(self) -> nn.Module:
        """The whole network, with values as if it were to be trained."""
        with keeping_random_numbers():
            torch.manual_seed(0)
            return self._make().eval()

    @cached_property
    def masked(self) -> nn.Module | None:
        """The whole network that computes what the compact one does, as all else is zero.

        None where the two differ by more than rounding.
        """
        whole = self._make().eval()
        rewiring.restore(whole, self._form)
        cut = trace(whole, self.input_shape).cut(self._plan)
        masked = widened(whole, self.compact, cut).eval()
        return masked if _is_same(masked, self.compact, self.input_shape) else None


def _whole(
    folder: Path,
) -> tuple[Callable[[], nn.Module], rewiring.Form, Plan, tuple[int, int, int]]:
    """Return what makes the whole network, what training made of it, the plan, and (C, H, W)."""
    made = read_made(folder)
    if made is None:
        model = read_model(folder)
        own = model.architecture.model_dump()
        return partial(build, **own), model.form, Plan(model.plan), model.input_shape
    example = as_example(made.example)
    if len(example.args) != 1 or example.kwargs or len(example.shape) != 3:
        raise UserError(f"run={folder}: its network takes something else than images (N, C, H, W)")
    channels, height, width = example.shape
    make = partial(factory_of(made.target), **made.options)
    return make, {}, Plan(made.plan), (channels, height, width)


@torch.no_grad()
def _is_same(masked: nn.Module, compact: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Tell whether two networks put out the same, but for rounding."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, *shape, dtype=torch.float64, generator=generator)
    wide, small = (copied(model, dtype=torch.float64)(images) for model in (masked, compact))
    if not isinstance(small, torch.Tensor):
        kind = type(small).__name__
        raise UserError(
            f"this network puts out {kind}; benchmark takes those that put out a tensor"
        )
    return bool((wide - small).abs().max() <= SAME * small.abs().max().clamp(min=1))
