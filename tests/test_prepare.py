"""What a run cannot do is refused before its first step, and before anything is written."""

import pytest
import torch
from torch import Tensor, nn

from chanprune.channels import UnsupportedNetwork, trace
from chanprune.config.schema import validate
from chanprune.models import vgg
from chanprune.pipeline.prepare import prepare
from chanprune.processes.errors import UserError
from tests.networks import Residual
from tests.test_configs import composed

TINY = ("model=vgg11", "model.width=0.0625", "dataset.image_size=16", "device=cpu")


def prepared(*overrides: str):
    return prepare(validate(composed(*TINY, *overrides)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=timm", "model.name=nf_resnet26", "method=cucb"), "cannot be run in place"),
        (("model=torchvision", "model.name=vgg11"), "no batch norms"),
        (
            ("model=torchvision", "model.name=swin_t", "method=slimming"),
            "no batch norm|no scale",
        ),
    ],
)
def test_networks_that_cannot_be_pruned(overrides, message):
    if "timm" in overrides[0]:
        pytest.importorskip("timm")
    config = composed(*overrides, "dataset.image_size=64", "device=cpu")
    with pytest.raises(UserError, match=message) as refusal:
        prepare(validate(config))
    assert "\n" not in str(refusal.value)


def test_one_value_per_channel_is_refused():
    with pytest.raises(UserError, match=r"batches of 1 images of 16 x 16.*larger train.batch_size"):
        prepared("train.batch_size=1")
    prepared("train.batch_size=1", "dataset.image_size=32", "model.norm=false", "method=l1norm")
    prepared("train.batch_size=2")


class Mixing(Residual):
    """A hook, which tracing does not see, changes what a layer puts out."""

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.head = nn.Linear(12, sizes["num_classes"])
        self.stem[0] = nn.Conv2d(sizes["in_channels"], 8, 3, padding=1, bias=False)
        self.inner[0].register_forward_hook(lambda module, _, output: output + output.mean(1, True))


class Auxiliary(Mixing):
    """A second output in train mode."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.inner[0]._forward_hooks.clear()

    def forward(self, x: Tensor):
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


def built(network):
    return lambda name, width, **options: network(**options)


def test_the_compaction_is_rehearsed(monkeypatch):
    monkeypatch.setattr(vgg, "build_vgg", built(Mixing))
    with pytest.raises(UserError, match="vgg11: compact and masked network differ"):
        prepared("method=l1norm")
    prepared("method=none")


def test_outputs_besides_the_logits_are_refused(monkeypatch):
    monkeypatch.setattr(vgg, "build_vgg", built(Auxiliary))
    for method in ("l1norm", "none"):
        with pytest.raises(UserError, match=r"puts out tuple in train mode, not \(\d+, 10\)"):
            prepared(f"method={method}")


def test_the_rehearsal_draws_no_random_numbers(monkeypatch):
    """Training gives the same bits whatever was rehearsed."""
    prepared("method=none")
    expected = torch.rand(3)
    for overrides in (("method=l1norm",), ("method=slimming", "train.batch_size=2")):
        prepared(*overrides)
        assert torch.equal(torch.rand(3), expected)


def test_images_that_do_not_fit_are_said_once(capfd):
    with pytest.raises(UnsupportedNetwork):
        trace(Mixing(num_classes=5, in_channels=4), (3, 16, 16))
    assert capfd.readouterr().err == ""
