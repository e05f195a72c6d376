"""Ways in which people write a forward, each with what becomes of it: followed, or refused."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from tests.networks import conv_norm

SHAPE = (3, 16, 16)


class Pair(NamedTuple):
    logits: Tensor
    feature: Tensor


@dataclasses.dataclass
class Answer:
    logits: Tensor
    feature: Tensor


class Idiom(nn.Module):
    """A stem `a`, layers to read it with, a classifier `fc`, and a forward that is given."""

    def __init__(self, forward: Callable[[Idiom, Tensor], Any]):
        super().__init__()
        self.a, self.b, self.c = conv_norm(3, 16), conv_norm(16, 16), conv_norm(16, 16)
        self.two, self.eight = conv_norm(32, 16), conv_norm(8, 16)
        self.se = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16), nn.Sigmoid())
        self.plain = nn.Conv2d(16, 16, 1, bias=False)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)
        self.up = nn.ConvTranspose2d(16, 16, 2, 2)
        self.norm = nn.GroupNorm(4, 16)
        self.slope, self.slopes = nn.PReLU(), nn.PReLU(16)
        self.drop = StochasticDepth(0.5, "row")
        self.scale, self.weight = nn.Parameter(torch.ones(16, 1, 1)), nn.Parameter(torch.ones(1))
        self.bare, self.one = nn.BatchNorm2d(16, affine=False), nn.Conv2d(16, 1, 1)
        self.register_buffer("order", torch.randperm(16))
        self.fc, self.aux = nn.Linear(16, 5), nn.Linear(16, 5)
        self.register_buffer("mean", torch.full((3, 1, 1), 0.1))
        self.given = forward

    def forward(self, x: Tensor) -> Any:
        return self.given(self, x)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def between(operation: Callable[[Idiom, Tensor], Tensor]) -> Callable[[Idiom, Tensor], Any]:
    """Do something between a stem and a layer that reads it."""
    return lambda net, x: net.fc(pooled(net.c(operation(net, net.a(x)))))


def at_the_end(operation: Callable[[Idiom, Tensor], Tensor]) -> Callable[[Idiom, Tensor], Any]:
    """Do something between a stem and the classifier."""
    return lambda net, x: net.fc(operation(net, net.a(x)))


def beside(feature: Callable[[Tensor], Any]) -> Callable[[Idiom, Tensor], Any]:
    """Put out something of a feature map besides."""

    def forward(net: Idiom, x: Tensor) -> Any:
        f = net.b(net.a(x))
        return {"logits": net.fc(pooled(f)), "other": [feature(f)]}

    return forward


def both(kind: Callable[[Tensor, Tensor], Any]) -> Callable[[Idiom, Tensor], Any]:
    def forward(net: Idiom, x: Tensor) -> Any:
        f = net.b(net.a(x))
        return kind(net.fc(pooled(f)), f)

    return forward


def squeezed(net: Idiom, t: Tensor) -> Tensor:
    """Squeeze and excitation with the sizes asked for."""
    b, c, _, _ = t.shape
    return t * net.se(F.adaptive_avg_pool2d(t, 1).view(b, c)).view(b, c, 1, 1).expand_as(t)


def residual(net: Idiom, t: Tensor) -> Tensor:
    return t + net.plain(net.b(t))


def with_auxiliary(net: Idiom, x: Tensor) -> Any:
    t = net.a(x)
    logits = net.fc(F.dropout(pooled(residual(net, t)), 0.5, net.training))
    return (logits, net.aux(pooled(t))) if net.training else logits


def dropped_path(net: Idiom, t: Tensor) -> Tensor:
    u = net.b(t)
    if net.training:
        u = u * u.new_empty((u.shape[0], 1, 1, 1)).bernoulli_(0.8).div_(0.8)
    return t + u


def by_chance(net: Idiom, t: Tensor) -> Tensor:
    skips = net.training and random.random() < 0.5
    return t if skips else residual(net, t)


FOLLOWED: dict[str, Callable[[Idiom, Tensor], Any]] = {
    "max over positions": at_the_end(lambda net, t: torch.max(t.flatten(2), 2)[0]),
    "max values": at_the_end(lambda net, t: t.flatten(2).max(dim=2).values),
    "topk": at_the_end(lambda net, t: t.flatten(2).topk(3, dim=2)[0].mean(2)),
    "std_mean": at_the_end(lambda net, t: torch.std_mean(t, (2, 3))[1]),
    "pool with indices": between(lambda net, t: net.pool(t)[0]),
    "squeeze": at_the_end(lambda net, t: F.adaptive_avg_pool2d(t, 1).squeeze()),
    "squeeze(-1)": at_the_end(lambda net, t: F.adaptive_avg_pool2d(t, 1).squeeze(-1).squeeze(-1)),
    "[:, :, 0, 0]": at_the_end(lambda net, t: F.adaptive_avg_pool2d(t, 1)[:, :, 0, 0]),
    "[..., 0, 0]": at_the_end(lambda net, t: t[..., 0, 0]),
    "[..., None, None]": between(lambda net, t: t * pooled(t)[..., None, None]),
    "mean(axis=)": at_the_end(lambda net, t: t.mean(axis=(2, 3))),
    "sum": at_the_end(lambda net, t: t.sum((2, 3))),
    "amax": at_the_end(lambda net, t: torch.amax(t, dim=(2, 3))),
    "logsumexp": at_the_end(lambda net, t: torch.logsumexp(t, (2, 3))),
    "flatten(2).mean": at_the_end(lambda net, t: t.flatten(2).mean(-1)),
    "excitation": between(squeezed),
    "layer scale": between(lambda net, t: t + net.scale * net.b(t)),
    "scalar weight": between(lambda net, t: t + net.weight * net.b(t)),
    "scalar bias": between(lambda net, t: t + net.weight),
    "images minus mean": lambda net, x: net.fc(pooled(net.b(net.a(x - net.mean)))),
    "clamp from below": between(lambda net, t: t.clamp(min=0.1)),
    "clamp": between(lambda net, t: torch.clamp(t, 0, 1)),
    "power": between(lambda net, t: t**2),
    "exp": between(lambda net, t: t.exp()),
    "own tensor": between(lambda net, t: t + torch.linspace(0, 1, 16)),
    "quotient": between(lambda net, t: 2 / (t + 1)),
    "by number of channels": between(lambda net, t: t / t.shape[1]),
    "by number of positions": between(lambda net, t: t / (t.shape[2] * t.size(3))),
    "number added": between(lambda net, t: t + 1),
    "padded with ones": between(lambda net, t: F.pad(t, (1, 1, 1, 1), value=1.0)),
    "chosen by index": between(lambda net, t: t.index_select(1, net.order)),
    "norm without scale": between(lambda net, t: net.bare(net.plain(t))),
    "norm called twice": between(lambda net, t: net.bare(net.b[1](net.b[1](net.plain(t))))),
    "spatial attention": between(lambda net, t: t * net.one(t)),
    "maximum": between(lambda net, t: torch.maximum(t, net.b(t))),
    "where": between(lambda net, t: torch.where(t > 0.5, t, 0.25)),
    "mask": between(lambda net, t: t * (t > 0.5).float()),
    "spatial softmax": between(lambda net, t: t * t.flatten(2).softmax(-1).view_as(t)),
    "softmax": between(lambda net, t: t.softmax(1)),
    "group norm": between(lambda net, t: net.norm(t)),
    "one slope": between(lambda net, t: net.slope(t - net.b(t))),
    "slopes": between(lambda net, t: net.slopes(t - net.b(t))),
    "map added": between(lambda net, t: t + net.b(t)[:, :, :1, :1].sum((2, 3), keepdim=True)),
    "cat(axis=)": between(lambda net, t: net.two(torch.cat([t, net.b(t)], axis=1))),
    "cat(tensors=, dim=-3)": between(
        lambda net, t: net.two(torch.cat(tensors=[t, net.b(t)], dim=-3))
    ),
    "cat of positions": between(lambda net, t: torch.cat([t, net.b(t)], 3)),
    "sum of a list": between(lambda net, t: sum([t, net.b(t)])),
    "weighted sum": between(lambda net, t: torch.add(t, net.b(t), alpha=0.5)),
    "permuted positions": between(lambda net, t: t.permute(0, 1, 3, 2).transpose(-1, -2)),
    "interpolate": between(lambda net, t: F.interpolate(F.max_pool2d(t, 2), size=t.shape[-2:]) + t),
    "stochastic depth": between(lambda net, t: t + net.drop(net.b(t))),
    "path dropped by hand": between(dropped_path),
    "path dropped by chance": between(by_chance),
    "auxiliary output": with_auxiliary,
    "named tuple": both(Pair),
    "dataclass": both(Answer),
    "list in dictionary": beside(lambda f: f),
    "None beside": beside(lambda f: None),
    "width beside": beside(lambda f: f.shape[1]),
    "embedding beside": beside(lambda f: f.max(2)[0].max(2)[0]),
    "deviation beside": beside(lambda f: torch.std_mean(f, (2, 3))[1]),
    "chunk": between(lambda net, t: net.eight(t.chunk(2, 1)[0])),
    "uneven split": between(lambda net, t: torch.cat(torch.split(t, [4, 12], 1), 1)),
    "halves read apart": between(
        lambda net, t: sum(net.eight(half) for half in torch.split(t, 8, 1))
    ),
    "channels taken": between(lambda net, t: torch.cat([t[:, 12:], t[:, :12]], 1)),
    "half of the channels": between(lambda net, t: net.eight(t[:, : t.size(1) // 2])),
    "narrow": between(lambda net, t: net.eight(t.narrow(1, 4, 8))),
    "unbind": at_the_end(lambda net, t: torch.stack(t.unbind(1), 1).mean((2, 3))),
    "chunk beside": beside(lambda f: f.chunk(2, 1)[1]),
    "argmax beside": beside(lambda f: f.argmax(1)),
    "max over channels": between(lambda net, t: t * t.max(1, keepdim=True)[0]),
    "unpool": between(lambda net, t: net.unpool(net.pool(t)[0], net.pool(t)[1])),
    "transposed": between(lambda net, t: net.up(t)),
    "assignment": between(lambda net, t: (t.__setitem__((slice(None), 0), 0), t)[1]),
    "in place and unused": between(lambda net, t: (t.sigmoid_(), t)[1]),
    "shuffle by hand": between(
        lambda net, t: t.view(-1, 4, 4, 16, 16).transpose(1, 2).reshape(-1, 16, 16, 16)
    ),
    "shuffle by sizes": between(
        lambda net, t: (
            t.view(t.size(0), 2, t.size(1) // 2, *t.shape[2:]).transpose(1, 2).reshape(t.shape)
        )
    ),
    "asks for a size": lambda net, x: net.fc(pooled(net.a(x))) if x.shape[1] == 3 else None,
    "functional convolution": between(lambda net, t: F.conv2d(t, net.plain.weight)),
    "two by two": between(lambda net, t: torch.rsub(t, net.b(t))),
    "channels last": between(lambda net, t: torch.relu(t.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    "pixel shuffle": between(
        lambda net, t: F.pixel_unshuffle(F.pixel_shuffle(net.b(t), 2), 2) + net.b(t)
    ),
    "stack": between(lambda net, t: torch.stack([t, net.b(t)], 1).sum(1)),
    "unflatten": between(lambda net, t: t.unflatten(1, (2, 8)).flatten(1, 2)),
    "attention over positions": between(
        lambda net, t: (
            t.flatten(2) @ t.flatten(2).transpose(1, 2).softmax(-1) @ t.flatten(2)
        ).view(t.shape)
    ),
    "roll": between(lambda net, t: t.roll(1, 1) + t.roll(2, 3)),
    "flip": between(lambda net, t: t.flip(1)),
}
# Where dropped channels emit something, although they are zero.
NONZERO = {
    "number added",
    "logsumexp",
    "quotient",
    "where",
    "exp",
    "clamp from below",
    "padded with ones",
    "in place and unused",
}
REFUSED: dict[str, tuple[Callable[[Idiom, Tensor], Any], str]] = {
    "unknown thing beside": (beside(lambda f: {1, 2}), "thing of another kind .*set"),
    "asks for a value": (
        lambda net, x: net.fc(pooled(net.a(x))) if x.max() > 0 else None,
        "decides by the value or the size of a tensor",
    ),
    "draws": (
        between(lambda net, t: t * random.random()),
        "draws random numbers",
    ),
}
