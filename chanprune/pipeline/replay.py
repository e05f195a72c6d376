"""Replays of a training step: recorded once on a GPU as a CUDA graph, then launched as a whole.

A small network's operations take a GPU less time than Python takes to ask for them. A recorded step
asks once. What it reads and writes stays where it is in memory, so that it holds for as long as the
step does the same to the same tensors; images and labels are copied to where it expects them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Update = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

STEPS_BEFORE = 3  # optimisers and libraries allocate what they keep in the first steps


class Replay:
    """Does an update: some times as it is, then by replaying its record.

    Args:
        update: Maps images (N, C, H, W) and labels (N,), both on the GPU, to loss and hits; changes
            tensors in place.
        say: Is told if the update cannot be recorded, as it waits for the GPU or reads the CPU's
            memory; it is then done as it is for good.
    """

    def __init__(self, update: Update, say: Callable[[str], None]):
        self._update = update
        self._say = say
        self._refuses = False
        self.forget()

    def forget(self) -> None:
        """Record anew: the update does something else from now on, or to other tensors."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._seen = 0

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Update; return loss and hits."""
        if self._graph is None and not self._refuses:
            self._seen += 1
            if self._seen > STEPS_BEFORE:
                self._record(images, labels)
        if self._graph is None:
            return self._update(images, labels)
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._loss.clone(), self._hits.clone()

    def _record(self, images: Tensor, labels: Tensor) -> None:
        """Note what an update does, without doing it."""
        self._images, self._labels = images.clone(), labels.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._loss, self._hits = self._update(self._images, self._labels)
        except RuntimeError as error:
            self._refuses = True
            reason = str(error).strip().splitlines()[0]
            self._say(f"  steps are not replayed, which would be faster on a GPU: {reason}")
            return
        self._graph = graph
