"""VGG with batch norm for small images (Simonyan and Zisserman 2015; the CIFAR form of the papers).

Four max-pools, then an average over the positions that are left: 2 x 2 for 32 x 32 images. The
linear head is Network Slimming's; `fc512` is the head behind the papers' 1.50e7 parameters: with
batch norm and without convolution biases in Li et al. as reproduced by Rethinking (14 987 722), and
the other way round (head_norm=False, conv_bias=True) in the channel-prioritized paper (14 990 922).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from chanprune.components import Width, model
from chanprune.models.parts import check_image_size, initialise, scaled

STAGES = {
    "vgg11": ([64], [128], [256, 256], [512, 512], [512, 512]),
    "vgg13": ([64, 64], [128, 128], [256, 256], [512, 512], [512, 512]),
    "vgg16": ([64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3),
    "vgg19": ([64, 64], [128, 128], [256] * 4, [512] * 4, [512] * 4),
}
SMALLEST_IMAGE = 16


class VGG(nn.Module):
    """Conv-BN-ReLU stages, pooled in between, and a classifier.

    Args:
        stages: Channels of the convolutions, stage by stage.
        num_classes: Number of classes.
        in_channels: Channels of the image.
        head: "linear", one linear layer; or "fc512", a hidden layer of 512 units and a linear
            layer.
        head_norm: Batch norm behind the hidden layer of `fc512`.
        conv_bias: Biases in the convolutions, which the batch norms make superfluous.
        norm: Batch norms; without them the convolutions need biases.
        hidden: Units of the hidden layer of `fc512`.
    """

    def __init__(
        self,
        stages: tuple[list[int], ...],
        *,
        num_classes: int,
        in_channels: int,
        head: Literal["linear", "fc512"] = "linear",
        head_norm: bool = True,
        conv_bias: bool = False,
        norm: bool = True,
        hidden: int = 512,
    ):
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        width = in_channels
        for stage, channels in enumerate(stages, start=1):
            for number, outputs in enumerate(channels, start=1):
                name = f"{stage}_{number}"
                layers[f"conv{name}"] = nn.Conv2d(width, outputs, 3, padding=1, bias=conv_bias)
                if norm:
                    layers[f"bn{name}"] = nn.BatchNorm2d(outputs)
                layers[f"relu{name}"] = nn.ReLU(inplace=True)
                width = outputs
            if stage < len(stages):
                layers[f"pool{stage}"] = nn.MaxPool2d(2)
        self.features = nn.Sequential(layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        if head == "linear":
            self.classifier: nn.Module = nn.Linear(width, num_classes)
        else:
            classifier: OrderedDict[str, nn.Module] = OrderedDict(fc1=nn.Linear(width, hidden))
            if norm and head_norm:
                classifier["bn1"] = nn.BatchNorm1d(hidden)
            classifier["relu1"] = nn.ReLU(inplace=True)
            classifier["fc2"] = nn.Linear(hidden, num_classes)
            self.classifier = nn.Sequential(classifier)
        initialise(self, norm_scale=0.5, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) images to (N, classes) logits."""
        logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return logits


@model("vgg11", "vgg13", "vgg16", "vgg19")
def build_vgg(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    width: Width = 1.0,
    head: Literal["linear", "fc512"] = "linear",
    head_norm: bool = True,
    conv_bias: bool = False,
    norm: bool = True,
) -> VGG:
    """Build VGG-11, 13, 16 or 19.

    Args:
        name: "vgg11", and so on.
        num_classes: Number of classes.
        in_channels: Channels of the image.
        image_size: Height and width of the image in pixels.
        width: Every number of channels is multiplied by this.
        head: "linear": one layer; "fc512": a hidden layer of 512, as behind the papers' 1.50e7.
        head_norm: Batch norm behind fc512's hidden layer.
        conv_bias: Biases in the convolutions, which batch norm makes superfluous.
        norm: Batch norms; without them set conv_bias.

    Raises:
        UserError: The image is smaller than the four poolings can take.
    """
    check_image_size(name, image_size, SMALLEST_IMAGE)
    stages = tuple([scaled(channels, width) for channels in stage] for stage in STAGES[name])
    return VGG(
        stages,
        num_classes=num_classes,
        in_channels=in_channels,
        head=head,
        head_norm=head_norm,
        conv_bias=conv_bias,
        norm=norm,
        hidden=scaled(512, width),
    )
