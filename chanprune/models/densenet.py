"""DenseNet for small images (Huang et al., CVPR 2017): three blocks of layers that all read all.

Forms in the papers, all with growth 12: 40 layers without bottlenecks, whose first convolution has
16 channels (Network Slimming, 1 019 722 parameters) or 24 (its authors' code, 1 059 298); 40 and
100 layers with bottlenecks whose transitions are a pooling alone (selective convolution, 211 978
and 995 698); and 100 layers with bottlenecks and transitions that halve the channels (BC, 769 162).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from chanprune.components import Count, PartOrAll, Width, model
from chanprune.models.parts import check_image_size, depth_of, initialise, scaled

BOTTLENECK = 4


class DenseLayer(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, whose output is appended to the input."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + growth, H, W)."""
        return torch.cat([x, self.conv(torch.relu(self.bn(x)))], 1)


class BottleneckLayer(nn.Module):
    """As DenseLayer, with a 1x1 convolution to four times the growth in front."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, BOTTLENECK * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = nn.Conv2d(BOTTLENECK * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + growth, H, W)."""
        y = self.conv1(torch.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.bn2(y)))], 1)


class Transition(nn.Module):
    """Batch norm, ReLU, a 1x1 convolution, and pooling by 2."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / 2, W / 2)."""
        y: Tensor = self.pool(self.conv(torch.relu(self.bn(x))))
        return y


class DenseNet(nn.Module):
    """Stem, three dense blocks with transitions between, batch norm, ReLU, pool, linear layer.

    Args:
        layers: Number of layers in a block.
        growth: Channels that a layer appends.
        stem: Channels of the first convolution.
        bottleneck: Whether the layers have a 1x1 convolution in front.
        transition: "conv", or "pool" for a pooling alone.
        compression: Share of the channels that a transition's convolution passes on.
        stem_stride: Stride of the first convolution.
        num_classes: Number of classes.
        in_channels: Channels of the image.
    """

    def __init__(
        self,
        layers: int,
        growth: int,
        stem: int,
        *,
        bottleneck: bool,
        transition: Literal["conv", "pool"],
        compression: float,
        stem_stride: int,
        num_classes: int,
        in_channels: int,
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, stem, 3, stem_stride, padding=1, bias=False)
        kind = BottleneckLayer if bottleneck else DenseLayer
        width = stem
        stages: list[nn.Module] = []
        for number in range(3):
            stages.append(nn.Sequential(*(kind(width + i * growth, growth) for i in range(layers))))
            width += layers * growth
            if number < 2 and transition == "conv":
                outputs = max(1, math.floor(width * compression))
                stages.append(Transition(width, outputs))
                width = outputs
            elif number < 2:
                stages.append(nn.AvgPool2d(2))
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)
        initialise(self, norm_scale=0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) images to (N, classes) logits."""
        x = torch.relu(self.bn(self.stages(self.conv(x))))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


@model("densenet40", "densenet100")
def build_densenet(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    width: Width = 1.0,
    growth: Count = 12,
    stem: Count = 16,
    bottleneck: bool = False,
    transition: Literal["conv", "pool"] = "conv",
    compression: PartOrAll = 1.0,
    stem_stride: Count = 1,
) -> DenseNet:
    """Build a DenseNet of 40 or 100 layers.

    Args:
        name: "densenet40" or "densenet100".
        num_classes: Number of classes.
        in_channels: Channels of the image.
        image_size: Height and width of the image in pixels.
        width: Growth and first convolution are multiplied by this.
        growth: Channels that a layer appends.
        stem: Channels of the first convolution.
        bottleneck: A 1x1 convolution to 4 x growth in front of each layer's 3x3.
        transition: "conv": 1x1 convolution and pooling; "pool": pooling alone.
        compression: Share of the channels that a transition's convolution passes on.
        stem_stride: Of the first convolution (2 for images of 64 pixels in the
            selective-convolution paper).

    Raises:
        UserError: The image is too small.
    """
    check_image_size(name, image_size, smallest=8 * stem_stride)
    return DenseNet(
        (depth_of(name) - 4) // (6 if bottleneck else 3),
        scaled(growth, width),
        scaled(stem, width),
        bottleneck=bottleneck,
        transition=transition,
        compression=compression,
        stem_stride=stem_stride,
        num_classes=num_classes,
        in_channels=in_channels,
    )
