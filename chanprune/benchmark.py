"""Time a pruned network beside the whole one: `python -m chanprune.benchmark run=<directory>`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chanprune.components import vouch
from chanprune.config import cli
from chanprune.config.arguments import as_lists
from chanprune.config.finished import check_benchmark
from chanprune.records.run_dir import BENCHMARK, BENCHMARK_PICTURE, refuse_unwritable

LISTS = ("against", "batch", "threads")


def main() -> None:
    """Compose, validate, measure."""
    sys.argv[1:] = as_lists(sys.argv[1:], LISTS)
    cli.main("benchmark", benchmark)


def benchmark(composed: dict[str, Any]) -> None:
    """Measure a folder's network, print what was found and write it beside the network.

    Raises:
        UserError: There is no such network, a runtime is missing, or the folder cannot be written.
    """
    options = check_benchmark(composed)
    folder = Path(options["run"])
    if options["target"] is not None:
        vouch(options["target"])
    refuse_unwritable("run", folder)
    from chanprune.benchmarking.measuring import Asked, measure
    from chanprune.benchmarking.told import as_text
    from chanprune.files.writing import write_json
    from chanprune.pipeline.prepare import pick_device

    asked = Asked(
        folder,
        options["against"],
        sorted(set(options["batch"])),
        sorted(set(options["threads"] or [_all_threads()])),
        options["seconds"],
        options["components"],
        options["target"],
    )
    values = measure(asked, pick_device(options["device"]))
    write_json(folder / BENCHMARK, values)
    _draw(values, folder)
    if options["format"] == "json":
        print(json.dumps(values))
    else:
        print(f"{as_text(values)}\n\nin {folder}: {BENCHMARK}, {BENCHMARK_PICTURE}")


def _all_threads() -> int:
    import torch

    return torch.get_num_threads()


def _draw(values: Mapping[str, Any], folder: Path) -> None:
    from chanprune.show.pictures import save
    from chanprune.show.times import Bar, times

    panels: dict[str, list[Bar]] = {}
    due: dict[str, float] = {}
    macs = {name: own["macs"] for name, own in values["networks"].items()}
    for timing in values["timings"]:
        heading = f"batch {timing['batch']}, threads {timing['threads']}"
        bar = (
            timing["variant"],
            timing["network"],
            *(timing[k] for k in ("median", "low", "high")),
        )
        panels.setdefault(heading, []).append(bar)
        if timing["variant"] == "dense":
            due[heading] = timing["median"] * macs["compact"] / macs["dense"]
    title = f"{folder.absolute().name} on {values['machine']['processor']}"
    save(times(panels, due, title), folder / BENCHMARK_PICTURE)


if __name__ == "__main__":
    main()
