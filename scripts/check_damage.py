"""Check expected channel damage on real images: scripts/check_damage.py RUN [--images 2000].

Of a finished run's network, draws what goes into ReLU against the normal distributions that the
closed form takes it for, and the closed form against the damage that is measured; prints how far
both rank the channels of each layer alike (Kendall's tau).
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from torch import Tensor, nn

from chanprune import data, load
from chanprune.channels import trace
from chanprune.files.reading import yaml_of
from chanprune.rewiring import Unit, expected_damage, selective_units
from chanprune.show.drawing import plt
from chanprune.show.pictures import save, short

HISTOGRAMS = 12
BATCH = 250


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--out", type=Path, help="picture; default: damage.png in the run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = load(options.run).eval()
    config = yaml_of(options.run / "config.yaml")["config"]
    dataset = data.load(seed=config["seed"], **config["dataset"])
    batches = data.sample_batches(dataset, batch_size=BATCH, seed=config["seed"], device="cpu")
    images = [x for x, _ in islice(batches.epoch(0), math.ceil(options.images / BATCH))]
    units, _ = selective_units(model, trace(model, dataset.info.input_shape))
    means, values = observe(model, units, images)
    taus, points = {}, {}
    for unit in units:
        conv, norm = model.get_submodule(unit.conv), model.get_submodule(unit.norm)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        if conv.in_channels < 3:
            continue
        expected = expected_damage(conv, norm, unit.map_size, counts_padding=True)
        closed = expected.norm(dim=1).numpy()
        measured = damage_of(conv, means[unit.conv]).norm(dim=1).numpy()
        taus[unit.conv] = float(kendalltau(closed, measured).statistic)
        points[unit.conv] = closed, measured
    draw(options.out or options.run / "damage.png", model, units, values, points, taus)
    found = [tau for tau in taus.values() if not math.isnan(tau)]
    result = {
        "kendall_tau": {"mean": float(np.mean(found)), "lowest": min(found), "layers": taus},
        "images": len(images) * BATCH,
    }
    if options.json:
        print(json.dumps(result))
        return
    for name, tau in taus.items():
        print(f"{name:28s} {tau:6.3f}")
    print(f"mean of {len(found)} layers: {np.mean(found):.3f}, lowest {min(found):.3f}")


@torch.inference_mode()
def observe(
    model: nn.Module, units: list[Unit], images: list[Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return each convolution's mean input (C, H, W), and what goes into ReLU, (N, C) pixels."""
    sums: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}

    def add(name: str, tensor: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros(())) + tensor.double().sum(0)

    def note(name: str, tensor: Tensor) -> None:
        values.setdefault(name, tensor[:, :, ::4, ::4].permute(0, 2, 3, 1).flatten(0, 2).clone())

    handles = []
    for unit in units:
        conv, norm = model.get_submodule(unit.conv), model.get_submodule(unit.norm)
        handles.append(conv.register_forward_pre_hook(lambda m, x, name=unit.conv: add(name, x[0])))
        handles.append(norm.register_forward_hook(lambda m, x, y, name=unit.conv: note(name, y)))
    for batch in images:
        model(batch)
    for handle in handles:
        handle.remove()
    number = sum(len(batch) for batch in images)
    return {name: total / number for name, total in sums.items()}, values


def damage_of(conv: nn.Conv2d, mean: Tensor) -> Tensor:
    """Return the measured damage (I, O): as it is linear, mean maps (I, H, W) say it all."""
    weight = conv.weight.detach().double()
    single = [
        F.conv2d(mean[i][None, None], weight[:, i : i + 1], None, conv.stride, conv.padding)
        for i in range(conv.in_channels)
    ]
    return torch.stack([each.mean((0, 2, 3)) for each in single])


def draw(
    path: Path,
    model: nn.Module,
    units: list[Unit],
    values: dict[str, Tensor],
    points: dict[str, tuple[np.ndarray, np.ndarray]],
    taus: dict[str, float],
) -> None:
    """Draw histograms of channels all over the network, and closed against measured damage."""
    figure, grid = plt.subplots(3, 6, figsize=(14, 6.6))
    places = np.linspace(0, len(units) - 1, HISTOGRAMS).round().astype(int)
    for axes, place in zip(grid[:2].flat, places, strict=True):
        unit = units[place]
        norm = model.get_submodule(unit.norm)
        assert isinstance(norm, nn.BatchNorm2d)
        scale = norm.weight.detach().abs()
        channel = int(scale.argsort()[len(scale) // 2])
        mean, width = norm.bias[channel].item(), scale[channel].item()
        axes.hist(values[unit.conv][:, channel].numpy(), bins=60, density=True, color="#b9c7dc")
        z = np.linspace(mean - 4 * width, mean + 4 * width, 200)
        axes.plot(
            z,
            np.exp(-(((z - mean) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi)),
            "#c8442f",
        )
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_title(f"{short(unit.conv)}, channel {channel}", fontsize=7)
        axes.set_yticks([])
    names = list(points)
    for axes, place in zip(
        grid[2], np.linspace(0, len(names) - 1, 6).round().astype(int), strict=True
    ):
        closed, measured = points[names[place]]
        axes.plot(closed, measured, ".", markersize=4, color="#2a6fbb")
        top = max(closed.max(), measured.max())
        axes.plot([0, top], [0, top], color="black", linewidth=0.6)
        axes.set_title(f"{short(names[place])}, tau {taus[names[place]]:.2f}", fontsize=7)
        axes.set_xlabel("closed form", fontsize=7)
    grid[2, 0].set_ylabel("measured damage", fontsize=7)
    for axes in grid.flat:
        axes.tick_params(labelsize=6)
    figure.suptitle(
        "what goes into ReLU, and the normal distribution it is taken for; damage, closed form and "
        "measured",
        fontsize=9,
    )
    save(figure, path)


if __name__ == "__main__":
    main()
