"""Layers that read shifted copies, made of plain operations that every runtime has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chanprune.rewiring.copies import Copying, copying_layers
from chanprune.rewiring.shift import hat_kernels, radius_of


class Slots(nn.Module):
    """What the slots of a layer with copies read: channels, and channels that are moved.

    A shift is a depthwise convolution, see `shift`.

    Args:
        layer: The layer; what is made shares nothing with it.
    """

    own: Tensor
    sources: Tensor
    order: Tensor

    def __init__(self, layer: Copying):
        super().__init__()
        own, copies = layer.is_copy.logical_not().nonzero().flatten(), layer.copies
        shift = layer.moved_by().detach()
        radius = radius_of(shift)
        self.register_buffer("own", layer.index[own])
        self.register_buffer("sources", layer.index[copies])
        self.register_buffer("order", torch.cat([own, copies]).argsort())
        self.move = nn.Conv2d(
            *(len(copies), len(copies), 2 * radius + 1),
            padding=radius,
            padding_mode="replicate",
            groups=len(copies),
            bias=False,
        ).to(shift)
        self.move.weight = nn.Parameter(hat_kernels(shift, radius).unsqueeze(1))

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C_stream, H, W) to (N, C, H, W)."""
        moved = self.move(torch.index_select(images, 1, self.sources))
        slots = torch.cat([torch.index_select(images, 1, self.own), moved], 1)
        return torch.index_select(slots, 1, self.order)


@torch.no_grad()
def plain_copies(model: nn.Module) -> nn.Module:
    """Replace all layers that read copies, in place, by plain ones behind `Slots`.

    The network puts out the same. It is returned.
    """
    for name, layer in copying_layers(model).items():
        if not len(layer.copies):
            continue
        slots = Slots(layer)
        layer.forget_copies()
        model.set_submodule(name, nn.Sequential(slots, layer).train(layer.training))
    return model
