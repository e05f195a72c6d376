"""ResNet for small images (He et al., CVPR 2016, section 4.2): three stages of basic blocks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from chanprune.components import Width, model
from chanprune.models.parts import (
    ZeroPadShortcut,
    check_image_size,
    depth_of,
    initialise,
    scaled,
)

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; ReLU behind the sum.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        stride: Of the first convolution.
        option: What the shortcut does where the shape changes: "A" zero padding, "B" projection.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, option: Literal["A", "B"]):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride > 1:
            if option == "A":
                self.shortcut = ZeroPadShortcut(outputs - inputs, stride)
            else:
                projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, three stages of `blocks` basic blocks, average pool, linear layer."""

    def __init__(
        self,
        blocks: int,
        widths: tuple[int, ...],
        option: Literal["A", "B"],
        num_classes: int,
        in_channels: int,
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        stages = []
        for stage, outputs in enumerate(widths):
            strides = [1 if stage == 0 else 2, *[1] * (blocks - 1)]
            ends = [inputs, *[outputs] * (blocks - 1)]
            stages.append(
                nn.Sequential(
                    *(BasicBlock(i, outputs, s, option) for i, s in zip(ends, strides, strict=True))
                )
            )
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) images to (N, classes) logits."""
        x = self.stages(torch.relu(self.bn(self.conv(x))))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


@model("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
def build_resnet(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    width: Width = 1.0,
    shortcut: Literal["A", "B"] = "A",
) -> ResNet:
    """Build ResNet-20, 32, 44, 56 or 110; depth = 6 blocks + 2.

    Args:
        name: "resnet20", and so on.
        num_classes: Number of classes.
        in_channels: Channels of the image.
        image_size: Height and width of the image in pixels.
        width: Every number of channels is multiplied by this.
        shortcut: Where the shape changes: "A" zero padding, as in the paper's CIFAR networks; "B"
            projection.

    Raises:
        UserError: The image is too small.
    """
    check_image_size(name, image_size, smallest=8)
    widths = tuple(scaled(channels, width) for channels in WIDTHS)
    return ResNet((depth_of(name) - 2) // 6, widths, shortcut, num_classes, in_channels)
