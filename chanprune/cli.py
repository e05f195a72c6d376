"""The command line: compose the configuration with Hydra, and answer mistakes in one line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from chanprune import ranks, sweep
from chanprune.digest import digest
from chanprune.errors import SIGNALS, Interrupted, RunError, UserError, one_line
from chanprune.schema import SECTIONS, did_you_mean, not_a_section

Task = Callable[[dict[str, Any]], Mapping[str, str] | None]
Check = Callable[[dict[str, Any]], Path]
QUIET = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
QUIET += ["hydra/hydra_logging=none", "hydra.sweep.subdir=."]
SWEEP_DIR = "hydra.sweep.dir="
OVERRIDE = re.compile(r"(\+{0,2})([A-Za-z_][\w./@]*)=(.*)", re.DOTALL)
OPTIONAL = {"experiment"}


def config_dir() -> Path:
    """Return the folder of the configuration files: in the wheel, or beside the package."""
    package = Path(__file__).resolve().parent
    installed, checkout = package / "configs", package.parent / "configs"
    return installed if installed.is_dir() else checkout


def main(config_name: str, task: Task, check: Check | None = None) -> None:
    """Compose `config_name` with the command line and run `task`; then leave the process.

    Exit codes: 0 done; 2 the user's mistake, 3 a failure while running, each with one line on
    stderr; 143 or 130 stopped by SIGTERM or SIGINT; 1 a bug, with its traceback.
    HYDRA_FULL_ERROR=1 gives every traceback.

    Args:
        config_name: A file in configs/.
        task: Takes the configuration; returns what the table of a sweep says of it, by column.
        check: Refuses a configuration, and returns where its results go; a sweep checks all jobs
            before the first begins, and keeps its table.
    """
    with one_line():
        _compose_and_run(config_name, task, check)


def _compose_and_run(config_name: str, task: Task, check: Check | None) -> None:
    folders = _config_folders(sys.argv[1:])
    settings = [argument for argument in sys.argv[1:] if OVERRIDE.fullmatch(argument)]
    deletions = [argument for argument in sys.argv[1:] if argument.startswith("~")]
    flags = [a for a in sys.argv[1:] if a not in {*settings, *deletions}]
    sweeps = _are_sweep(flags) or any(a.startswith("hydra.mode=") for a in settings)
    overrides = [_checked(a, folders, sweeps) for a in settings if not _is_unset(a)]
    sys.argv[1:] = [*QUIET, *overrides, *deletions, *flags]
    if sweeps:
        with _sweep_folder(overrides, check) as folder, _hydra_errors():
            _sweep(config_name, task, check, [*overrides, *deletions], folder)
        return
    failure: list[BaseException] = []

    def job(config: DictConfig) -> None:
        """Run the task; Hydra must not see its errors, which it would report in its own way."""
        try:
            task(_plain(config))
        except (Exception, KeyboardInterrupt) as error:
            failure.append(error)

    with _hydra_errors():
        _call_hydra(config_name, job)
    if failure:
        raise failure[0]


def checked(arguments: Sequence[str]) -> list[str]:
    """Check arguments KEY=VALUE, of which some may leave a choice; raises UserError."""
    for argument in arguments:
        if not OVERRIDE.fullmatch(argument):
            raise UserError(f"{argument}: must be KEY=VALUE; --help shows examples")
    return [_checked(a, [config_dir()], sweeps=True) for a in arguments if not _is_unset(a)]


def composed(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose a configuration; raises UserError."""
    with _hydra_errors(), hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return _plain(hydra.compose(config_name, list(overrides)))


def _call_hydra(config_name: str, job: Callable[[DictConfig], None]) -> None:
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(job)()


