"""Small networks in the ways in which people write theirs: one for each well-known idea.

Some names are chosen to be awkward: `code` is an attribute of every traced module as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DeformConv2d, FeaturePyramidNetwork

from chanprune.models.c2f import C2fPyramid
from tests.networks import conv_norm

SHAPE = (3, 16, 16)
CLASSES = 5


class Between(nn.Module):
    """A stem of 16 channels, a block, a convolution and a classifier."""

    def __init__(self, block: nn.Module, channels: int = 16):
        super().__init__()
        self.stem, self.block, self.last = conv_norm(3, 16), block, conv_norm(channels, 8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.block(self.stem(x))).mean((2, 3)))


# Splits and concatenations


class YoloBlock(nn.Module):
    """C2f as it is mostly written: a list of chunks that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.cv1, self.cv2 = conv_norm(16, 16, 1), conv_norm(32, 16, 1)
        self.m = nn.ModuleList(nn.Sequential(conv_norm(8, 8), conv_norm(8, 8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class Res2Net(nn.Module):
    def __init__(self, width: int = 4, scale: int = 4):
        super().__init__()
        self.width, self.scale = width, scale
        self.inner = conv_norm(16, width * scale, 1)
        self.convs = nn.ModuleList(conv_norm(width, width) for _ in range(scale - 1))
        self.outer = conv_norm(width * scale, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.inner(x), self.width, 1)
        out = sp = self.convs[0](parts[0])
        for i in range(1, self.scale - 1):
            sp = self.convs[i](sp + parts[i])
            out = torch.cat((out, sp), 1)
        return x + self.outer(torch.cat((out, parts[self.scale - 1]), 1))


class Ghost(nn.Module):
    """Cheap features beside others, of which the first are taken."""

    def __init__(self, outputs: int = 15):
        super().__init__()
        self.outputs = outputs
        self.primary, self.cheap = conv_norm(16, 8, 1), conv_norm(8, 8, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], dim=1)[:, : self.outputs, :, :]


class ShuffleUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv_norm(8, 8, 1), conv_norm(8, 8, groups=8))

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        out = torch.cat((kept, self.branch(changed)), dim=1)
        b, c, h, w = out.data.size()
        return torch.transpose(out.view(b, 2, c // 2, h, w), 1, 2).contiguous().view(b, -1, h, w)


class CrossStage(nn.Module):
    """CSP: two projections, one of which goes through the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv_norm(16, 8, 1), conv_norm(16, 8, 1)
        self.blocks, self.join = conv_norm(8, 8), conv_norm(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.left(x)) + self.left(x)
        return self.join(torch.cat((y, self.right(x)), dim=1))


class Inception(nn.Module):
    """Branches that read a list of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.three = conv_norm(16, 6, 1), nn.Sequential(conv_norm(16, 4), conv_norm(4, 8))
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_norm(32, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        inputs = [x, self.three(x)]
        inputs.append(torch.cat([inputs[0], *inputs[1:], inputs[-1]], 1))
        return torch.cat([self.one(inputs[0]), inputs[1], self.pool(inputs[2])], 1)


class Octave(nn.Module):
    """Two frequencies, that exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.hh, self.hl = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 4, 3, padding=1)
        self.lh, self.ll = nn.Conv2d(4, 12, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        high, low = torch.split(x, [12, 4], dim=1)
        low = F.avg_pool2d(low, 2)
        new_high = self.hh(high) + F.interpolate(self.lh(low), scale_factor=2)
        new_low = self.ll(low) + self.hl(F.avg_pool2d(high, 2))
        return torch.cat([new_high, F.interpolate(new_low, scale_factor=2)], 1)


def concatenated_relu(x: Tensor) -> Tensor:
    return torch.cat([F.relu(x), F.relu(-x)], 1)


def maxout(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, c // 2, 2, h, w).max(dim=2)[0]


def focus(x: Tensor) -> Tensor:
    return torch.cat(
        (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1
    )


def reorganised(x: Tensor) -> Tensor:
    """YOLOv2's passthrough."""
    b, c, h, w = x.shape
    x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous()
    return x.view(b, c * 4, h // 2, w // 2)


class Of(nn.Module):
    """A function as a block."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# Gates


class SplitAttention(nn.Module):
    """ResNeSt, radix 2, cardinality 2."""

    def __init__(self) -> None:
        super().__init__()
        self.radix, self.cardinality = 2, 2
        self.conv = conv_norm(16, 32, groups=4)
        self.fc1, self.fc2 = nn.Conv2d(16, 8, 1, groups=2), nn.Conv2d(8, 32, 1, groups=2)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        batch, channels = x.shape[:2]
        parts = torch.split(x, channels // self.radix, dim=1)
        gap = F.adaptive_avg_pool2d(sum(parts), 1)
        gates = self.fc2(torch.relu(self.norm(self.fc1(gap))))
        gates = gates.view(batch, self.cardinality, self.radix, -1).transpose(1, 2)
        gates = F.softmax(gates, dim=1).reshape(batch, -1, 1, 1)
        return sum(
            gate * part
            for gate, part in zip(torch.split(gates, channels // 2, dim=1), parts, strict=True)
        )


class SelectiveKernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(16, 12, 3, padding=1 + i, dilation=1 + i), nn.BatchNorm2d(12), nn.ReLU()
            )
            for i in range(2)
        )
        self.fc, self.fcs = nn.Linear(12, 6), nn.ModuleList(nn.Linear(6, 12) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        feats = torch.cat([conv(x).unsqueeze(1) for conv in self.convs], dim=1)
        z = self.fc(feats.sum(dim=1).mean(-1).mean(-1))
        gates = torch.cat([fc(z).unsqueeze(1) for fc in self.fcs], dim=1).softmax(dim=1)
        return (feats * gates.unsqueeze(-1).unsqueeze(-1)).sum(dim=1)


class SqueezeExcitation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        layers = [nn.Linear(16, 4, bias=False), nn.ReLU(inplace=True), nn.Linear(4, 16, bias=False)]
        self.fc = nn.Sequential(*layers, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.fc(self.avg_pool(x).view(b, c)).view(b, c, 1, 1)
        return x * y.expand_as(x)


class EfficientChannelAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.avg_pool(x)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y).expand_as(x)


class BlockAttention(nn.Module):
    """CBAM: channels, then positions."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [
            F.avg_pool2d(x, (x.size(2), x.size(3)), stride=(x.size(2), x.size(3))),
            F.max_pool2d(x, (x.size(2), x.size(3)), stride=(x.size(2), x.size(3))),
        ]
        scale = torch.sigmoid(sum(self.mlp(p) for p in pooled))
        x = x * scale.unsqueeze(2).unsqueeze(3).expand_as(x)
        both = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * torch.sigmoid(self.spatial(both))


class CoordinateAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv_norm(16, 8, 1)
        self.conv_h, self.conv_w = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, _, h, w = x.size()
        rows = F.adaptive_avg_pool2d(x, (None, 1))
        columns = F.adaptive_avg_pool2d(x, (1, None)).permute(0, 1, 3, 2)
        y = self.conv1(torch.cat([rows, columns], dim=2))
        rows, columns = torch.split(y, [h, w], dim=2)
        columns = columns.permute(0, 1, 3, 2)
        return x * self.conv_w(columns).sigmoid() * self.conv_h(rows).sigmoid()


class GlobalContext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Conv2d(16, 1, 1)
        self.add = nn.Sequential(
            nn.Conv2d(16, 4, 1), nn.LayerNorm([4, 1, 1]), nn.ReLU(), nn.Conv2d(4, 16, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.size()
        mask = self.mask(x).view(b, 1, h * w).softmax(2).unsqueeze(-1)
        context = torch.matmul(x.view(b, c, h * w).unsqueeze(1), mask.view(b, 1, h * w, 1))
        return x + self.add(context.view(b, c, 1, 1))


class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h, self.t = conv_norm(16, 16), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.t(x))
        return gate * self.h(x) + (1 - gate) * x


class GatedActivation(nn.Module):
    """WaveNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.skip = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        filters, gates = torch.chunk(self.conv(x), 2, dim=1)
        return x + self.skip(torch.tanh(filters) * torch.sigmoid(gates))


class Film(nn.Module):
    """Scales and shifts computed from the map itself."""

    def __init__(self) -> None:
        super().__init__()
        self.film, self.conv = nn.Linear(16, 32), conv_norm(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        gamma, beta = self.film(x.mean(dim=[-2, -1])).chunk(2, dim=-1)
        return gamma[:, :, None, None] * self.conv(x) + beta[:, :, None, None]


class Experts(nn.Module):
    """A soft mixture."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(conv_norm(16, 12) for _ in range(3))
        self.router = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x.mean((2, 3))).softmax(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return torch.einsum("be,bechw->bchw", shares, outputs)


class DynamicConvolution(nn.Module):
    """CondConv: the kernel of each image is a mixture, and the batch becomes groups."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 12, 16, 3, 3) / 12)
        self.router = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        shares = torch.sigmoid(self.router(x.mean((2, 3))))
        kernels = (shares @ self.weight.view(3, -1)).view(b * 12, c, 3, 3)
        y = F.conv2d(x.reshape(1, b * c, h, w), kernels, padding=1, groups=b)
        return y.view(b, 12, h, w)


# Tokens and attention


class ConvNeXt(nn.Module):
    """Channels last, layer scale; version 2's response normalisation."""

    def __init__(self, responds: bool = False):
        super().__init__()
        self.dwconv = nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.norm = nn.LayerNorm(16, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.gamma = nn.Parameter(torch.randn(16))
        self.responds = responds
        self.scale = nn.Parameter(torch.randn(1, 1, 1, 32))
        self.shift = nn.Parameter(torch.randn(1, 1, 1, 32))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = F.gelu(self.pwconv1(y))
        if self.responds:
            norms = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
            y = self.scale * (y * (norms / (norms.mean(dim=-1, keepdim=True) + 1e-6))) + self.shift
        return x + (self.gamma * self.pwconv2(y)).permute(0, 3, 1, 2)


class FirstNorm(nn.Module):
    """A layer norm over channels that stand first, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Mixer(nn.Module):
    """Two mixer blocks between patches and the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
        self.tokens = nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 16))
        self.channels = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norms[1](x))
        return self.head(self.norms[2](x).mean(dim=1))


class Attention(nn.Module):
    """Heads by reshape and permute, as in every ViT."""

    def __init__(self, dim: int = 16, heads: int = 2, fused: bool = False):
        super().__init__()
        self.heads, self.fused, self.scale = heads, fused, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class Vit(nn.Module):
    def __init__(self, fused: bool = False):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 16, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 16))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, 16))
        self.attn, self.norm1 = Attention(fused=fused), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.0), nn.Linear(32, 16))
        self.norm2, self.norm = nn.LayerNorm(16), nn.LayerNorm(16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm(x)[:, 0])


