"""Train a network, take channels out of it, fine-tune what is left: `python -m chanprune.train`."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from chanprune import cli
from chanprune.errors import UserError
from chanprune.schema import validate

OURS = ["config.yaml", "metrics.jsonl", "plan.json", "model.safetensors", "model.json"]
OURS += ["table.md", "table.csv", "summary.json"]


def main() -> None:
    """Compose, validate, run."""
    cli.main("config", train)


def train(composed: dict[str, Any]) -> None:
    """Do the run that the configuration describes, unless it is done already.

    Raises:
        UserError: The configuration is wrong, or the run directory is another's.
    """
    config = validate(composed)
    place = config.pop("run")
    run_dir = Path(place["dir"]) if place["dir"] else default_dir(config)
    if _is_done(run_dir, config, place["overwrite"]):
        print((run_dir / "table.md").read_text(encoding="utf-8"))
        print(f"{run_dir} holds this run, finished; run.overwrite=true runs it again")
        return
    from chanprune.pipeline.provenance import describe_environment
    from chanprune.pipeline.run import prepare, run

    prepared = prepare(config)
    _begin(run_dir)
    record = {"config": config, "environment": describe_environment()}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(record, sort_keys=False), "utf-8")
    run(config, prepared, run_dir)
    print(f"\n{(run_dir / 'table.md').read_text(encoding='utf-8')}")
    print(f"in {run_dir}: table.md, table.csv, summary.json, plan.json, metrics.jsonl, tensorboard")
    for picture in sorted(run_dir.glob("*.png")):
        print(f"picture: {picture}")
    print(f"the compact model: chanprune.load({str(run_dir)!r})")


def default_dir(config: dict[str, Any]) -> Path:
    """Return outputs/<dataset>/<model>-<method>-<hash>, the same for the same configuration."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
    model, method = config["model"]["name"], config["method"]["name"]
    return Path("outputs", config["dataset"]["name"], f"{model}-{method}-{digest}")


def _is_done(run_dir: Path, config: dict[str, Any], overwrite: bool) -> bool:
    """Tell whether the run is there; refuse a directory that holds something else."""
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run.dir={run_dir} is a file; give a directory")
    if not run_dir.is_dir() or not any(run_dir.iterdir()):
        return False
    recorded = run_dir / "config.yaml"
    if not recorded.exists():
        raise UserError(
            f"run.dir={run_dir} is not empty and holds no run; give a new or empty directory"
        )
    if overwrite:
        return False
    values = yaml.safe_load(recorded.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or values.get("config") != config:
        raise UserError(
            f"run.dir={run_dir} holds a run with another configuration; "
            f"give another run.dir, or run.overwrite=true to replace it"
        )
    if (run_dir / "summary.json").exists():
        return True
    print(f"{run_dir} holds an unfinished run; it begins again")
    return False


def _begin(run_dir: Path) -> None:
    """Make the directory, without what an earlier run left in it."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        for old in [*OURS, *(path.name for path in run_dir.glob("*.png"))]:
            (run_dir / old).unlink(missing_ok=True)
        for pattern in ("train*", "finetune*", "tensorboard"):
            for folder in run_dir.glob(pattern):
                shutil.rmtree(folder)
        (run_dir / "metrics.jsonl").touch()
    except OSError as error:
        raise UserError(f"run.dir={run_dir} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    main()
