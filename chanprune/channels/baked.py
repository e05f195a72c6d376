"""Layers that compute their weights while they run, and the plain layers that do the same.

Standardised, weight-normed and spectrally normed convolutions compute the weight that they use from
others. As the weight does not depend on the images, a plain layer with that weight computes the
same; channels are taken from this one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chanprune.channels import operations as ops
from chanprune.channels.modes import copied, evaluating

KINDS = (*ops.CONVOLUTIONS, *ops.TRANSPOSED, nn.Linear, *ops.BATCH_NORMS)
_CALLS: tuple[Any, ...] = (
    *(F.conv1d, F.conv2d, F.conv3d, F.linear),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
)


def computes_its_weights(module: nn.Module) -> bool:
    """Tell of a layer that runs over channels whether it makes its weight of other tensors."""
    own = vars(module)["_parameters"]
    return isinstance(module, KINDS) and ("weight" not in own or "bias" not in own)


def can_be_baked(module: nn.Module, shape: Sequence[int]) -> bool:
    """Tell whether a plain layer computes the same.

    Args:
        module: The layer, on any device; it is not changed.
        shape: Of its input; of the positions a corner is tried.
    """
    if isinstance(module, ops.BATCH_NORMS):
        return True
    generator = torch.Generator().manual_seed(0)
    layer = drawn_anew(module, generator)
    size = [min(length, 16) for length in shape[2:]] if isinstance(layer, ops.CONVOLUTIONS) else []
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    images = torch.randn((2, channels, *size), dtype=torch.float64, generator=generator)
    try:
        with torch.no_grad(), torch.device("cpu"):
            return torch.allclose(layer(images), _plain(layer, images)(images), rtol=1e-9)
    except Exception:  # another library's layer raises what it likes
        return False


@torch.no_grad()
def drawn_anew(module: nn.Module, generator: torch.Generator) -> Any:
    """Copy a layer of any device to the CPU, in float64 and eval mode, with random tensors."""
    is_meta = any(p.device.type == "meta" for p in module.parameters())
    layer = copied(module).to_empty(device="cpu") if is_meta else copied(module).cpu()
    layer = layer.double().eval()
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=generator)
    return layer


def bake(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Return the network with plain layers in place of some; the network itself if there are none.

    The other layers have the network's own tensors.

    Args:
        model: The network; it is not changed.
        names: The layers.

    Raises:
        ValueError: One of them convolves several times, or not at all.
    """
    names = list(names)
    if not names:
        return model
    plain = copied(model, shares=True)
    everywhere = list(plain.named_modules(remove_duplicate=False))
    with torch.no_grad():
        for name in names:
            module = plain.get_submodule(name)
            layer = _plain(module, None)
            for place in [place for place, other in everywhere if other is module]:
                plain.set_submodule(place, layer)
    return plain


def _plain(module: Any, images: Tensor | None) -> Any:
    """Return the plain layer; on images, or on noise, it is seen which weight the layer takes."""
    if isinstance(module, ops.BATCH_NORMS):
        return _plain_norm(module)
    if images is None:
        parameter = next(module.parameters())
        width = module.in_features if isinstance(module, nn.Linear) else module.in_channels
        size = [32 + k * d for k, d in zip(*_extents(module), strict=True)]
        images = torch.zeros((2, width, *size), dtype=parameter.dtype, device=parameter.device)
    with evaluating(module), _Watch() as watch:
        module(images)
    if len(watch.calls) != 1:
        raise ValueError("the layer does not convolve once")
    args, kwargs = watch.calls[0]
    given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
    kind = next(kind for kind in KINDS if isinstance(module, kind))
    plain: Any = copied(module)
    plain.__class__ = kind
    for key in ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks"):
        setattr(plain, key, OrderedDict())
    plain.__dict__.pop("forward", None)
    plain._parameters, plain._buffers, plain._modules = {}, {}, {}
    for key in ("weight", "bias"):
        plain.__dict__.pop(key, None)
        tensor = given.get(key)
        own = None if tensor is None else nn.Parameter(tensor.detach().clone())
        plain.register_parameter(key, own)
    if not isinstance(module, nn.Linear):
        rank = len(module.kernel_size)
        plain.padding_mode = "zeros"
        for key in _GEOMETRY:
            value = given.get(key, 0 if key == "padding" else 1)
            is_one = isinstance(value, int)
            setattr(plain, key, (value,) * rank if is_one and key != "groups" else value)
    return plain


def _extents(module: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return getattr(module, "kernel_size", ()), getattr(module, "dilation", ())


_GEOMETRY = ("stride", "padding", "dilation", "groups")
_ARGUMENTS = ("input", "weight", "bias", *_GEOMETRY)


def _plain_norm(module: Any) -> Any:
    kind = next(kind for kind in ops.BATCH_NORMS if isinstance(module, kind))
    plain: Any = kind(
        module.num_features,
        module.eps,
        module.momentum,
        module.affine,
        module.track_running_stats,
        device="meta",
    )
    for name, parameter in module.named_parameters(recurse=False):
        setattr(plain, name, parameter)
    for name, buffer in module.named_buffers(recurse=False):
        if name in dict(plain.named_buffers()):
            plain.register_buffer(name, buffer)
    plain.training = module.training
    return plain


class _Watch(TorchFunctionMode):
    """Notes the convolutions and matrix products that are called while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(  # noqa: D105
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _CALLS:
            self.calls.append((args, kwargs or {}))
        return func(*args, **(kwargs or {}))
