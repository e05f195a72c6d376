"""Measure the compact model of a finished run: `python -m chanprune.evaluate run=<directory>`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from chanprune.components import vouch
from chanprune.config import cli
from chanprune.config.arguments import as_lists
from chanprune.config.finished import check_evaluate
from chanprune.config.recorded import checked_config
from chanprune.config.schema import refuse_missing_data
from chanprune.processes.errors import UserError
from chanprune.records.run_dir import located


def main() -> None:
    """Compose, validate, evaluate."""
    sys.argv[1:] = as_lists(sys.argv[1:], ["fidelity"])
    cli.main("evaluate", evaluate)


def evaluate(composed: dict[str, Any]) -> None:
    """Print test accuracy, parameters and MACs of the compact model as it is loaded from its files.

    Raises:
        UserError: There is no finished run, or its data is not there.
    """
    options = check_evaluate(composed)
    run_dir = Path(options["run"])
    if options["target"] is not None:
        vouch(options["target"])
    config = checked_config(run_dir)
    if config is None or not (run_dir / "summary.json").exists():
        raise UserError(f"run={run_dir}: no finished run is there")
    config = located(run_dir, config, options["dataset"]["root"])
    refuse_missing_data(config)
    from chanprune.pipeline.evaluation import evaluate_run

    levels = options["fidelity"]
    results = evaluate_run(run_dir, config, options["device"], levels)
    if options["format"] == "json":
        print(json.dumps(results[0] if len(levels) == 1 else results))
    elif len(levels) == 1:
        print(f"test accuracy  {100 * results[0]['accuracy']:.2f} %")
        print(f"params         {results[0]['params']:,}")
        print(f"MACs           {results[0]['macs']:,}  (convolutions and linear layers, one image)")
    else:
        rows = [
            (
                f"{r['fidelity']:g}",
                f"{100 * r['accuracy']:.2f}",
                f"{r['params']:,}",
                f"{r['macs']:,}",
            )
            for r in results
        ]
        heads = ("fidelity", "test accuracy %", "params", "MACs")
        print(tabulate(rows, heads, colalign=("right",) * 4, disable_numparse=True))


if __name__ == "__main__":
    main()
