"""Time every fidelity level against its extracted network: scripts/bench_levels.py [--run DIR].

Without a run, VGG-16 as it is built. All levels and all extracted networks take turns, batch after
batch, so that a busy machine slows them alike; the medians' ratios are what counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from tabulate import tabulate
from torch import nn

import chanprune
from chanprune.channels import Fidelity, trace
from chanprune.models import build

LEVELS = (0.25, 0.5, 0.75, 1.0)
HEADS = {
    "level": "level",
    "views_ms": "views ms",
    "extracted_ms": "extracted ms",
    "views_over_extracted": "views / extracted",
    "level_over_whole": "level / whole",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="a run directory; default: VGG-16, not trained")
    parser.add_argument("--width", type=float, default=1.0, help="of VGG-16")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.run:
        model = chanprune.load(options.run)
        fidelity, shape = model.fidelity, model.input_shape
    else:
        shape = (3, 32, 32)
        model = build(
            "vgg16", num_classes=10, in_channels=3, image_size=32, width=options.width
        ).eval()
        fidelity = Fidelity(model, trace(model, shape))
    model.to(memory_format=torch.channels_last)
    results = [measure(model, fidelity, shape, batch, options.rounds) for batch in options.batch]
    if options.json:
        print(json.dumps(results))
        return
    for result in results:
        print(f"batch {result['batch']}")
        print(tabulate(result["levels"], HEADS, floatfmt=".3f"))


def measure(
    model: nn.Module, fidelity: Fidelity, shape: tuple[int, ...], batch: int, rounds: int
) -> dict:
    """Take the median seconds of a forward pass at every level, by views and extracted."""
    images = torch.randn(batch, *shape).to(memory_format=torch.channels_last)
    extracted = {
        level: fidelity.extract(level).to(memory_format=torch.channels_last).eval()
        for level in LEVELS
    }
    seconds: dict[tuple[str, float], list[float]] = {}
    for number in range(rounds + 3):
        for level in LEVELS:
            fidelity.set(level)
            for kind, network in (("views", model), ("extracted", extracted[level])):
                took = forward(network, images)
                if number >= 3:
                    seconds.setdefault((kind, level), []).append(took)
    fidelity.set(1.0)
    ms = {key: 1000 * statistics.median(times) for key, times in seconds.items()}
    levels = [
        {
            "level": level,
            "views_ms": ms["views", level],
            "extracted_ms": ms["extracted", level],
            "views_over_extracted": ms["views", level] / ms["extracted", level],
            "level_over_whole": ms["views", level] / ms["views", 1.0],
        }
        for level in LEVELS
    ]
    return {"batch": batch, "levels": levels}


@torch.inference_mode()
def forward(network: nn.Module, images: torch.Tensor) -> float:
    """Return the seconds of a forward pass that follows another one of the same network."""
    network(images)
    began = time.perf_counter()
    network(images)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
