"""Measure the compact model of a finished run: `python -m chanprune.evaluate run=<directory>`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chanprune import cli
from chanprune.errors import UserError
from chanprune.schema import check_evaluate, validate
from chanprune.train import recorded_config


def main() -> None:
    """Compose, validate, evaluate."""
    cli.main("evaluate", evaluate)


def evaluate(composed: dict[str, Any]) -> None:
    """Print test accuracy, parameters and MACs of the compact model as it is loaded from its files.

    Raises:
        UserError: There is no finished run.
    """
    options = check_evaluate(composed)
    run_dir = Path(options["run"])
    recorded = recorded_config(run_dir)
    if recorded is None or not (run_dir / "summary.json").exists():
        raise UserError(f"run={run_dir}: no finished run is there")
    try:
        config = validate({**recorded, "run": {"dir": None, "overwrite": False}})
    except UserError as error:
        raise UserError(f"{run_dir / 'config.yaml'}: {error}") from error
    from chanprune.pipeline.evaluation import evaluate_run

    result = evaluate_run(run_dir, config, options["device"])
    if options["format"] == "json":
        print(json.dumps(result))
    else:
        print(f"test accuracy  {100 * result['accuracy']:.2f} %")
        print(f"params         {result['params']:,}")
        print(f"MACs           {result['macs']:,}  (convolutions and linear layers, one image)")


if __name__ == "__main__":
    main()