@contextlib.contextmanager
def _hydra_errors() -> Iterator[None]:
    """Turn Hydra's errors into one line."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{mark.name}:{mark.line + 1}" if mark else "a configuration file"
        raise UserError(f"{where}: {error.problem}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(str(error).strip().splitlines()[0]) from error
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]


@contextlib.contextmanager
def _sweep_folder(overrides: Sequence[str], check: Check | None) -> Iterator[Path]:
    """Find where a sweep's own files go: the same folder for the same command."""
    given = [a.removeprefix(SWEEP_DIR) for a in overrides if a.startswith(SWEEP_DIR)]
    if not ranks.is_first():
        given, check = [], None
    if given:
        yield Path(given[-1])
    elif check is not None:
        yield Path("outputs", "sweeps", digest(sorted(overrides), 8))
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def _sweep(
    config_name: str, task: Task, check: Check | None, overrides: Sequence[str], folder: Path
) -> None:
    """Check all jobs, launch them, and tell how they ended."""
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        jobs = sweep.expand(overrides)
        if check is not None:
            sweep.check_jobs(jobs, config_name, partial(_on_plain, check))
    try:
        sweep.forget_outcomes(folder)
        sys.argv.insert(1, f"{SWEEP_DIR}{folder}")
        _call_hydra(config_name, sweep.KeepOutcome(partial(_on_plain, task), folder.resolve()))
    except SystemExit as leaving:
        if leaving.code in {128 + number for number in SIGNALS}:
            raise Interrupted(int(leaving.code) - 128) from leaving
        raise
    except OSError as error:
        raise RunError(f"{error.filename} cannot be written: {error.strerror}") from error
    ended = sweep.outcomes(folder, len(jobs))
    failed = sum("failed" in outcome for outcome in ended)
    if check is not None:
        print(f"\n{sweep.write_table(folder, jobs, ended)}\nin {folder}: table.md, table.csv")
    if failed:
        raise RunError(f"{failed} of {len(jobs)} jobs failed; the same command does them again")


def _on_plain(function: Callable[[dict[str, Any]], Any], config: DictConfig) -> Any:
    return function(_plain(config))


def _plain(config: DictConfig) -> dict[str, Any]:
    is_experiment = SECTIONS.keys() <= config.keys()
    for section in SECTIONS if is_experiment else ():
        if not OmegaConf.is_dict(config[section]):
            raise not_a_section(section, config[section])
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} is missing; give {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _are_sweep(flags: list[str]) -> bool:
    """Tell whether the flags ask for several runs; refuse what is no flag of Hydra's."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            asked = get_args_parser().parse_args(flags)
    except SystemExit as leaving:
        if not leaving.code:
            raise
        reason = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise UserError(f"{reason}; --help shows what can be given") from leaving
    if asked.overrides:
        raise UserError(f"{asked.overrides[0]}: must be KEY=VALUE; --help shows examples")
    return bool(asked.multirun)


def _is_unset(argument: str) -> bool:
    """Tell whether an optional choice is given as null, which Hydra cannot read."""
    key, _, value = argument.lstrip("+").partition("=")
    return key in OPTIONAL and value in {"", "null"}


def _checked(argument: str, folders: list[Path], sweeps: bool) -> str:
    """Check one KEY=VALUE; let a key that Hydra does not know pass on to the schema."""
    _, key, value = re.fullmatch(OVERRIDE, argument).groups()  # type: ignore[union-attr]
    try:
        parsed = OverridesParser.create().parse_override(argument)
    except HydraException as error:
        raise UserError(f"{argument}: cannot be parsed; does it need quotes?") from error
    if parsed.is_sweep_override() and not sweeps:
        raise UserError(f"{argument}: several values are several runs, which need the flag -m")
    groups = [folder / key for folder in folders if (folder / key).is_dir()]
    if not groups:
        return argument if key.startswith("hydra") else f"++{key}={value}"
    known = sorted(
        path.relative_to(group).with_suffix("").as_posix()
        for group in groups
        for path in group.rglob("*.yaml")
    )
    for choice in value.split(",") if sweeps else [value]:
        is_name = re.fullmatch(r"[\w./-]*", choice) or not sweeps
        if is_name and choice not in known:
            listed = ", ".join(known)
            hint = did_you_mean(choice, known)
            raise UserError(f"{key}={choice}: no such choice; choose from: {listed}{hint}")
    return f"{key}={value}"


def _config_folders(arguments: list[str]) -> list[Path]:
    """List our configuration folder, and the one that --config-dir adds."""
    folders = [config_dir()]
    for argument, following in pairwise([*arguments, ""]):
        option, _, value = argument.partition("=")
        if option in {"--config-dir", "-cd"}:
            folders.append(Path(value or following))
    return folders
