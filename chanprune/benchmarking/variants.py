"""What is timed: a network, what runs it, and how its tensors lie in memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from chanprune.benchmarking.twins import Twins
from chanprune.channels import copied
from chanprune.files.tensors import write_tensors
from chanprune.formats import onnx
from chanprune.processes.errors import UserError
from chanprune.runtimes import Call, Runtime, prepared

Network = Literal["dense", "masked", "compact"]


@dataclass(frozen=True)
class Variant:
    """One way to the network's outputs.

    Attributes:
        network: Which of the three.
        runtime: What runs it.
        layout: How convolutions' images and weights lie in memory, as PyTorch runs them.
    """

    network: Network
    runtime: Runtime = "eager"
    layout: torch.memory_format = torch.channels_last


VARIANTS = {
    "dense": Variant("dense"),
    "masked": Variant("masked"),
    "compact": Variant("compact"),
    "contiguous": Variant("compact", layout=torch.contiguous_format),
    "compiled": Variant("compact", "compiled"),
    "onnx": Variant("compact", "ort"),
    "dense_compiled": Variant("dense", "compiled"),
    "dense_onnx": Variant("dense", "ort"),
}


class Stand:
    """The networks of a benchmark on their device, ready to be called in every way.

    Args:
        twins: The networks.
        device: Where PyTorch computes; ONNX Runtime does on the CPU.
        folder: For files that nobody wants afterwards.
    """

    def __init__(self, twins: Twins, device: torch.device, folder: Path):
        self.twins, self.device, self.folder = twins, device, folder
        self._placed: dict[tuple[Network, torch.memory_format], nn.Module] = {}

    def network(self, variant: Variant) -> nn.Module:
        """Return a variant's network as it lies in memory there.

        Raises:
            UserError: There is no masked one.
        """
        key = (variant.network, variant.layout)
        if key not in self._placed:
            model: nn.Module | None = getattr(self.twins, variant.network)
            if model is None:
                raise UserError(
                    "against=masked: the whole network cannot be given zeros so that it computes "
                    "what the compact one does; leave it out"
                )
            placed = copied(model).to(self.device)
            self._placed[key] = placed.to(memory_format=variant.layout)
        return self._placed[key]

    def images(self, batch: int) -> Tensor:
        """Return random images (N, C, H, W)."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, *self.twins.input_shape, generator=generator).to(self.device)

    def call(self, name: str, images: Tensor, threads: int) -> Call:
        """Return what runs a variant once, and has run it.

        Args:
            name: Of `VARIANTS`.
            images: (N, C, H, W).
            threads: Of ONNX Runtime; PyTorch's are the process's.

        Raises:
            UserError: What runs it is not installed, or does not take the network.
        """
        variant = VARIANTS[name]
        network = self.network(variant)
        if variant.runtime == "ort":
            return partial(onnx.opened(self.file(variant), threads), images)
        if variant.layout is torch.contiguous_format:
            return partial(network, images)
        try:
            return prepared(variant.runtime, network, images, threads)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next(iter(f"{error}".strip().splitlines()), "")
            raise UserError(f"against={name}: PyTorch cannot compile it: {reason}") from error

    def file(self, variant: Variant) -> Path:
        """Write a variant's network as it is shipped, once; raises UserError as `call` does."""
        network, suffix = self.network(variant), "onnx" if variant.runtime == "ort" else "tensors"
        path = self.folder / f"{variant.network}.{suffix}"
        if not path.exists() and variant.runtime == "ort":
            onnx.write(copied(network).cpu(), self.twins.input_shape, path, {})
        elif not path.exists():
            write_tensors(path, network.state_dict())
        return path
