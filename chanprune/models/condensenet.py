"""CondenseNet for small images (Huang et al., CVPR 2018): learned group convolutions, fully dense.

While it trains, a layer's 1x1 convolution reads all channels, and learned group convolution decides
which inputs each of its groups will keep. Converted, the layer gathers those inputs (some of them
for several groups), convolves them in groups and shuffles the result; the classifier reads half of
its features unless told otherwise. Blocks are joined by pooling alone, so that every layer reads
all earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from chanprune.components import Count, Share, Width, model
from chanprune.models.parts import check_image_size, depth_of, initialise, scaled
from chanprune.processes.errors import UserError

STAGES = {
    50: (8, 8, 8),
    74: (12, 12, 12),
    86: (14, 14, 14),
    98: (16, 16, 16),
    110: (18, 18, 18),
    122: (20, 20, 20),
    182: (30, 30, 30),
}
GROWTH = {depth: (12, 24, 48) if depth == 182 else (8, 16, 32) for depth in STAGES}
BOTTLENECK = 4


class Select(nn.Module):
    """Gather channels of the input; they may repeat.

    Args:
        inputs: Channels of the input.
        outputs: Number of channels to gather: the first ones, until `index` is set.
    """

    index: Tensor

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.register_buffer("index", torch.arange(outputs) % inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to (N, C_selected, ...)."""
        return torch.index_select(x, 1, self.index)


class DenseLayer(nn.Module):
    """A 1x1 convolution to four times the growth and a grouped 3x3 one, appended to the input.

    Args:
        inputs: Channels of the input.
        growth: Channels that the layer appends.
        groups: Of both convolutions.
        condensation: Of a converted layer, each group reads 1 / condensation of the inputs.
        converted: The 1x1 convolution is in groups, behind a selection and before a shuffle.
        dropout: Share of the 1x1 convolution's inputs that are zero in a training step.
    """

    def __init__(
        self,
        inputs: int,
        growth: int,
        *,
        groups: int,
        condensation: int,
        converted: bool,
        dropout: float,
    ):
        super().__init__()
        inner = BOTTLENECK * growth
        read = inputs // condensation * groups if converted else inputs
        self.select: nn.Module = Select(inputs, read) if converted else nn.Identity()
        self.bn1 = nn.BatchNorm2d(read)
        self.dropout: nn.Module = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv1 = nn.Conv2d(read, inner, 1, groups=groups if converted else 1, bias=False)
        self.shuffle: nn.Module = nn.ChannelShuffle(groups) if converted else nn.Identity()
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, growth, 3, padding=1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + growth, H, W)."""
        y = self.dropout(torch.relu(self.bn1(self.select(x))))
        y = self.shuffle(self.conv1(y))
        return torch.cat([x, self.conv2(torch.relu(self.bn2(y)))], 1)


class CondenseNet(nn.Module):
    """Stem, three dense blocks with pooling between, batch norm, ReLU, pool, linear layer.

    Attributes:
        groups: Of the convolutions in dense layers.
        condensation: Each group of a converted layer reads 1 / condensation of the inputs.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        growth: tuple[int, ...],
        *,
        groups: int,
        condensation: int,
        converted: bool,
        half_classifier: bool,
        dropout: float,
        num_classes: int,
        in_channels: int,
    ):
        super().__init__()
        self.groups = groups
        self.condensation = condensation
        width = 2 * growth[0]
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        for number, (length, rate) in enumerate(zip(layers, growth, strict=True)):
            if number > 0:
                stages.append(nn.AvgPool2d(2))
            stages.append(
                nn.Sequential(
                    *(
                        DenseLayer(
                            width + i * rate,
                            rate,
                            groups=groups,
                            condensation=condensation,
                            converted=converted,
                            dropout=dropout,
                        )
                        for i in range(length)
                    )
                )
            )
            width += length * rate
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        is_cut = converted and half_classifier
        features = width // 2 if is_cut else width
        self.select: nn.Module = Select(width, features) if is_cut else nn.Identity()
        self.classifier = nn.Linear(features, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) images to (N, classes) logits."""
        x = torch.relu(self.bn(self.stages(self.conv(x))))
        logits: Tensor = self.classifier(self.select(self.pool(x).flatten(1)))
        return logits

    def learned_convolutions(self) -> dict[str, nn.Conv2d]:
        """Return the 1x1 convolutions that can be put in groups, by name; none once they are."""
        layers = [(n, m) for n, m in self.named_modules() if isinstance(m, DenseLayer)]
        return {
            f"{name}.conv1": layer.conv1
            for name, layer in layers
            if isinstance(layer.select, nn.Identity)
        }

    @torch.no_grad()
    def converted_state(
        self, inputs: Mapping[str, Tensor], features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the tensors of the converted network; they share nothing with this one.

        Filter o of a learned convolution belongs to group o mod G. The converted one has the
        filters of a group next to each other, and the shuffle behind it puts the outputs back.

        Args:
            inputs: Learned convolution -> (G, I // condensation) the inputs that each group reads.
            features: (width // 2,) what the classifier reads; None: everything, as it is with
                half_classifier=False.
        """
        state = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        for name, read in inputs.items():
            layer = name.removesuffix("conv1")
            state[f"{layer}select.index"] = read.flatten()
            for vector in ("weight", "bias", "running_mean", "running_var"):
                state[f"{layer}bn1.{vector}"] = state[f"{layer}bn1.{vector}"][read.flatten()]
            filters = state[f"{name}.weight"].unflatten(0, (-1, self.groups)).unbind(1)
            state[f"{name}.weight"] = torch.cat(
                [own[:, index] for own, index in zip(filters, read, strict=True)]
            )
        if features is not None:
            state["select.index"] = features
            state["classifier.weight"] = state["classifier.weight"][:, features]
        return state


@model(
    "condensenet50",
    "condensenet74",
    "condensenet86",
    "condensenet98",
    "condensenet110",
    "condensenet122",
    "condensenet182",
)
def build_condensenet(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    width: Width = 1.0,
    groups: Count = 4,
    condensation: Count = 4,
    converted: bool = False,
    half_classifier: bool = True,
    dropout: Share = 0.0,
) -> CondenseNet:
    """Build CondenseNet-50, 74, 86, 98, 110, 122 or 182.

    Args:
        name: "condensenet50", and so on.
        num_classes: Number of classes.
        in_channels: Channels of the image.
        image_size: Height and width of the image in pixels.
        width: Every number of channels is multiplied by this.
        groups: Of the grouped convolutions.
        condensation: A converted layer's groups read 1 / condensation of the inputs each.
        converted: False: as it trains; true: gather, grouped convolution, shuffle.
        half_classifier: A converted network's classifier reads half of its features; false: all.
        dropout: Before the 1x1 convolutions, while training; the authors take 0.1 for
            CondenseNet-182.

    Raises:
        UserError: The image is too small, or the condensation too strong.
    """
    check_image_size(name, image_size, smallest=8)
    depth = depth_of(name)
    if condensation > 2 * groups:
        raise UserError(
            f"model.condensation={condensation}: each of {groups} groups would read no channel of "
            f"the first layer; must be at most {2 * groups}"
        )
    growth = tuple(scaled(rate, width, multiple=groups) for rate in GROWTH[depth])
    return CondenseNet(
        STAGES[depth],
        growth,
        groups=groups,
        condensation=condensation,
        converted=converted,
        half_classifier=half_classifier,
        dropout=dropout,
        num_classes=num_classes,
        in_channels=in_channels,
    )
