"""How fast the forms are in which `load` gives a network: channels-last, batch norms folded.

python scripts/bench_load.py [threads]

The forms of a compact network take turns in one process, so that whatever else the machine does
slows all of them. Each figure is the time of the network as it was laid out before, with channels
first and its batch norms, over the time of the form: above 1 is faster. Then the largest difference
of the outputs, relative to the largest.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torchvision.models
from torch import Tensor, nn

import chanprune
from chanprune.channels.fold import fold
from chanprune.channels.modes import copied
from chanprune.models import build

ROUNDS, SECONDS = 50, 0.02
BATCHES = (1, 8)
SMALL, LARGE = (3, 32, 32), (3, 224, 224)


def ours(name: str, **options: object) -> Callable[[], nn.Module]:
    """Return what builds one of this package's networks for small images."""
    return lambda: build(name, num_classes=10, in_channels=3, image_size=32, **options)


def library(name: str) -> Callable[[], nn.Module]:
    """Return what builds one of torchvision's networks."""
    return lambda: torchvision.models.get_model(name, weights=None)


# What builds the network, (C, H, W), and the share of its multiply-accumulates that stays.
NETWORKS = {
    "vgg16": (ours("vgg16"), SMALL, 0.05),
    "densenet40": (ours("densenet40"), SMALL, 0.5),
    "resnet56": (ours("resnet56"), SMALL, 0.5),
    "resnet50": (library("resnet50"), LARGE, 0.27),
    "mobilenet_v2": (library("mobilenet_v2"), LARGE, 0.5),
    "densenet121": (library("densenet121"), LARGE, 0.5),
}


def compacted(make: Callable[[], nn.Module], shape: tuple[int, ...], macs: float) -> nn.Module:
    """Return the compact network, with channels first."""
    torch.manual_seed(0)
    model = make().eval()
    graph = chanprune.trace(model, shape)
    plan = chanprune.select(model, graph, target_macs=macs)
    return chanprune.compact(model, graph, plan, check=False).eval()


def forms_of(small: nn.Module, shape: tuple[int, ...]) -> dict[str, nn.Module]:
    """Return the network in every form; the first is the one that others are compared with."""
    folded = fold(small, shape).model
    last = torch.channels_last
    return {
        "before": small,
        "channels-last": copied(small).to(memory_format=last),  # type: ignore[call-overload]
        "folded": folded,
        "both": copied(folded).to(memory_format=last),  # type: ignore[call-overload]
    }


def seconds(model: nn.Module, images: Tensor) -> float:
    """Return the median time of a call, over at least `SECONDS`."""
    times: list[float] = []
    while sum(times) < SECONDS:
        began = time.perf_counter()
        model(images)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def ratios(forms: dict[str, nn.Module], images: Tensor) -> dict[str, float]:
    """Return how many times as fast as the first each form is, the median over the rounds."""
    for model in forms.values():
        seconds(model, images)
    found: dict[str, list[float]] = {form: [] for form in forms}
    for number in range(ROUNDS):
        order = [*forms][number % len(forms) :] + [*forms][: number % len(forms)]
        took = {form: seconds(forms[form], images) for form in order}
        for form, own in found.items():
            own.append(took["before"] / took[form])
    return {form: statistics.median(own) for form, own in found.items()}


@torch.inference_mode()
def main() -> None:
    """Print a line for each network and batch."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    print(f"{torch.get_num_threads()} threads; how many times as fast as before")
    for name, (make, shape, macs) in NETWORKS.items():
        forms = forms_of(compacted(make, shape, macs), shape)
        for batch in BATCHES:
            images = torch.randn(batch, *shape)
            expected = forms["before"](images)
            error = max(
                ((model(images) - expected).abs().max() / expected.abs().max()).item()
                for model in forms.values()
            )
            told = "  ".join(f"{f} {r:5.2f}" for f, r in ratios(forms, images).items())
            print(f"{name:13s} batch {batch}  {told}  difference {error:.0e}", flush=True)


if __name__ == "__main__":
    main()
