"""The multi-layer perceptron of Network Slimming's table 3: 784-500-300-10, for 28 x 28 images."""

from __future__ import annotations

from torch import Tensor, nn

from chanprune.components import Width, model
from chanprune.models.parts import initialise, scaled
from chanprune.processes.errors import UserError

INPUTS = 784
HIDDEN = (500, 300)


class Mlp(nn.Module):
    """Linear layers, each but the last before batch norm and ReLU; a neuron is a channel.

    Args:
        inputs: Pixels of an image.
        hidden: Neurons of the hidden layers.
        num_classes: Number of classes.
    """

    def __init__(self, inputs: int, hidden: tuple[int, ...], num_classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        for outputs in hidden:
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)
        initialise(self, norm_scale=0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) images to (N, classes) logits."""
        logits: Tensor = self.classifier(self.features(x.flatten(1)))
        return logits


@model("mlp784")
def build_mlp(*, num_classes: int, in_channels: int, image_size: int, width: Width = 1.0) -> Mlp:
    """Build the perceptron of 784 inputs and two hidden layers, of 500 and 300 neurons.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the image.
        image_size: Height and width of the image in pixels.
        width: The number of neurons is multiplied by this.

    Raises:
        UserError: The image has another number of values.
    """
    if in_channels * image_size**2 != INPUTS:
        raise UserError(
            f"mlp784 reads 784 values, one channel of 28 x 28 pixels, not {in_channels} of "
            f"{image_size} x {image_size}; set dataset.image_size=28, on images of one channel"
        )
    hidden = tuple(scaled(neurons, width) for neurons in HIDDEN)
    return Mlp(INPUTS, hidden, num_classes)
