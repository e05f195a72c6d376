"""What the exporters have in common: example images, silence, errors in one line."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor, nn

from chanprune.channels.refusals import first_line
from chanprune.processes.errors import UserError

EXAMPLES = 2  # one image would fix the batch size


def example(
    model: nn.Module,
    shape: tuple[int, int, int],
    dtype: torch.dtype | None,
    number: int = EXAMPLES,
) -> Tensor:
    """Return a batch of images that a network is exported with.

    Args:
        model: The network.
        shape: (C, H, W).
        dtype: Of the images; None: that of the network's parameters.
        number: Of images.
    """
    first = next(model.parameters(), torch.empty(0))
    return torch.zeros(number, *shape, dtype=dtype or first.dtype, device=first.device)


@contextmanager
def exporting(what: str) -> Iterator[None]:
    """Let an exporter work without a word.

    Args:
        what: Names the format in the error.

    Raises:
        UserError: It fails.
    """
    try:
        with silently(), torch.no_grad():
            yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the network cannot be written as {what}: {first_line(error)}") from error


@contextmanager
def silently() -> Iterator[None]:
    """Let nothing be printed, logged or warned about for a while."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def running(module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return what runs a module of PyTorch for inference."""

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(images)

    return run


def needed(name: str, purpose: str) -> ModuleType:
    """Import a package of the extra `export`.

    Raises:
        UserError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"{purpose} needs {name}: pip install 'chanprune[export]'") from error
