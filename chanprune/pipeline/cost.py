"""What training costs: multiply-accumulates executed, seconds, and activations held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

FORWARD_AND_BACKWARD = 3


@dataclass
class Cost:
    """What a stage cost.

    Attributes:
        images: Images that training went through, each as often as it came.
        macs: Multiply-accumulates executed: three times those of the forward passes (the pass, the
            gradient of the inputs, the gradient of the weights).
        activation_bytes: Most that a step kept from its forward for its backward pass, as the first
            step of every epoch showed it.
        seconds: Wall time, with everything that belongs to the stage.
    """

    images: int = 0
    macs: int = 0
    activation_bytes: int = 0
    seconds: float = 0.0

    def add_step(self, images: int, macs_per_image: int) -> None:
        """Take in a step; the multiply-accumulates are those of a forward pass."""
        self.images += images
        self.macs += FORWARD_AND_BACKWARD * images * macs_per_image

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Note what the step in this context keeps for its backward pass."""
        with KeptForBackward(model) as kept:
            yield
        self.activation_bytes = max(self.activation_bytes, kept.num_bytes)


class KeptForBackward:
    """Counts, while it is entered, the bytes that forward passes keep for their backward passes.

    Args:
        model: Its parameters do not count.
    """

    def __init__(self, model: nn.Module):
        self._own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._sizes: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)

    @property
    def num_bytes(self) -> int:
        """What was kept; memory that several tensors share counts once."""
        return sum(self._sizes.values())

    def __enter__(self) -> KeptForBackward:
        """Begin to count."""
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop counting."""
        self._hooks.__exit__(*error)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()


def in_words(costs: Iterable[Cost], whole: Cost) -> str:
    """Sum up the cost of all stages in a sentence, beside that of the whole network.

    Args:
        costs: Of the stages.
        whole: Cost of a step of the whole network.
    """
    every = list(costs)
    macs = sum(cost.macs for cost in every)
    dense = sum(cost.images for cost in every) / whole.images * whole.macs
    share = f" ({100 * macs / dense:.1f} % of the whole network's)" if macs != dense else ""
    seconds = sum(cost.seconds for cost in every)
    held = max(cost.activation_bytes for cost in every) / 2**20
    most = whole.activation_bytes / 2**20
    told = f"Training executed {macs:.3g} MACs{share} in {seconds:.0f} s"
    if not held:
        return f"{told}."
    return (
        f"{told}; a step kept at most {held:.1f} MiB for its backward pass (the whole network's: "
        f"{most:.1f} MiB)."
    )
