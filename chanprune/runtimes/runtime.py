"""Runtimes: PyTorch as it is (eager), compiled, and ONNX Runtime (ort)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import torch
import torch._dynamo
from torch import Tensor, nn

from chanprune.formats import onnx
from chanprune.runtimes.clock import Call

Runtime = Literal["eager", "compiled", "ort"]
COMPILED = 200  # networks of one class in a process
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)


def prepared(runtime: Runtime, model: nn.Module, images: Tensor, threads: int) -> Call:
    """Return what runs a network once on some images, ready to be timed.

    Args:
        runtime: What runs it.
        model: The network, in eval mode; PyTorch gets its filters channels last.
        images: (N, C, H, W), on the network's device.
        threads: Of ONNX Runtime; PyTorch's are the process's, see `threads_of`.

    Raises:
        UserError: What the runtime needs is not installed.
    """
    if runtime == "ort":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            batch, channels, height, width = images.shape
            onnx.write(model, (channels, height, width), path, {}, batch=batch)
            run = onnx.opened(path, threads)
        return lambda: run(images)
    model.to(memory_format=torch.channels_last)
    if images.dim() == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    network = torch.compile(model) if runtime == "compiled" else model
    if runtime == "compiled":
        limits = {"recompile_limit": COMPILED, "fail_on_recompile_limit_hit": True}
        with torch._dynamo.config.patch(limits), torch.inference_mode():
            network(images)  # by itself, PyTorch runs the ninth of a class as it is
    return lambda: network(images)


@contextmanager
def threads_of(number: int) -> Iterator[None]:
    """Let PyTorch compute with so many threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
