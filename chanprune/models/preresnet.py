"""Pre-activation bottleneck networks (He et al., ECCV 2016): ResNet-29 and 164, ResNeXt-29.

Batch norm and ReLU stand before each convolution; the residual stream is a plain sum. Network
Slimming uses projections where the width changes and strides in the 3x3 convolution (1 703 258
parameters); the selective-convolution paper pads the shortcut with zeros and pools between the
stages, for ResNet-164 (1 661 274), ResNeXt-29 8x64d (33 751 370) and, on ImageNet, ResNet-50.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from chanprune.components import Count, Width, model
from chanprune.models.parts import (
    ZeroPadShortcut,
    check_image_size,
    depth_of,
    initialise,
    resnext_widths,
    scaled,
)

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, each behind batch norm and ReLU, beside a shortcut.

    Args:
        inputs: Channels of the input.
        inner: Channels of the 3x3 convolution.
        outputs: Channels of the output.
        stride: Of the 3x3 convolution.
        groups: Of the 3x3 convolution.
        shortcut: What the shortcut does where the shape changes.
    """

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        stride: int,
        groups: int,
        shortcut: Literal["projection", "zero_pad"],
    ):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride > 1:
            if shortcut == "projection":
                self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            else:
                self.shortcut = ZeroPadShortcut(outputs - inputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        y = self.conv1(torch.relu(self.bn1(x)))
        y = self.conv2(torch.relu(self.bn2(y)))
        y = self.conv3(torch.relu(self.bn3(y)))
        result: Tensor = self.shortcut(x) + y
        return result


class PreResNet(nn.Module):
    """Stem, stages of bottlenecks, batch norm, ReLU, average pool, linear layer.

    With `large_stem` the first convolution is 7x7 with stride 2, and max pooling follows.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        stem: int,
        inner: tuple[int, ...],
        outer: tuple[int, ...],
        *,
        groups: int,
        shortcut: Literal["projection", "zero_pad"],
        downsample: Literal["stride", "pool"],
        stem_stride: int,
        num_classes: int,
        in_channels: int,
        large_stem: bool = False,
    ):
        super().__init__()
        kernel = 7 if large_stem else 3
        self.conv = nn.Conv2d(
            in_channels, stem, kernel, stem_stride, padding=kernel // 2, bias=False
        )
        self.shrink: nn.Module = nn.MaxPool2d(3, 2, 1) if large_stem else nn.Identity()
        inputs = stem
        stages: list[nn.Module] = []
        for number, (length, middle, outputs) in enumerate(zip(blocks, inner, outer, strict=True)):
            shrinks = number > 0
            if shrinks and downsample == "pool":
                stages.append(nn.AvgPool2d(2))
            stride = 2 if shrinks and downsample == "stride" else 1
            first = Bottleneck(inputs, middle, outputs, stride, groups, shortcut)
            others = [
                Bottleneck(outputs, middle, outputs, 1, groups, shortcut) for _ in range(length - 1)
            ]
            stages.append(nn.Sequential(first, *others))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(inputs)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, num_classes)
        initialise(self, norm_scale=0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) images to (N, classes) logits."""
        x = torch.relu(self.bn(self.stages(self.shrink(self.conv(x)))))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


@model("preresnet29", "preresnet164")
def build_preresnet(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    width: Width = 1.0,
    shortcut: Literal["projection", "zero_pad"] = "projection",
    downsample: Literal["stride", "pool"] = "stride",
    stem_stride: Count = 1,
) -> PreResNet:
    """Build the bottleneck network of 29 or 164 layers; depth = 9 blocks + 2.

    Args:
        name: "preresnet29" or "preresnet164".
        num_classes: Number of classes.
        in_channels: Channels of the image.
        image_size: Height and width of the image in pixels.
        width: Every number of channels is multiplied by this.
        shortcut: Where the shape changes: "projection" (slimming) or "zero_pad" (selective
            convolution).
        downsample: "stride": of the 3x3 convolution; "pool": between the stages (selective
            convolution).
        stem_stride: Of the first convolution (2 for images of 64 pixels in the
            selective-convolution paper).

    Raises:
        UserError: The image is too small.
    """
    check_image_size(name, image_size, smallest=8 * stem_stride)
    inner = tuple(scaled(channels, width) for channels in (16, 32, 64))
    return PreResNet(
        ((depth_of(name) - 2) // 9,) * 3,
        inner[0],
        inner,
        tuple(EXPANSION * channels for channels in inner),
        groups=1,
        shortcut=shortcut,
        downsample=downsample,
        stem_stride=stem_stride,
        num_classes=num_classes,
        in_channels=in_channels,
    )


@model("preresnet50")
def build_preresnet50(
    *, num_classes: int, in_channels: int, image_size: int, width: Width = 1.0
) -> PreResNet:
    """Build the pre-activation ResNet-50 of the selective-convolution paper, 22 780 456 parameters.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the image.
        image_size: Height and width of the image in pixels.
        width: Every number of channels is multiplied by this.

    Raises:
        UserError: The image is too small.
    """
    check_image_size("preresnet50", image_size, smallest=32)
    inner = tuple(scaled(channels, width) for channels in (64, 128, 256, 512))
    return PreResNet(
        (3, 4, 6, 3),
        inner[0],
        inner,
        tuple(EXPANSION * channels for channels in inner),
        groups=1,
        shortcut="zero_pad",
        downsample="pool",
        stem_stride=2,
        num_classes=num_classes,
        in_channels=in_channels,
        large_stem=True,
    )


@model("preresnext29")
def build_preresnext(
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    width: Width = 1.0,
    cardinality: Count = 8,
    base_width: Count = 64,
    stem_stride: Count = 1,
) -> PreResNet:
    """Build the pre-activation ResNeXt-29 of the selective-convolution paper.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the image.
        image_size: Height and width of the image in pixels.
        width: Every number of channels is multiplied by this.
        cardinality: Groups of the 3x3 convolutions.
        base_width: Channels of one such group in the first stage.
        stem_stride: Of the first convolution (2 for images of 64 pixels in the
            selective-convolution paper).

    Raises:
        UserError: The image is too small.
    """
    check_image_size("preresnext29", image_size, smallest=8 * stem_stride)
    stem, inner, outer = resnext_widths(width, cardinality, base_width)
    return PreResNet(
        (3, 3, 3),
        stem,
        inner,
        outer,
        groups=cardinality,
        shortcut="zero_pad",
        downsample="pool",
        stem_stride=stem_stride,
        num_classes=num_classes,
        in_channels=in_channels,
    )
