"""A compact network computes what the masked one does: for images of any size, in both modes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chanprune.channels import Plan, compact, masked, trace
from tests.networks import conv_norm, randomise

SHAPE = (3, 16, 16)


def double(model: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(model, seed).double().eval()


class Halves(nn.Module):
    """One half of a convolution's channels goes through a layer of its own, and may be gone."""

    def __init__(self, layer: nn.Module, size: int = 8) -> None:
        super().__init__()
        self.body, self.left = conv_norm(3, 16), layer
        self.right = nn.Conv2d(size, 4, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.body(x).chunk(2, 1)
        left = self.right(torch.sigmoid(self.left(F.relu(left))))
        return self.head(torch.cat([left.mean((2, 3)), right.mean((2, 3))], 1))


LAYERS = {
    "padded": nn.Conv2d(8, 8, 3, padding=1),
    "without bias": nn.Conv2d(8, 8, 5, padding=2, bias=False),
    "in steps": nn.Conv2d(8, 8, 3, stride=2, padding=1, dilation=2),
    "same": nn.Conv2d(8, 8, 4, padding="same", dilation=2),
    "transposed": nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_without_inputs_puts_out_its_bias_at_every_position(name):
    model = double(Halves(LAYERS[name]))
    graph = trace(model, SHAPE)
    cut = graph.cut(plan := Plan({"body.0": [8, 9, 10, 13]}))
    result = compact(model, graph, plan)
    group = result.graph.groups["left"]
    twice = compact(result.model, result.graph, Plan({group.name: [0, 2, 5]}))
    assert twice.max_error <= 1e-9
    for height, width in ((16, 16), (8, 24), (13, 9)):
        images = torch.randn(2, 3, height, width, dtype=torch.float64)
        torch.testing.assert_close(result.model(images), masked(model, cut)(images))
    again = trace(result.model, SHAPE)
    assert compact(result.model, again, Plan({"body.0": [1, 2]})).max_error <= 1e-9
