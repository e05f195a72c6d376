"""Files of TorchScript (.pt), traced: run by PyTorch without any code, and by libtorch from C++.

PyTorch has deprecated it in favour of torch.export, and still writes and runs it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from chanprune.channels.refusals import first_line
from chanprune.files.writing import replace
from chanprune.formats.exporting import example, exporting, running, silently
from chanprune.processes.errors import UserError

SUFFIX = ".pt"


def write(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    path: Path,
    metadata: Mapping[str, str],
    opset: int | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a network, for any number of images.

    Args:
        model: In eval mode; takes images (N, C, H, W), and returns one tensor.
        input_shape: (C, H, W).
        path: The file, which is there whole or not at all.
        metadata: Texts that it holds, by name; `described` returns them.
        opset: Of no meaning here.
        dtype: Of the images; None: that of the network's parameters.

    Raises:
        UserError: The network cannot be written.
        RunError: The file cannot be written.
    """
    with exporting("TorchScript"):
        images = example(model, input_shape, dtype)
        traced = torch.jit.freeze(torch.jit.trace(model, images, check_trace=False))
        file = io.BytesIO()
        torch.jit.save(traced, file, _extra_files=dict(metadata))
    replace(path, lambda part: part.write_bytes(file.getvalue()))


def opened(path: Path) -> Callable[[Tensor], Tensor]:
    """Return what runs a file by PyTorch on the CPU.

    Args:
        path: The file.

    Returns:
        Takes images (N, C, H, W), returns what the network puts out.

    Raises:
        UserError: PyTorch does not take the file.
    """
    try:
        with silently():
            module = torch.jit.load(io.BytesIO(path.read_bytes()), map_location="cpu")
    except Exception as error:
        raise UserError(f"{path}: TorchScript does not take it: {first_line(error)}") from error
    return running(module)


def described(path: Path, names: Mapping[str, str]) -> dict[str, str]:
    """Return the texts that a file holds under `names`, whose values are of no matter."""
    held = dict.fromkeys(names, "")
    with silently():
        torch.jit.load(io.BytesIO(path.read_bytes()), _extra_files=held)
    return {name: text.decode() if isinstance(text, bytes) else text for name, text in held.items()}
