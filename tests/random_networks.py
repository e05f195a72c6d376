"""Random networks out of what people write between their layers, described by short lists of steps.

A step names an operation and the earlier tensors that it reads, counted back from the newest. One
that does not fit its operands reads others, or is left out, so that every list is a network, and a
failing one shrinks to the few steps that matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.networks import conv_norm

SHAPE = (3, 8, 8)
STEM = 8
CLASSES = 5
MOST_VALUES = 4096  # of one image's tensor
Shape = tuple[int, ...]
Make = Callable[..., nn.Module]
DOES_NOT_FIT = (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError, UserWarning)


class Step(NamedTuple):
    """An operation, and what it reads: the tensor `source` before the newest, and another."""

    kind: str
    source: int = 0
    other: int = 0


class Do(nn.Module):
    """A function of the layers and parameters that it is given, and of tensors."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | nn.Parameter):
        super().__init__()
        self.function, self.parts = function, tuple(parts)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*(getattr(self, name) for name in self.parts), *tensors)


def do(function: Callable[..., Tensor]) -> Make:
    return lambda *shapes: Do(function)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


# Layers: each from the shape of what it reads.
LAYERS: dict[str, Make] = {
    "conv": lambda s: conv_norm(s[0], 8),
    "conv to 6": lambda s: conv_norm(s[0], 6),
    "conv to 12, stride 2": lambda s: conv_norm(s[0], 12, stride=2),
    "1x1 with bias": lambda s: nn.Conv2d(s[0], 8, 1),
    "grouped conv": lambda s: conv_norm(s[0], 8, groups=2),
    "grouped conv to 12": lambda s: nn.Conv2d(s[0], 12, 1, groups=4),
    "depthwise": lambda s: conv_norm(s[0], s[0], groups=s[0]),
    "depthwise, doubled": lambda s: nn.Conv2d(s[0], 2 * s[0], 3, padding=1, groups=s[0]),
    "transposed": lambda s: nn.ConvTranspose2d(s[0], 8, 2, 2),
    "transposed, grouped": lambda s: nn.ConvTranspose2d(s[0], 8, 3, padding=1, groups=2),
    "transposed, depthwise": lambda s: nn.ConvTranspose2d(s[0], s[0], 2, 2, groups=s[0]),
    "linear": lambda s: nn.Linear(s[-1], 8),
    "batch norm": lambda s: nn.BatchNorm2d(s[0]),
    "batch norm without scale": lambda s: nn.BatchNorm2d(s[0], affine=False),
    "group norm": lambda s: nn.GroupNorm(2, s[0]),
    "group norm of one group": lambda s: nn.GroupNorm(1, s[0]),
    "group norm by channel": lambda s: nn.GroupNorm(s[0], s[0]),
    "instance norm": lambda s: nn.InstanceNorm2d(s[0], affine=True),
    "instance norm, bare": lambda s: nn.InstanceNorm2d(s[0]),
    "layer norm": lambda s: nn.LayerNorm(s[-1]),
    "layer norm of the map": nn.LayerNorm,
    "RMS norm": lambda s: nn.RMSNorm(s[-1]),
    "local response norm": lambda s: nn.LocalResponseNorm(3),
    "PReLU": lambda s: nn.PReLU(),
    "PReLU by channel": lambda s: nn.PReLU(s[0]),
    "GELU": lambda s: nn.GELU(),
    "SiLU in place": lambda s: nn.SiLU(inplace=True),
    "channel shuffle": lambda s: nn.ChannelShuffle(2),
    "pixel shuffle": lambda s: nn.PixelShuffle(2),
    "pixel unshuffle": lambda s: nn.PixelUnshuffle(2),
    "max pool": lambda s: nn.MaxPool2d(2),
    "max pool, stride 1": lambda s: nn.MaxPool2d(3, 1, 1),
    "average pool": lambda s: nn.AvgPool2d(3, 2, 1),
    "adaptive pool": lambda s: nn.AdaptiveAvgPool2d((2, 3)),
    "upsample": lambda s: nn.Upsample(scale_factor=2),
    "upsample, bilinear": lambda s: nn.Upsample(scale_factor=2, mode="bilinear"),
    "zero padding": lambda s: nn.ZeroPad2d(1),
    "reflection padding": lambda s: nn.ReflectionPad2d(1),
    "flatten, linear, unflatten": lambda s: nn.Sequential(
        nn.Flatten(), nn.Linear(s[0] * s[1] * s[2], 32), nn.Unflatten(1, (8, 2, 2))
    ),
}