def windows_of(x: Tensor, size: int) -> Tensor:
    b, h, w, c = x.shape
    x = x.view(b, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size, size, c)


def joined_windows(windows: Tensor, size: int, h: int, w: int) -> Tensor:
    b = int(windows.shape[0] / (h * w / size / size))
    x = windows.view(b, h // size, w // size, size, size, -1)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, -1)


class Swin(nn.Module):
    """Shifted windows, and a table of relative positions."""

    def __init__(self, size: int = 4, heads: int = 2):
        super().__init__()
        self.size, self.heads = size, heads
        self.norm, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.table = nn.Parameter(torch.randn((2 * size - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(*[torch.arange(size)] * 2, indexing="ij")).flatten(1)
        apart = places[:, :, None] - places[:, None, :] + size - 1
        self.register_buffer("index", apart[0] * (2 * size - 1) + apart[1])
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def attention(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        shares = (q * 0.35 @ k.transpose(-2, -1) + bias.unsqueeze(0)).softmax(-1)
        return self.proj((shares @ v).transpose(1, 2).reshape(b, n, c))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        _, h, w, c = x.shape
        shifted = torch.roll(self.norm(x), shifts=(-2, -2), dims=(1, 2))
        windows = self.attention(windows_of(shifted, self.size).view(-1, self.size**2, c))
        windows = windows.view(-1, self.size, self.size, c)
        x = x + torch.roll(joined_windows(windows, self.size, h, w), shifts=(2, 2), dims=(1, 2))
        return (x + self.mlp(x)).permute(0, 3, 1, 2)


class MobileVit(nn.Module):
    """Patches unfolded, attended and folded again."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Sequential(conv_norm(16, 16), nn.Conv2d(16, 12, 1, bias=False))
        self.attn, self.norm = Attention(12), nn.LayerNorm(12)
        self.proj, self.fusion = conv_norm(12, 16, 1), conv_norm(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.local(x)
        b, c, h, w = y.shape
        rows, columns = h // 2, w // 2
        y = y.reshape(b * c * rows, 2, columns, 2).transpose(1, 2)
        y = y.reshape(b, c, rows * columns, 4).transpose(1, 3).reshape(b * 4, rows * columns, c)
        y = y + self.attn(self.norm(y))
        y = y.contiguous().view(b, 4, rows * columns, -1).transpose(1, 3)
        y = y.reshape(b * c * rows, columns, 2, 2).transpose(1, 2).reshape(b, c, h, w)
        return self.fusion(torch.cat((x, self.proj(y)), dim=1))


class UnfoldFold(nn.Module):
    """The same by nn.functional.unfold and fold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.unfold(x, 2, stride=2))
        return F.fold(y, x.shape[-2:], 2, stride=2)


class SpatialGating(nn.Module):
    """A gMLP block."""

    def __init__(self, tokens: int = 256):
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(12, 16)
        self.gate_norm, self.spatial = nn.LayerNorm(12), nn.Conv1d(tokens, tokens, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.flatten(2).transpose(1, 2))
        u, v = F.gelu(self.inner(y)).chunk(2, dim=-1)
        y = self.outer(u * self.spatial(self.gate_norm(v)))
        return x + y.transpose(1, 2).reshape(x.shape)


class Encoder(nn.Module):
    """nn.TransformerEncoderLayer behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.flatten(2).permute(0, 2, 1))
        return y.permute(0, 2, 1).view(x.shape)


class LearnedQueries(nn.Module):
    """nn.MultiheadAttention of a few learned queries, as in DETR and perceivers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.queries = conv_norm(3, 16), nn.Embedding(4, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.stem(x).flatten(2).transpose(1, 2)
        queries = self.queries.weight.unsqueeze(0).repeat(x.shape[0], 1, 1)
        return self.fc(self.attention(queries, memory, memory, need_weights=False)[0])


class NonLocal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(16, 8, 1) for _ in range(3))
        self.w = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16))

    def forward(self, x: Tensor) -> Tensor:
        b = x.size(0)
        g = self.g(x).view(b, 8, -1).permute(0, 2, 1)
        theta = self.theta(x).view(b, 8, -1).permute(0, 2, 1)
        y = F.softmax(torch.matmul(theta, self.phi(x).view(b, 8, -1)), dim=-1)
        y = torch.matmul(y, g).permute(0, 2, 1).contiguous()
        return self.w(y.view(b, 8, *x.size()[2:])) + x


class LinearAttention(nn.Module):
    """Heads of channels that stand first; softmax along the queries' channels."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Conv2d(16, 48, 1, bias=False), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (t.reshape(b, 2, 8, h * w) for t in self.qkv(x).chunk(3, dim=1))
        context = torch.einsum("bhdn,bhen->bhde", k.softmax(dim=-1), v)
        y = torch.einsum("bhde,bhdn->bhen", context, q.softmax(dim=-2))
        return x + self.out(y.reshape(b, -1, h, w))


# Whole networks


class Unet(nn.Module):
    """Skips, transposed convolutions, and the padding that makes sizes meet."""

    def __init__(self) -> None:
        super().__init__()
        self.inc, self.down1, self.down2 = conv_norm(3, 8), conv_norm(8, 12), conv_norm(12, 16)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 12, 2, 2), nn.ConvTranspose2d(12, 8, 2, 2)
        self.conv2, self.conv1 = conv_norm(24, 12), conv_norm(16, 8)
        self.outc = nn.Conv2d(8, 2, 1)

    def up(self, up: nn.Module, conv: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
        x = up(x)
        rows, columns = skip.size()[2] - x.size()[2], skip.size()[3] - x.size()[3]
        x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return conv(torch.cat([skip, x], dim=1))

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(F.max_pool2d(x1, 2))
        x3 = self.down2(F.max_pool2d(x2, 2))
        return self.outc(self.up(self.up1, self.conv1, self.up(self.up2, self.conv2, x3, x2), x1))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 16, 3, 2, 1), nn.Flatten()
        )
        self.code, self.decode = nn.Linear(256, 6), nn.Linear(6, 256)
        self.decoder = nn.Sequential(
            *(nn.Unflatten(1, (16, 4, 4)), nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.BatchNorm2d(8)),
            *(nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.relu(self.decode(self.code(self.encoder(x)))))


class Vae(nn.Module):
    """Mean and logarithm of the variance by chunk; drawn in training."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv_norm(3, 8), nn.AdaptiveAvgPool2d(4))
        self.code, self.decode = nn.Linear(128, 12), nn.Linear(6, 10)
        self.out = nn.Linear(10, 48)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mean, log_variance = self.code(self.encoder(x).flatten(1)).chunk(2, dim=1)
        std = torch.exp(0.5 * log_variance)
        z = mean + std * torch.randn_like(std) if self.training else mean
        image = self.out(F.relu(self.decode(z))).view(-1, 3, 4, 4)
        return {"image": image, "mean": mean, "log_variance": log_variance}


class SuperResolution(nn.Module):
    """EDSR: scaled residuals, pixel shuffle, a bicubic shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.PReLU(8), nn.Conv2d(8, 8, 3, padding=1))
            for _ in range(2)
        )
        self.up = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        y = first = self.head(x)
        for block in self.body:
            y = y + 0.1 * block(y)
        y = self.tail(self.up(y + first))
        return y + F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)


class Hourglass(nn.Module):
    """Recursion."""

    def __init__(self, depth: int = 2):
        super().__init__()
        self.up, self.low1, self.low3 = conv_norm(16, 16), conv_norm(16, 16), conv_norm(16, 16)
        self.low2 = Hourglass(depth - 1) if depth > 1 else conv_norm(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low3(self.low2(self.low1(F.max_pool2d(x, 2))))
        return self.up(x) + F.interpolate(low, scale_factor=2)


class Aspp(nn.Module):
    """Dilated branches and the image's mean, enlarged."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(16, 6, 3, padding=rate, dilation=rate, bias=False) for rate in (1, 2, 3)
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_norm(16, 6, 1))
        self.project = nn.Sequential(conv_norm(24, 16, 1), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        results = [branch(x) for branch in self.branches]
        size = x.shape[-2:]
        pooled = F.interpolate(self.pool(x), size=size, mode="bilinear", align_corners=False)
        return self.project(torch.cat([*results, pooled], dim=1))


class Fpn(nn.Module):
    """torchvision's feature pyramid, over an ordered dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = conv_norm(3, 8), conv_norm(8, 16, stride=2)
        self.fpn = FeaturePyramidNetwork([8, 16], 12)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        c1 = self.c1(x)
        return self.fpn({"c1": c1, "c2": self.c2(c1)})


class WeightedFusion(nn.Module):
    """BiFPN: shares that are learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv_norm(16, 16), conv_norm(16, 16, 1)
        self.shares = nn.Parameter(torch.rand(2))

    def forward(self, x: Tensor) -> Tensor:
        w = torch.relu(self.shares)
        w = w / (torch.sum(w, dim=0) + 1e-4)
        return F.silu(w[0] * self.left(x) + w[1] * self.right(x))


class HighResolution(nn.Module):
    """HRNet: branches that are fused in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.low = conv_norm(16, 8), conv_norm(16, 12, stride=2)
        self.down, self.up = conv_norm(8, 12, stride=2), conv_norm(12, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        xs = [self.high(x), self.low(x)]
        fused = [
            xs[0] + F.interpolate(self.up(xs[1]), size=xs[0].shape[2:]),
            self.down(xs[0]) + xs[1],
        ]
        fused[1] = F.interpolate(fused[1], size=fused[0].shape[2:], mode="bilinear")
        return torch.cat(fused, 1)


class AnchorHead(nn.Module):
    """RetinaNet and SSD: one head for two scales, predictions of all positions in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = conv_norm(3, 8), conv_norm(8, 8, stride=2)
        self.tower, self.scores = conv_norm(8, 12), nn.Conv2d(12, 3 * 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        c1 = self.c1(x)
        rows = []
        for feature in (c1, self.c2(c1)):
            y = self.scores(self.tower(feature))
            n, _, h, w = y.shape
            y = y.view(n, -1, 4, h, w).permute(0, 3, 4, 1, 2)
            rows.append(y.reshape(n, -1, 4))
        return torch.cat(rows, dim=1)


class YoloHead(nn.Module):
    """Boxes of an anchor, in train mode as they are, in eval mode decoded with a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.m = conv_norm(3, 8, stride=2), nn.Conv2d(8, 2 * 7, 1)
        self.register_buffer("anchors", torch.rand(1, 2, 1, 1, 2))

    def forward(self, x: Tensor) -> Any:
        y = self.m(self.stem(x))
        b, _, h, w = y.shape
        y = y.view(b, 2, 7, h, w).permute(0, 1, 3, 4, 2).contiguous()
        if self.training:
            return y
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack((columns, rows), 2).view(1, 1, h, w, 2)
        z = y.sigmoid()
        centres = (z[..., 0:2] * 2 - 0.5 + grid) * 2
        sizes = (z[..., 2:4] * 2) ** 2 * self.anchors
        return torch.cat((centres, sizes, z[..., 4:]), -1).view(b, -1, 7), y


class DistributionHead(nn.Module):
    """YOLOv8: expected distances, by a convolution of fixed weights over a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.box = conv_norm(3, 8, stride=2), nn.Conv2d(8, 16, 1)
        self.cls = nn.Sequential(conv_norm(8, 12), nn.Conv2d(12, 3, 1))
        self.dfl = nn.Conv2d(4, 1, 1, bias=False).requires_grad_(False)
        self.dfl.weight.data[:] = torch.arange(4.0).view(1, 4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        feature = self.stem(x)
        both = torch.cat((self.box(feature), self.cls(feature)), 1)
        box, cls = both.view(both.shape[0], 19, -1).split((16, 3), 1)
        b, _, a = box.shape
        box = self.dfl(box.view(b, 4, 4, a).transpose(2, 1).softmax(1)).view(b, 4, a)
        return torch.cat((box, cls.sigmoid()), 1)


class EarlyExits(nn.Module):
    """One classifier behind each stage, in a list."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 8, 12, 16)
        pairs = list(zip(sizes, sizes[1:], strict=False))
        self.stages = nn.ModuleList(conv_norm(a, b, stride=2) for a, b in pairs)
        self.exits = nn.ModuleList(nn.Linear(b, CLASSES) for _, b in pairs)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for stage, fc in zip(self.stages, self.exits, strict=True):
            x = stage(x)
            outputs.append(fc(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        return outputs


class Siamese(nn.Module):
    """Two images through one network, and their distance."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(conv_norm(3, 8), conv_norm(8, 12)), nn.Linear(12, 6)

    def features(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (self.features(left) - self.features(right)).pow(2).sum(1).sqrt()


class Stereo(Siamese):
    """Two images side by side in one tensor, batched together."""

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat(x.tensor_split(2, dim=3), dim=0)
        left, right = self.features(both).chunk(2, dim=0)
        return F.cosine_similarity(left, right)


class Recurrent(nn.Module):
    """CRNN: columns of a map are the steps of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn, self.pool = nn.Sequential(conv_norm(3, 8), conv_norm(8, 12)), nn.MaxPool2d((4, 2))
        self.rnn = nn.LSTM(48, 10, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.cnn(x))
        b, c, h, w = x.size()
        x = x.permute(0, 3, 1, 2).reshape(b, w, c * h)
        x, _ = self.rnn(x)
        return self.fc(x[:, -1])


class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.localisation = nn.Sequential(conv_norm(3, 8), nn.AdaptiveAvgPool2d(2))
        self.fc_loc = nn.Sequential(nn.Linear(8 * 2 * 2, 10), nn.ReLU(True), nn.Linear(10, 6))
        self.conv, self.fc = conv_norm(3, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.fc_loc(self.localisation(x).view(-1, 8 * 2 * 2)).view(-1, 2, 3)
        x = F.grid_sample(
            x, F.affine_grid(theta, list(x.size()), align_corners=False), align_corners=False
        )
        return self.fc(self.conv(x).mean((2, 3)))


class Deformable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset, self.conv = nn.Conv2d(16, 18, 3, padding=1), DeformConv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x, self.offset(x)))


class Reparametrised(nn.Module):
    """RepVGG in training: three branches and an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.one = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))
        self.identity = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.dense(x) + self.one(x) + self.identity(x))


class Coordinates(nn.Module):
    """CoordConv: positions beside the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv_norm(18, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        rows = torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype)
        columns = torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype)
        y = rows.view(1, 1, h, 1).expand(b, 1, h, w)
        return self.conv(torch.cat([x, y, columns.view(1, 1, 1, w).expand(b, 1, h, w)], 1))


class Blur(nn.Module):
    """Anti-aliased pooling: a fixed kernel for as many channels as there are."""

    def __init__(self) -> None:
        super().__init__()
        kernel = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer(
            "kernel", (kernel[:, None] * kernel / 16)[None, None].repeat(16, 1, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(padded, self.kernel, stride=2, groups=x.shape[1])


class Pyramid(nn.Module):
    """PSPNet's and SPP's poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = conv_norm(3, 8), nn.Linear(8 * (1 + 4 + 16), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        parts = [F.adaptive_max_pool2d(x, bins).view(x.size(0), -1) for bins in (1, 2, 4)]
        return self.fc(torch.cat(parts, dim=1))


class GeneralisedMean(nn.Module):
    """GeM pooling, and classes by the cosine to learnt centres."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.embedding = conv_norm(3, 12), nn.Linear(12, 8)
        self.p, self.centres = (
            nn.Parameter(torch.ones(1) * 3),
            nn.Parameter(torch.randn(CLASSES, 8)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).clamp(min=1e-6).pow(self.p)
        x = F.avg_pool2d(x, (x.size(-2), x.size(-1))).pow(1.0 / self.p).flatten(1)
        return 16 * F.linear(F.normalize(self.embedding(x)), F.normalize(self.centres))


class BilinearPooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = conv_norm(3, 6), nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).flatten(2)
        x = torch.bmm(x, x.transpose(1, 2)) / x.size(2)
        x = x.view(x.size(0), -1)
        return self.fc(F.normalize(torch.sign(x) * torch.sqrt(torch.abs(x) + 1e-10)))


class AttentionPooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.score = conv_norm(3, 12), nn.Conv2d(12, 2, 1)
        self.fc = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        shares = self.score(x).flatten(2).softmax(-1)
        return self.fc(torch.einsum("bcn,bkn->bkc", x.flatten(2), shares).flatten(1))


class Tied(nn.Module):
    """The decoder is the encoder, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.encode = conv_norm(3, 12), nn.Linear(12, 6)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.encode(self.body(x).mean((2, 3))))
        return self.fc(F.linear(x, self.encode.weight.t()))


class StyleBlock(nn.Module):
    """Instance norm with scales and shifts that the mean decides; noise that is learnt away."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.style = nn.InstanceNorm2d(16), nn.Linear(16, 32)
        self.strength = nn.Parameter(torch.randn(1, 16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        style = self.style(x.mean([2, 3])).view(-1, 2, 16, 1, 1)
        x = x + self.strength * torch.ones_like(x[:, :1])
        return self.norm(x) * (style[:, 0] + 1.0) + style[:, 1]


class Sequence(nn.Module):
    """Temporal convolutions over the rows of an image: causal padding that is cut off again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv1d(48, 12, 3, padding=2),
            nn.Conv1d(12, 12, 3, padding=4, dilation=2),
        )
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(2, 3).flatten(1, 2)
        x = torch.relu(self.first(x)[:, :, :-2].contiguous())
        x = torch.relu(self.second(x)[:, :, :-4]) + x
        return self.fc(x[:, :, -1])


