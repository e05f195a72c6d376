"""ResNeXt-29 for small images (Xie et al., CVPR 2017): post-activation, with projections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chanprune.components import Count, Width, model
from chanprune.models.parts import check_image_size, initialise, resnext_widths


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolution beside a shortcut; ReLU behind the sum.

    Args:
        inputs: Channels of the input.
        inner: Channels of the grouped convolution.
        outputs: Channels of the output.
        stride: Of the grouped convolution.
        groups: Of the grouped convolution (the cardinality).
    """

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, groups: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride > 1:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNeXt(nn.Module):
    """Stem, three stages of three bottlenecks, average pool, linear layer."""

    def __init__(
        self,
        stem: int,
        inner: tuple[int, ...],
        outer: tuple[int, ...],
        groups: int,
        stem_stride: int,
        num_classes: int,
        in_channels: int,
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, stem, 3, stem_stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(stem)
        inputs = stem
        stages = []
        for number, (middle, outputs) in enumerate(zip(inner, outer, strict=True)):
            first = Bottleneck(inputs, middle, outputs, 1 if number == 0 else 2, groups)
            others = [Bottleneck(outputs, middle, outputs, 1, groups) for _ in range(2)]
            stages.append(nn.Sequential(first, *others))
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


@model("resnext29")
def build_resnext(
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    width: Width = 1.0,
    cardinality: Count = 8,
    base_width: Count = 64,
    stem_stride: Count = 1,
) -> ResNeXt:
    """Build ResNeXt-29; 8 x 64d has 34 426 698 parameters, 16 x 64d 68 155 210.

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
    check_image_size("resnext29", image_size, smallest=8 * stem_stride)
    stem, inner, outer = resnext_widths(width, cardinality, base_width)
    return ResNeXt(
        stem,
        inner,
        outer,
        cardinality,
        stem_stride,
        num_classes,
        in_channels,
    )