def layers_last(s: Shape) -> nn.Module:
    norm, up, down = nn.LayerNorm(s[0]), nn.Linear(s[0], 12), nn.Linear(12, s[0])
    return Do(channels_last_block, norm=norm, up=up, down=down)


def channels_last_block(norm: nn.Module, up: nn.Module, down: nn.Module, x: Tensor) -> Tensor:
    y = down(F.gelu(up(norm(x.permute(0, 2, 3, 1)))))
    return x + y.permute(0, 3, 1, 2)


def excited(squeeze: nn.Module, excite: nn.Module, x: Tensor) -> Tensor:
    b, c = x.shape[:2]
    gate = excite(torch.relu(squeeze(F.adaptive_avg_pool2d(x, 1).view(b, c))))
    return x * torch.sigmoid(gate).view(b, c, 1, 1)


def excited_by_convolutions(squeeze: nn.Module, excite: nn.Module, x: Tensor) -> Tensor:
    return x * F.hardsigmoid(excite(F.silu(squeeze(x.mean((2, 3), keepdim=True)))))


def efficient_channel_attention(conv: nn.Module, x: Tensor) -> Tensor:
    y = conv(F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2))
    return x * y.transpose(-1, -2).unsqueeze(-1).sigmoid()


def spatial_attention(conv: nn.Module, x: Tensor) -> Tensor:
    return x * conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


def self_attention(qkv: nn.Module, x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    q, k, v = qkv(x.flatten(2).transpose(1, 2)).reshape(b, h * w, 3, 2, 4).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v)
    return y.transpose(1, 2).reshape(b, h, w, 8).permute(0, 3, 1, 2)


def half_convolved(conv: nn.Module, x: Tensor) -> Tensor:
    left, right = x.chunk(2, 1)
    return torch.cat([left, conv(right), right], 1)


def split_convolved(conv: nn.Module, x: Tensor) -> Tensor:
    first, last = torch.split(x, [3, x.shape[1] - 3], 1)
    return torch.cat([conv(first), last], 1)


def split_attention(conv: nn.Module, gate: nn.Module, x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    y = conv(x).view(b, 2, 6, h, w)
    shares = gate(y.sum(1).mean((2, 3))).view(b, 2, 6).softmax(1)
    return (y * shares[..., None, None]).sum(1)


def linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs)