class Points(nn.Module):
    """PointNet: pixels as points, turned by a matrix that is computed, then the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.turn, self.body = (
            nn.Linear(3, 9),
            nn.Sequential(nn.Conv1d(3, 12, 1), nn.BatchNorm1d(12)),
        )
        self.last, self.fc = nn.Conv1d(12, 16, 1), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        points = x.flatten(2)
        matrix = self.turn(points.mean(2)).view(-1, 3, 3)
        points = torch.bmm(points.transpose(2, 1), matrix).transpose(2, 1)
        points = self.last(F.relu(self.body(points)))
        return self.fc(torch.max(points, 2, keepdim=True)[0].view(-1, 16))


class Involution(nn.Module):
    """Kernels by position: unfold, multiply, sum."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.span = conv_norm(16, 4, 1), nn.Conv2d(4, 9 * 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        kernels = self.span(self.reduce(x)).view(b, 4, 9, h, w).unsqueeze(2)
        patches = F.unfold(x, 3, padding=1).view(b, 4, c // 4, 9, h, w)
        return (kernels * patches).sum(dim=3).view(b, c, h, w)


class Borrowed(nn.Module):
    """A layer's weights, read without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 12, 3, padding=1), nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(F.conv2d(x, self.conv.weight, self.conv.bias, padding=1)))


class ByShape(nn.Module):
    """Code that looks at sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other, self.fc = conv_norm(3, 12), conv_norm(12, 12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4, "images are expected"
        x = self.stem(x)
        if x.shape[-1] > 8:
            x = F.max_pool2d(x, 2)
        for _ in range(x.size(1) // 6):
            x = self.other(x)
        return self.fc(x.flatten(2).mean(-1))


class ByValue(nn.Module):
    """Code that looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = conv_norm(3, 12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.mean().item() > 0.5:
            x = x / 2
        return self.fc(x.mean((2, 3)))


class InPlace(nn.Module):
    """Parts of a map written over."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = conv_norm(16, 8), conv_norm(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 8:] = self.conv(x)
        x[:, :8] *= 0.5
        x += 1
        return self.last(x)


# Several inputs


class Conditioned(nn.Module):
    """A class to be drawn, looked up by number, decides scales and shifts."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.film = nn.Embedding(CLASSES, 6), nn.Linear(6, 24)
        self.conv, self.last = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale, shift = self.film(self.embedding(y)).unsqueeze(-1).unsqueeze(-1).chunk(2, dim=1)
        return self.last(F.silu(self.conv(x) * (1 + scale) + shift))


class Denoiser(nn.Module):
    """A diffusion network: sines of the time step are added to the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 12), nn.SiLU(), nn.Linear(12, 16))
        self.norm1, self.norm2 = nn.GroupNorm(4, 16), nn.GroupNorm(4, 16)
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.conv1, self.conv2 = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        rates = torch.exp(torch.arange(4, device=x.device, dtype=x.dtype) * -2.3)
        angles = t[:, None].to(x.dtype) * rates[None]
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        x = self.first(x)
        y = self.conv1(F.silu(self.norm1(x))) + time[..., None, None]
        return self.last(x + self.conv2(F.silu(self.norm2(y))))


class Modalities(nn.Module):
    """A dictionary of an image and its depth, fused late; a dictionary comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.depth, self.fuse = conv_norm(3, 8), conv_norm(1, 4), conv_norm(12, 10)
        self.heads = nn.ModuleDict({"classes": nn.Linear(10, CLASSES), "pose": nn.Linear(10, 6)})

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        both = [self.image(batch["image"]), self.depth(batch["depth"])]
        x = self.fuse(torch.cat(both, dim=1)).mean((2, 3))
        return {name: head(x) for name, head in self.heads.items()}


class Frames(nn.Module):
    """A list of images, each through the same network, and the most of all."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = (
            nn.Sequential(conv_norm(3, 8), conv_norm(8, 12)),
            nn.Linear(12, CLASSES),
        )

    def forward(self, frames: list[Tensor]) -> Tensor:
        features = torch.stack([self.body(frame).mean((2, 3)) for frame in frames])
        return self.fc(features.max(dim=0).values)


