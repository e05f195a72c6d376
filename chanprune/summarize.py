"""Count a network layer by layer, without data or training: `python -m chanprune.summarize`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from chanprune import cli
from chanprune.schema import check_format, validate


def main() -> None:
    """Compose, validate, count."""
    cli.main("summarize", summarize)


def summarize(composed: dict[str, Any]) -> None:
    """Print the per-layer and total parameters and MACs of a model on a data set's images."""
    form = check_format(composed.pop("format"))
    config = validate(composed)
    import torch

    from chanprune import data
    from chanprune.channels import count
    from chanprune.models import architecture, build

    info = data.describe(**config["dataset"])
    with torch.device("meta"):
        model = build(**architecture(config["model"], info.input_shape, len(info.class_names)))
    counts = count(model, info.input_shape)
    if form == "json":
        layers = [asdict(layer) for layer in counts.layers]
        print(json.dumps({"params": counts.params, "macs": counts.macs, "layers": layers}))
        return
    rows = [
        [layer.name, layer.kind, layer.input, layer.output, f"{layer.params:,}", f"{layer.macs:,}"]
        for layer in counts.layers
    ]
    rows.append(["total", "", "", "", f"{counts.params:,}", f"{counts.macs:,}"])
    heads = ["layer", "kind", "in", "out", "params", "MACs"]
    align = ("left", "left", "right", "right", "right", "right")
    shape = " x ".join(str(size) for size in info.input_shape)
    print(f"{config['model']['name']} on {config['dataset']['name']} ({shape})\n")
    print(tabulate(rows, heads, tablefmt="simple", colalign=align, disable_numparse=True))
    print(
        "\nparams: weights, biases, batch-norm scales and shifts. MACs: multiply-accumulates of "
        f"convolutions and linear layers for one image (FLOPs = 2 x MACs = {2 * counts.macs:,})."
    )


if __name__ == "__main__":
    main()
