"""C2f network: backbone, neck and three output scales as in today's detectors, with a classifier.

The blocks are those that Ultralytics publish for YOLOv8 (github.com/ultralytics/ultralytics,
`yolov8.yaml`): C2f splits its channels and joins them to what each bottleneck makes of the second
half; SPPF joins a map to itself pooled once, twice and three times. At width 1 the channels are
those of YOLOv8n, whose backbone and neck have 2 259 536 parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chanprune.components import Count, Width, model
from chanprune.models.parts import check_image_size, initialise, scaled

CHANNELS = (16, 32, 64, 128, 256)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution, its batch norm and SiLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU())


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, beside a shortcut or without one.

    Args:
        channels: Of the input, of the output and between.
        shortcut: Whether the input is added to the output.
    """

    def __init__(self, channels: int, shortcut: bool):
        super().__init__()
        self.layers = nn.Sequential(conv(channels, channels, 3), conv(channels, channels, 3))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        y: Tensor = self.layers(x)
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """1x1 convolution, split in two; each bottleneck reads the last part and appends another.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output; even.
        blocks: Number of bottlenecks.
        shortcut: Whether they have one.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, shortcut: bool = False):
        super().__init__()
        inner = outputs // 2
        self.split = conv(inputs, 2 * inner, 1)
        self.bottlenecks = nn.ModuleList(Bottleneck(inner, shortcut) for _ in range(blocks))
        self.join = conv((2 + blocks) * inner, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H, W)."""
        first, second = self.split(x).chunk(2, dim=1)
        parts = [first, second]
        for bottleneck in self.bottlenecks:
            parts.append(bottleneck(parts[-1]))
        joined: Tensor = self.join(torch.cat(parts, dim=1))
        return joined


class Sppf(nn.Module):
    """Spatial pyramid pooling, fast: a map beside its maxima over 5, 9 and 13 pixels.

    Args:
        channels: Of the input and of the output; even.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.reduce = conv(channels, channels // 2, 1)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.join = conv(channels // 2 * 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        parts = [self.reduce(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        joined: Tensor = self.join(torch.cat(parts, dim=1))
        return joined


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """Repeat pixels of (N, C, H, W) until the map is as large as another."""
    return F.interpolate(x, size=like.shape[2:], mode="nearest")


class C2fPyramid(nn.Module):
    """Backbone and neck: a map of each of three scales, that a detector's head would read.

    Args:
        in_channels: Channels of the image.
        channels: Of the stem and of the four stages; even.
        depth: Every number of bottlenecks is multiplied by this.
    """

    def __init__(self, in_channels: int, channels: tuple[int, ...], depth: int = 1):
        super().__init__()
        stem, stage1, small, middle, large = channels
        self.stem = conv(in_channels, stem, 3, 2)
        self.stage1 = self._stage(stem, stage1, depth)
        self.stage2 = self._stage(stage1, small, 2 * depth)
        self.stage3 = self._stage(small, middle, 2 * depth)
        self.stage4 = nn.Sequential(*self._stage(middle, large, depth), Sppf(large))
        self.top_down1 = C2f(large + middle, middle, depth)
        self.top_down2 = C2f(middle + small, small, depth)
        self.down1 = conv(small, small, 3, 2)
        self.bottom_up1 = C2f(small + middle, middle, depth)
        self.down2 = conv(middle, middle, 3, 2)
        self.bottom_up2 = C2f(middle + large, large, depth)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
        return nn.Sequential(conv(inputs, outputs, 3, 2), C2f(outputs, outputs, blocks, True))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (N, C, H, W) images to maps of an 8th, a 16th and a 32nd of the size."""
        c3 = self.stage2(self.stage1(self.stem(x)))
        c4 = self.stage3(c3)
        c5 = self.stage4(c4)
        p4 = self.top_down1(torch.cat([enlarged(c5, c4), c4], dim=1))
        p3 = self.top_down2(torch.cat([enlarged(p4, c3), c3], dim=1))
        p4 = self.bottom_up1(torch.cat([self.down1(p3), p4], dim=1))
        p5 = self.bottom_up2(torch.cat([self.down2(p4), c5], dim=1))
        return p3, p4, p5


class C2fClassifier(nn.Module):
    """The means of the pyramid's three maps, beside each other, and a linear layer.

    Args:
        in_channels: Channels of the image.
        channels: Of the stem and of the four stages; even.
        depth: Every number of bottlenecks is multiplied by this.
        num_classes: Number of classes.
    """

    def __init__(self, in_channels: int, channels: tuple[int, ...], depth: int, num_classes: int):
        super().__init__()
        self.pyramid = C2fPyramid(in_channels, channels, depth)
        self.classifier = nn.Linear(sum(channels[2:]), num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) images to (N, classes) logits."""
        features = torch.cat([scale.mean((2, 3)) for scale in self.pyramid(x)], dim=1)
        logits: Tensor = self.classifier(features)
        return logits


@model("c2f")
def build_c2f(
    *, num_classes: int, in_channels: int, image_size: int, width: Width = 1.0, depth: Count = 1
) -> C2fClassifier:
    """Build the C2f network with a classifier: at width 1 and depth 1, YOLOv8n's blocks.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the image.
        image_size: Height and width of the image in pixels.
        width: Every number of channels is multiplied by this; 2 gives YOLOv8s's.
        depth: Every number of bottlenecks is multiplied by this; 2 gives YOLOv8m's.

    Raises:
        UserError: The image is too small.
    """
    check_image_size("c2f", image_size, smallest=16)
    channels = tuple(scaled(number, width, multiple=2) for number in CHANNELS)
    return C2fClassifier(in_channels, channels, depth, num_classes)