class Cell(nn.Module):
    """A convolutional LSTM's step: a pair of states goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3 + 8, 4 * 8, 3, padding=1), conv_norm(8, 6)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        h, c = state
        i, f, o, g = torch.split(self.conv(torch.cat([x, h], dim=1)), 8, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h), (h, c)


class Captioner(nn.Module):
    """Words that attend to an image, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn, self.words = conv_norm(3, 16, stride=2), nn.Embedding(7, 16)
        self.cross = nn.MultiheadAttention(16, 4, batch_first=True)
        self.mlp, self.head = nn.Sequential(nn.Linear(16, 20), nn.ReLU()), nn.Linear(20, 7)

    def forward(self, image: Tensor, words: Tensor, mask: Tensor | None = None) -> Tensor:
        memory = self.cnn(image).flatten(2).transpose(1, 2)
        x = self.words(words)
        x = x + self.cross(x, memory, memory, key_padding_mask=mask)[0]
        return self.head(self.mlp(x))


def between(make: Callable[[], nn.Module], channels: int = 16) -> Callable[[], nn.Module]:
    return lambda: Between(make(), channels)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "YOLO block": between(YoloBlock),
    "Res2Net": between(Res2Net),
    "GhostNet": between(Ghost, 15),
    "ShuffleNet": between(ShuffleUnit),
    "cross-stage": between(CrossStage),
    "Inception": between(Inception),
    "octave convolution": between(Octave),
    "concatenated ReLU": between(lambda: Of(concatenated_relu), 32),
    "maxout": between(lambda: Of(maxout), 8),
    "focus": between(lambda: Of(focus), 64),
    "reorganised": between(lambda: Of(reorganised), 64),
    "split attention": between(SplitAttention),
    "selective kernels": between(SelectiveKernel, 12),
    "squeeze and excitation": between(SqueezeExcitation),
    "efficient channel attention": between(EfficientChannelAttention),
    "CBAM": between(BlockAttention),
    "coordinate attention": between(CoordinateAttention),
    "global context": between(GlobalContext),
    "highway": between(Highway),
    "gated activation": between(GatedActivation),
    "FiLM": between(Film),
    "mixture of experts": between(Experts, 12),
    "dynamic convolution": between(DynamicConvolution, 12),
    "ConvNeXt": between(ConvNeXt),
    "ConvNeXt V2": between(lambda: ConvNeXt(responds=True)),
    "layer norm by hand": between(FirstNorm),
    "MLP-Mixer": Mixer,
    "ViT": Vit,
    "ViT, fused": lambda: Vit(fused=True),
    "Swin": between(Swin),
    "MobileViT": between(MobileVit),
    "unfold and fold": between(UnfoldFold),
    "gMLP": between(SpatialGating),
    "transformer encoder": between(Encoder),
    "learned queries": LearnedQueries,
    "non-local": between(NonLocal),
    "linear attention": between(LinearAttention),
    "U-Net": Unet,
    "autoencoder": Autoencoder,
    "variational autoencoder": Vae,
    "super-resolution": SuperResolution,
    "hourglass": between(Hourglass),
    "ASPP": between(Aspp),
    "feature pyramid": Fpn,
    "weighted fusion": between(WeightedFusion),
    "HRNet": between(HighResolution, 20),
    "anchor head": AnchorHead,
    "YOLO head": YoloHead,
    "distribution head": DistributionHead,
    "three scales": lambda: C2fPyramid(3, (8, 8, 12, 16, 16)),
    "early exits": EarlyExits,
    "two images": Siamese,
    "conditioned": Conditioned,
    "denoiser": Denoiser,
    "modalities": Modalities,
    "frames": Frames,
    "recurrent cell": Cell,
    "captioner": Captioner,
    "stereo": Stereo,
    "LSTM": Recurrent,
    "spatial transformer": SpatialTransformer,
    "deformable convolution": between(Deformable),
    "RepVGG": between(Reparametrised),
    "coordinates beside": between(Coordinates),
    "blurred pooling": between(Blur),
    "pyramid pooling": Pyramid,
    "generalised mean": GeneralisedMean,
    "bilinear pooling": BilinearPooling,
    "attention pooling": AttentionPooling,
    "tied weights": Tied,
    "style": between(StyleBlock),
    "temporal convolution": Sequence,
    "PointNet": Points,
    "involution": between(Involution),
    "borrowed weights": between(Borrowed, 12),
    "decides by shape": ByShape,
    "decides by value": ByValue,
    "in place": between(InPlace),
}


IMAGES = torch.randn(2, *SHAPE)
EXAMPLES: dict[str, Any] = {
    "two images": (IMAGES, IMAGES.flip(0)),
    "conditioned": (IMAGES, torch.tensor([4, 1])),
    "denoiser": {"x": IMAGES, "t": torch.tensor([3, 500])},
    "modalities": ({"image": IMAGES, "depth": IMAGES[:, :1]},),
    "frames": ([IMAGES, IMAGES.flip(0), IMAGES.flip(2)],),
    "recurrent cell": (IMAGES, (torch.randn(2, 8, 16, 16), torch.randn(2, 8, 16, 16))),
    "captioner": (IMAGES, torch.tensor([[1, 2, 3], [4, 0, 6]])),
}
