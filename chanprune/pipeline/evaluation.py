"""Measure a finished run's compact model from its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from chanprune import data
from chanprune.channels import count
from chanprune.channels.selection import first_of
from chanprune.pipeline.job import EVAL_BATCH
from chanprune.pipeline.loop import evaluate
from chanprune.pipeline.model_file import Preprocessing, extract, load
from chanprune.pipeline.prepare import pick_device
from chanprune.processes.errors import UserError


def evaluate_run(
    run_dir: Path, config: Mapping[str, Any], device: str, levels: Sequence[float]
) -> list[dict[str, float]]:
    """Load the compact model and the test set, and measure.

    Args:
        run_dir: The run's directory.
        config: Its configuration.
        device: "auto", "cpu" or "cuda".
        levels: Fidelity levels, in (0, 1].

    Returns:
        For each level "fidelity", "accuracy" on the test set in [0, 1], "params", "macs".

    Raises:
        UserError: The model or the data set cannot be read.
    """
    chosen = pick_device(device)
    model = load(run_dir).to(chosen)
    dataset = data.load(seed=config["seed"], **config["dataset"]).on(chosen)
    taken, given = model.input_shape, dataset.info.input_shape
    if taken != given:
        raise UserError(
            f"run={run_dir}: the network in model.json takes images of (C, H, W) = {taken}, and "
            f"config.yaml asks for {given}; one of the files is not this run's"
        )
    class_names, preprocessing = cast(tuple[str, ...], model.class_names), model.preprocessing
    assert isinstance(preprocessing, Preprocessing)
    if class_names != dataset.info.class_names:
        raise UserError(
            f"run={run_dir} was trained on the classes {first_of(class_names)}, and "
            f"{dataset.name} has {first_of(dataset.info.class_names)}; give the data that it was "
            "trained on as dataset.root=..."
        )
    if not dataset.has_labels:
        raise UserError(f"run={run_dir}: its data, {dataset.name}, has no labelled images")
    dataset = replace(dataset, mean=preprocessing.mean, std=preprocessing.std)
    batches = data.eval_batches(dataset, "test", batch_size=EVAL_BATCH, device=chosen)
    results = []
    for level in levels:
        small = extract(model, level) if level < 1 else model
        counts = count(small, dataset.info.input_shape)
        results.append(
            {
                "fidelity": level,
                "accuracy": evaluate(small, batches),
                "params": counts.params,
                "macs": counts.macs,
            }
        )
    return results
