"""The command line: compose the configuration with Hydra, and answer mistakes in one line."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from chanprune.config import help, sweep
from chanprune.config.arguments import OVERRIDE, SWEEP_DIR, all_checked, as_text
from chanprune.config.composing import (
    TRUST,
    composing,
    hydra_errors,
    plain,
    refuse_what_runs_code,
)
from chanprune.files.digest import digest
from chanprune.processes import ranks
from chanprune.processes.errors import SIGNALS, Interrupted, RunError, UserError, one_line
from chanprune.processes.texts import as_called

Task = Callable[[dict[str, Any]], Mapping[str, str] | None]
Check = Callable[[dict[str, Any]], Path]
QUIET = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
QUIET += ["hydra/hydra_logging=none", "hydra.sweep.subdir=."]
COMPLETION, SHELLS = {"-sc", "--shell-completion"}, ("bash", "zsh", "fish")
NOT_TAKEN = {"--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun"}


def config_dir() -> Path:
    """Return the folder of the configuration files: in the wheel, or beside the package."""
    package = Path(__file__).resolve().parents[1]
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
    if COMPLETION.intersection(sys.argv):
        _complete(config_name)
        return
    folders = config_folders(sys.argv[1:])
    trusted = TRUST in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != TRUST]
    settings = [argument for argument in sys.argv[1:] if OVERRIDE.fullmatch(argument)]
    deletions = [argument for argument in sys.argv[1:] if argument.startswith("~")]
    flags = [a for a in sys.argv[1:] if a not in {*settings, *deletions}]
    sweeps = _are_sweep(flags) or any(a.startswith("hydra.mode=") for a in settings)
    overrides = all_checked(settings, folders, sweeps)
    kinds = help.chosen_kinds(overrides) if {"--help", "-h"}.intersection(flags) else []
    if kinds:
        print(_help_on(kinds, config_name, overrides, folders))
        return
    sys.argv[1:] = [*QUIET, *overrides, *deletions, *flags]
    if not trusted:
        refuse_what_runs_code(config_name, folders, [*overrides, *deletions])
    if sweeps:
        with _sweep_folder(overrides, check) as folder, hydra_errors():
            _sweep(config_name, task, check, [*overrides, *deletions], folders, folder)
        return
    failure: list[BaseException] = []

    def job(config: DictConfig) -> None:
        """Run the task; Hydra must not see its errors, which it would report in its own way."""
        try:
            task(plain(config))
        except (Exception, KeyboardInterrupt) as error:
            failure.append(error)

    with hydra_errors(), _help_as_called():
        call_hydra(config_name, job)
    if failure:
        raise failure[0]


def checked(
    arguments: Sequence[str], sweeps: bool = True, folders: Sequence[Path] = ()
) -> list[str]:
    """Check arguments KEY=VALUE, of which some may leave a choice if it `sweeps`.

    Args:
        arguments: The arguments.
        sweeps: Whether a value may be several.
        folders: Of the configuration files, see `config_folders`.

    Raises:
        UserError: One of them cannot be.
    """
    for argument in arguments:
        if not OVERRIDE.fullmatch(argument):
            raise UserError(f"{argument}: must be KEY=VALUE; --help shows examples")
    return all_checked(arguments, folders or [config_dir()], sweeps)


def composed(
    config_name: str, overrides: Sequence[str], folders: Sequence[Path] = ()
) -> dict[str, Any]:
    """Compose a configuration; raises UserError."""
    with hydra_errors(), composing(folders or [config_dir()]):
        return plain(hydra.compose(config_name, list(overrides)))


def _help_on(
    kinds: Sequence[str], config_name: str, overrides: Sequence[str], folders: Sequence[Path]
) -> str:
    """Say what the components of some kinds are that a command line chooses."""
    with hydra_errors(), composing(folders):
        config = hydra.compose(config_name, list(overrides))
    values: Any = OmegaConf.to_container(config)
    return "\n\n".join(help.describe(kind, values[kind]) for kind in kinds)


@contextlib.contextmanager
def _help_as_called() -> Iterator[None]:
    """Name commands in what --help prints as they are called here."""
    if not {"--help", "-h"}.intersection(sys.argv):
        yield
        return
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    finally:
        print(as_called(said.getvalue()), end="")


def _complete(config_name: str) -> None:
    """Let Hydra write what a shell needs for completion, or complete a line for a shell.

    Raises:
        UserError: It is asked otherwise.
    """
    known = [f"{verb}={shell}" for verb in ("install", "uninstall", "query") for shell in SHELLS]
    asked = [argument for argument in sys.argv[1:] if argument not in COMPLETION]
    if len(asked) != 1 or asked[0] not in known:
        raise UserError(f"{' '.join(sys.argv[1:])}: -sc goes with one of {', '.join(known)}")
    with hydra_errors():
        call_hydra(config_name, lambda config: None)


def call_hydra(config_name: str, job: Callable[[DictConfig], None]) -> None:
    """Let Hydra read sys.argv, and call a job once, or by its launcher several times."""
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(job)()


@contextlib.contextmanager
def _sweep_folder(overrides: Sequence[str], check: Check | None) -> Iterator[Path]:
    """Find where a sweep's own files go: the same folder for the same command."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    given = [override.value() for override in parsed if override.key_or_group == SWEEP_DIR]
    if not ranks.is_first():
        given, check = [], None
    if given:
        yield Path(str(given[-1]))
    elif check is not None:
        yield Path("outputs", "sweeps", digest(sorted(overrides), 8))
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def _sweep(
    config_name: str,
    task: Task,
    check: Check | None,
    overrides: Sequence[str],
    folders: Sequence[Path],
    folder: Path,
) -> None:
    """Check all jobs, launch them, and tell how they ended."""
    with composing(folders):
        jobs = sweep.expand(overrides)
        if check is not None:
            sweep.check_jobs(jobs, config_name, partial(_on_plain, check))
    try:
        sweep.forget_outcomes(folder)
        sys.argv.insert(1, as_text(SWEEP_DIR, str(folder)))
        call_hydra(config_name, sweep.KeepOutcome(partial(_on_plain, task), folder.resolve()))
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
    return function(plain(config))


def _are_sweep(flags: list[str]) -> bool:
    """Tell whether the flags ask for several runs; refuse what is no flag of Hydra's."""
    parser = get_args_parser()
    known = {name for action in parser._actions for name in action.option_strings}
    for flag in flags:
        name = flag.partition("=")[0]
        if name in NOT_TAKEN:
            raise UserError(f"{flag}: not taken here; --config-dir=FOLDER adds files of your own")
        if name.startswith("-") and name not in known:  # argparse would take it for a longer one
            raise UserError(f"{flag}: unknown flag; --help shows what can be given")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            asked = parser.parse_args(flags)
    except SystemExit as leaving:
        if not leaving.code:
            raise
        reason = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise UserError(f"{reason}; --help shows what can be given") from leaving
    if asked.overrides:
        raise UserError(f"{asked.overrides[0]}: must be KEY=VALUE; --help shows examples")
    return bool(asked.multirun)


def config_folders(arguments: Sequence[str]) -> list[Path]:
    """List our configuration folder, and the one that --config-dir adds."""
    folders = [config_dir()]
    for argument, following in pairwise([*arguments, ""]):
        option, _, value = argument.partition("=")
        if option in {"--config-dir", "-cd"}:
            folders.append(Path(value or following))
            if not folders[-1].is_dir():
                raise UserError(f"--config-dir={folders[-1]}: there is no such folder")
    return folders
