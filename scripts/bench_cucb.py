"""Time CUCB's training steps against the dense network's: scripts/bench_cucb.py [--json].

VGG-16 at batch 64. The dense step, the exact mode (channels chosen anew at every step) and the fast
mode (once an epoch) at every share take turns, step after step, so that a busy machine slows them
alike; the medians' ratios are what counts. Choosing, gathering, scattering, observing and the
optimiser's update are all inside the time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from tabulate import tabulate

from chanprune.channels import Bank, rowwise_batch_norms, trace
from chanprune.methods import Method, Plain, PruneOptions, Setting, Step
from chanprune.methods.cucb import Cucb
from chanprune.models import build
from chanprune.pipeline.cost import KeptForBackward

SHARES = (0.7, 0.5, 0.3, 0.1)
STEPS_PER_EPOCH = 782
SHAPE = (3, 32, 32)
WARMUP = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--round-to", type=int, default=16)
    parser.add_argument("--scope", choices=["layer", "global"], default="layer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randn(options.batch, *SHAPE, device=options.device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (options.batch,), device=options.device)
    runs = {"dense": Run(Plain(), 1.0, options)}
    for share in SHARES:
        runs[f"{share} exact"] = Run(Cucb(every=1, scope=options.scope), share, options)
        runs[f"{share} fast"] = Run(Cucb(every=0, scope=options.scope), share, options)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(WARMUP + options.rounds):
        for name, run in runs.items():
            took = run.step(images, labels)
            if number >= WARMUP:
                seconds[name].append(took)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    choice = {name: run.seconds_of_a_choice() for name, run in runs.items() if "fast" in name}
    for name, extra in choice.items():
        medians[name] += extra / STEPS_PER_EPOCH
    dense, whole = medians["dense"], runs["dense"].saved_bytes(images, labels)
    result = {
        "dense_step_s": dense,
        "step_time_ratio": {f"{s}": medians[f"{s} exact"] / dense for s in SHARES},
        "fast_step_time_ratio": {f"{s}": medians[f"{s} fast"] / dense for s in SHARES},
        "mac_ratio": {
            f"{s}": runs[f"{s} exact"].bank.macs / runs["dense"].bank.macs for s in SHARES
        },
        "activation_memory_ratio": {
            f"{s}": runs[f"{s} exact"].saved_bytes(images, labels) / whole for s in SHARES
        },
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{options.model}, batch {options.batch}: a dense step takes {1000 * dense:.0f} ms")
    keys = [key for key in result if key != "dense_step_s"]
    rows = [[share, *(result[key][f"{share}"] for key in keys)] for share in SHARES]
    print(
        tabulate(rows, ["active share", *(key.replace("_", " ") for key in keys)], floatfmt=".3f")
    )


class Run:
    """A network in training, with a method's choice of channels."""

    def __init__(self, method: Method, share: float, options: argparse.Namespace):
        torch.manual_seed(0)
        self.model = build(
            options.model, num_classes=10, in_channels=3, image_size=32, width=options.width
        )
        self.model.to(options.device, memory_format=torch.channels_last)
        graph = trace(self.model, SHAPE)
        self.optimiser = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
        )
        self.bank = Bank(self.model, graph, self.optimiser)
        self.method = method
        prune = PruneOptions(1 - share, min_channels=8, round_to=options.round_to)
        method.before_training(self.model, graph, Setting(1.0, 10**6, prune=prune))
        if isinstance(method, Cucb):
            method.exploring = WARMUP - 1
        self.index = 0

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Do a step as the loop does it; return its seconds."""
        return timed(lambda: self._step(images, labels), images.device)

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        now = Step(self.index, self.index // STEPS_PER_EPOCH, 0.1, 0.0)
        active = self.method.active_channels(now)
        if active is not None:
            self.bank.activate(active)
        self.optimiser.zero_grad(set_to_none=True)
        with rowwise_batch_norms(self.model):
            loss, _ = self.method.loss(self.model, images, labels, 0.0)
            loss.backward()
        self.method.after_backward(now)
        self.optimiser.step()
        self.index += 1

    def seconds_of_a_choice(self) -> float:
        """Time choosing, scattering and gathering alone."""

        def choose() -> None:
            now = Step(self.index, self.index + 1, 0.1, 0.0)
            active = self.method.active_channels(now)
            assert active is not None
            self.bank.activate(active)
            self.index += 1

        device = next(self.model.parameters()).device
        return statistics.median(timed(choose, device) for _ in range(5))

    def saved_bytes(self, images: torch.Tensor, labels: torch.Tensor) -> int:
        """Count the bytes that the forward pass keeps for the backward pass, parameters apart."""
        with KeptForBackward(self.model) as kept:
            F.cross_entropy(self.model(images), labels)
        return kept.num_bytes


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Return the seconds that `work` takes, on its device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