# Layers, and bare parameters, with code of their own around them.
BLOCKS: dict[str, Make] = {
    "channels-last block": layers_last,
    "squeeze and excitation": lambda s: Do(excited, a=linear(s[0], 4), b=linear(4, s[0])),
    "squeeze and excitation by convolutions": lambda s: Do(
        excited_by_convolutions, a=nn.Conv2d(s[0], 4, 1), b=nn.Conv2d(4, s[0], 1)
    ),
    "efficient channel attention": lambda s: Do(
        efficient_channel_attention, a=nn.Conv1d(1, 1, 3, padding=1, bias=False)
    ),
    "spatial attention": lambda s: Do(spatial_attention, a=nn.Conv2d(2, 1, 3, padding=1)),
    "self-attention": lambda s: Do(self_attention, a=linear(s[0], 24)),
    "half convolved": lambda s: Do(half_convolved, a=conv_norm(s[0] // 2, s[0] // 2)),
    "three convolved": lambda s: Do(split_convolved, a=conv_norm(3, 6)),
    "split attention": lambda s: Do(split_attention, a=conv_norm(s[0], 12), b=linear(6, 12)),
    "layer scale": lambda s: Do(lambda p, x: x * p, p=parameter(s[0], 1, 1)),
    "layer scale, channels last": lambda s: Do(lambda p, x: x * p, p=parameter(s[-1])),
    "ReZero": lambda s: Do(lambda p, x: p * x, p=parameter(1)),
    "bias": lambda s: Do(lambda p, x: x + p, p=parameter(1, s[0], 1, 1)),
    "positions' bias": lambda s: Do(lambda p, x: x + p, p=parameter(1, *s)),
    "bias expanded": lambda s: Do(
        lambda p, x: x + p.view(1, -1, 1, 1).expand_as(x), p=parameter(s[0])
    ),
    "bias beside": lambda s: Do(
        lambda p, x: torch.cat([x, p.expand(x.size(0), -1, x.size(2), x.size(3))], 1),
        p=parameter(1, 2, 1, 1),
    ),
    "bare linear": lambda s: Do(lambda p, x: F.linear(x, p), p=parameter(6, s[-1])),
    "bare convolution": lambda s: Do(lambda p, x: F.conv2d(x, p), p=parameter(6, s[0], 1, 1)),
    "matrix product": lambda s: Do(
        lambda p, x: (x.permute(0, 2, 3, 1) @ p).permute(0, 3, 1, 2), p=parameter(s[0], 6)
    ),
}


def shuffled(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


def shuffled_by_numbers(x: Tensor) -> Tensor:
    return x.reshape(-1, 4, 2, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)


def zero_filled(x: Tensor) -> Tensor:
    x[:, :2] = 0
    return x


# Functions of one tensor.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu in place": lambda x: x.relu_(),
    "sigmoid": torch.sigmoid,
    "exp": lambda x: torch.exp(-x.abs()),
    "softmax": lambda x: x.softmax(1),
    "softmax over positions": lambda x: x.flatten(2).softmax(-1).view_as(x),
    "clamp": lambda x: x.clamp(0.1, 2),
    "plus one": lambda x: x + 1,
    "one minus": lambda x: 1 - x,
    "divided by its channels": lambda x: x / x.shape[1],
    "chunk, swapped": lambda x: torch.cat(x.chunk(2, dim=1)[::-1], dim=1),
    "chunk, summed": lambda x: x.chunk(2, 1)[0] + x.chunk(2, 1)[1],
    "chunk, gated": lambda x: x.chunk(2, 1)[0] * torch.sigmoid(x.chunk(2, 1)[1]),
    "chunk of three": lambda x: torch.cat([x.chunk(3, 1)[i] for i in (1, 0)], 1),
    "GLU": lambda x: F.glu(x, 1),
    "split by numbers": lambda x: torch.cat(x.split([3, 5], 1)[::-1], 1),
    "split by asking": lambda x: torch.cat(x.split(x.size(1) // 2, 1)[::-1], 1),
    "tensor_split": lambda x: torch.cat(x.tensor_split([1, 3], 1)[1:], 1),
    "first three": lambda x: x[:, :3],
    "all but the first": lambda x: x[:, 1:],
    "second half": lambda x: x[:, x.size(1) // 2 :],
    "every second": lambda x: x[:, ::2],
    "one channel": lambda x: x[:, 2:3],
    "narrow": lambda x: x.narrow(1, 1, 4),
    "by index": lambda x: x[:, [0, 3, 1]],
    "select, stacked": lambda x: torch.stack([x[:, 1], x.select(1, 0)], 1),
    "unbind, stacked": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "first two zero": zero_filled,
    "shuffled": shuffled,
    "shuffled by numbers": shuffled_by_numbers,
    "flipped channels": lambda x: x.flip(1),
    "flipped": lambda x: x.flip(2),
    "rolled channels": lambda x: x.roll(1, 1),
    "rolled": lambda x: torch.roll(x, (1, 2), (2, 3)),
    "repeated channels": lambda x: x.repeat(1, 2, 1, 1),
    "repeated": lambda x: x.repeat(1, 1, 2, 1),
    "interleaved": lambda x: x.repeat_interleave(2, 1),
    "expanded mean": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4),
    "zeros beside": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "ones around": lambda x: F.pad(x, (1, 1, 0, 0), value=1.0),
    "minus half the mean over positions": lambda x: x - x.mean((2, 3), keepdim=True) / 2,
    "times maximum over positions": lambda x: x * x.amax((-2, -1), keepdim=True),
    "minus half the mean over channels": lambda x: x - x.mean(1, keepdim=True) / 2,
    "sum over channels": lambda x: x.sum(1, keepdim=True),
    "normalised": lambda x: F.normalize(x, dim=1),
    "cumulative": lambda x: x.cumsum(1),
    "sorted": lambda x: x.sort(1)[0],
    "flatten and view": lambda x: x.flatten(2).relu().view(x.shape),
    "unflatten": lambda x: x.unflatten(1, (2, -1)).sum(1),
    "groups' mean": lambda x: x.view(x.size(0), 2, -1, *x.shape[2:]).mean(2),
    "groups' maximum by numbers": lambda x: x.reshape(x.size(0), 4, 2, *x.shape[2:]).amax(1),
    "transposed map": lambda x: x.transpose(2, 3),
    "channels last": lambda x: x.permute(0, 2, 3, 1),
    "channels first": lambda x: x.movedim(-1, 1),
    "tokens": lambda x: x.flatten(2).mT,
    "map of tokens": lambda x: x.transpose(1, 2).unflatten(2, (2, -1)),
    "pooled to a vector": lambda x: x.mean((2, 3)),
    "map of a vector": lambda x: x[:, :, None, None],
    "unfolded": lambda x: F.unfold(x, 2, stride=2).unflatten(2, (2, -1)),
    "interpolated": lambda x: F.interpolate(x, (5, 6), mode="nearest"),
    "windows": lambda x: x.reshape(*x.shape[:2], 2, 4, 8).transpose(2, 3).flatten(3),
    "batch into channels and back": lambda x: x.flatten(0, 1).unflatten(0, (-1, x.size(1))).neg(),
}

# Functions of two tensors.
PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda x, y: x + y,
    "sum in place": lambda x, y: x.add_(y),
    "difference": torch.sub,
    "product": lambda x, y: x * y,
    "gate": lambda x, y: x * torch.sigmoid(y),
    "maximum": torch.maximum,
    "mix": lambda x, y: torch.lerp(x, y, 0.3),
    "where": lambda x, y: torch.where(x > 0, x, y),
    "concatenation": lambda x, y: torch.cat([x, y], 1),
    "concatenation, thrice": lambda x, y: torch.cat((y, x, y), dim=-3),
    "concatenation of rows": lambda x, y: torch.cat([x, y], 2),
    "concatenation of columns": lambda x, y: torch.cat([x, y], -1),
    "stack, summed": lambda x, y: torch.stack([x, y]).sum(0),
    "stack, interleaved": lambda x, y: torch.stack([x, y], 2).flatten(1, 2),
    "stack, maximum": lambda x, y: torch.stack([x, y], 1).amax(1),
    "sum, upsampled": lambda x, y: x + F.interpolate(y, x.shape[2:]),
    "product with pooled": lambda x, y: x * y.mean((2, 3), keepdim=True),
    "halves exchanged": lambda x, y: torch.cat([x.chunk(2, 1)[0], y.chunk(2, 1)[1]], 1),
    "matched": lambda x, y: (x.flatten(2) @ y.flatten(2).mT)[..., None] * x[:, :, :1, :1],
    "correlated": lambda x, y: torch.einsum("bchw,bchw->bhw", x, y)[:, None],
}


def pooled_linear(s: Shape) -> nn.Module:
    layer = linear(s[0], CLASSES)
    return Do(lambda fc, x: fc(x.flatten(2).mean(2)), fc=layer) if len(s) > 1 else layer


# What the network puts out, from the shape that is read.
ENDS: dict[str, Make] = {
    "mean, linear": pooled_linear,
    "flatten, linear": lambda s: nn.Sequential(
        nn.Flatten(), nn.Linear(torch.Size(s).numel(), CLASSES)
    ),
    "view, linear": lambda s: Do(
        lambda fc, x: fc(x.reshape(-1, fc.in_features)), fc=linear(torch.Size(s).numel(), CLASSES)
    ),
    "1x1 convolution": lambda s: nn.Conv2d(s[0], CLASSES, 1),
    "as it is": do(lambda x: x),
}

ONE = {**LAYERS, **BLOCKS, **{name: do(function) for name, function in FUNCTIONS.items()}}
TWO = {name: do(function) for name, function in PAIRS.items()}
OUTPUTS: dict[str, Callable[[list[Tensor]], Any]] = {
    "tensor": lambda tensors: tensors[0],
    "tuple": tuple,
    "dictionary": lambda tensors: {f"out{i}": tensor for i, tensor in enumerate(tensors)},
}


class Description(NamedTuple):
    """A network: its steps, what it puts out, and as what."""

    steps: Sequence[Step]
    ends: Sequence[Step] = (Step("mean, linear"),)
    output: str = "tensor"


class Network(nn.Module):
    """A stem, the steps that fit, and the outputs."""

    def __init__(self, description: Description):
        super().__init__()
        self.stem = conv_norm(SHAPE[0], STEM)
        self.steps, self.ends = nn.ModuleList(), nn.ModuleList()
        self.reads: list[tuple[int, ...]] = []
        self.puts_out: list[int] = []
        self.output = OUTPUTS[description.output]
        tensors = [self.stem.eval()(torch.rand(1, *SHAPE))]
        for step in description.steps:
            self._add(step, tensors)
        for end in description.ends:
            self._end(end, tensors)

    def _add(self, step: Step, tensors: list[Tensor]) -> None:
        make, operands = (ONE[step.kind], 1) if step.kind in ONE else (TWO[step.kind], 2)
        for reads in readable(len(tensors), step, operands):
            made = fitting(make, [tensors[i] for i in reads])
            if made:
                self.steps.append(made[0])
                self.reads.append(reads)
                tensors.append(made[1])
                return

    def _end(self, end: Step, tensors: list[Tensor]) -> None:
        for (read,) in readable(len(tensors), end, 1):
            made = fitting(ENDS[end.kind], [tensors[read]])
            if made:
                self.ends.append(made[0])
                self.puts_out.append(read)
                return

    def forward(self, x: Tensor) -> Any:
        tensors = [self.stem(x)]
        for step, reads in zip(self.steps, self.reads, strict=True):
            tensors.append(step(*(tensors[i] for i in reads)))
        ends = zip(self.ends, self.puts_out, strict=True)
        return self.output([end(tensors[i]) for end, i in ends])


def readable(number: int, step: Step, operands: int) -> list[tuple[int, ...]]:
    """List what a step may read of so many tensors, what it asks for first."""
    first = [number - 1 - (step.source + i) % number for i in range(number)]
    if operands == 1:
        return [(i,) for i in first]
    second = [number - 1 - (step.other + i) % number for i in range(number)]
    return [(i, j) for i in first for j in second]


def fitting(make: Make, tensors: list[Tensor]) -> tuple[nn.Module, Tensor] | None:
    """Return a step's module and what it makes of some tensors, or nothing if it does not fit."""
    try:
        module = make(*(tuple(tensor.shape[1:]) for tensor in tensors)).eval()
        result = module(*tensors)
    except DOES_NOT_FIT:
        return None
    size = result[0].numel() if result.dim() > 1 and len(result) == 1 else 0
    return (module, result) if 0 < size <= MOST_VALUES else None


def descriptions() -> st.SearchStrategy[Description]:
    """Draw networks; simple ones first."""
    near = st.sampled_from([0, 0, 0, 1, 2, 3])
    steps = st.builds(Step, st.sampled_from([*ONE, *TWO]), near, st.sampled_from([1, 0, 2, 3]))
    ends = st.builds(Step, st.sampled_from(list(ENDS)), near, st.just(0))
    lists = st.lists(steps, min_size=1, max_size=8)
    return st.builds(
        Description,
        lists,
        st.lists(ends, min_size=1, max_size=3),
        st.sampled_from(list(OUTPUTS)),
    )
