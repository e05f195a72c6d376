"""Write a network for a runtime: `python -m chanprune.export run=<directory> format=onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chanprune.components import vouch
from chanprune.config import cli
from chanprune.config.finished import check_export
from chanprune.config.recorded import checked_config
from chanprune.processes.errors import UserError
from chanprune.records.run_dir import located, refuse_unwritable
from chanprune.records.schemas import read_summary

if TYPE_CHECKING:
    from chanprune.pipeline.exporting import Exported, Images, Subject

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "torchscript": ".pt"}


def main() -> None:
    """Compose, validate, export."""
    cli.main("export", export)


def export(composed: dict[str, Any]) -> None:
    """Write the file, and print what it takes and how far it is from the checkpoint.

    Raises:
        UserError: There is no finished run, or it cannot be written so.
        RunError: The file cannot be written, or computes something else than the checkpoint.
    """
    options = check_export(composed)
    run_dir = Path(options["run"])
    if options["target"] is not None:
        vouch(options["target"])
    config = _finished(run_dir)
    levels = _levels(run_dir) if config is not None else {1.0}
    level = options["fidelity"]
    if level not in levels:
        known = ", ".join(f"{known:g}" for known in sorted(levels))
        raise UserError(f"fidelity={level:g}: run={run_dir} has {known}")
    path = _target(run_dir, options, level)
    from chanprune.pipeline import exporting
    from chanprune.pipeline.export_images import images_of

    exporting.refuse_missing(options["format"], options["opset"], options["precision"])
    if config is not None:
        config = located(run_dir, config, options["dataset"]["root"])
    subject = _subject(run_dir, options, level)
    images = images_of(config, subject.input_shape)
    written = exporting.export(
        *(subject, images, path, options["format"]),
        opset=options["opset"],
        preprocess=options["preprocess"],
        precision=options["precision"],
    )
    _tell(written, images)


def _finished(run_dir: Path) -> dict[str, Any] | None:
    """Return the configuration of a finished run; None of a saved network; raises UserError."""
    config = checked_config(run_dir)
    has_summary, has_model = ((run_dir / f"{name}.json").exists() for name in ("summary", "model"))
    if has_summary if config is not None else has_model:
        return config
    raise UserError(f"run={run_dir}: no finished run is there, and no network that was saved")


def _levels(run_dir: Path) -> set[float]:
    """Return the fidelity levels that a run has measured."""
    try:
        return {1.0, *(stage.fidelity for stage in read_summary(run_dir).stages)}
    except (OSError, ValueError) as error:
        raise UserError(f"{run_dir / 'summary.json'} is damaged: {error}") from error


def _target(run_dir: Path, options: dict[str, Any], level: float) -> Path:
    """Return where the file goes; raises UserError where it cannot."""
    name, suffix = "model" if level == 1 else f"model-{level:g}", SUFFIXES[options["format"]]
    if options["precision"] != "fp32":
        name += f"-{options['precision']}"
    default = run_dir / f"{name}{suffix}"
    path = Path(options["out"] or default)
    if path.is_dir():
        raise UserError(f"out={path} is a folder; give a file, such as {path / default.name}")
    if path.suffix != suffix:
        raise UserError(f"out={path}: a file of format={options['format']} ends in {suffix}")
    refuse_unwritable("out", path.parent)
    return path


def _subject(run_dir: Path, options: dict[str, Any], level: float) -> Subject:
    """Load the network; raises UserError."""
    import chanprune
    from chanprune.api.origin import origin_of
    from chanprune.channels import count
    from chanprune.pipeline.exporting import Subject

    model = chanprune.load(run_dir, options["components"], options["target"]).float()
    if level < 1:
        model = chanprune.extract(model, level)
    found: Any = model
    origin = origin_of(model)
    if origin is None:
        about = found.input_shape, found.preprocessing, found.class_names
    elif origin.example.is_one_image:
        about = origin.example.shape, None, ()
    else:
        raise UserError(f"run={run_dir}: this network takes something else than one image")
    return Subject(model, *about, count(model, about[0]), level)


def _tell(written: Exported, images: Images) -> None:
    megabytes = written.num_bytes / 1e6
    norms = written.folded + written.left
    print(f"{written.path}  {megabytes:.1f} MB, {written.folded} of {norms} batch norms folded")
    print(f"takes    {written.takes}")
    print(f"checked  on {images.what}: {written.agreement.told}")


if __name__ == "__main__":
    main()
