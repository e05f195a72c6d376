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
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from chanprune import components
from chanprune.config import help, sweep
from chanprune.config.checks import did_you_mean
from chanprune.config.schema import OPTIONAL_PATHS, PATHS, SECTIONS, not_a_section
from chanprune.files.digest import digest
from chanprune.files.reading import text_of, yaml_of
from chanprune.processes import ranks
from chanprune.processes.errors import SIGNALS, Interrupted, RunError, UserError, one_line

Task = Callable[[dict[str, Any]], Mapping[str, str] | None]
Check = Callable[[dict[str, Any]], Path]
QUIET = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
QUIET += ["hydra/hydra_logging=none", "hydra.sweep.subdir=."]
SWEEP_DIR = "hydra.sweep.dir"
TRUST = "--trust-config"
NOT_TAKEN = {"--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun"}
OVERRIDE = re.compile(r"(\+{0,2})([A-Za-z_][\w./@]*)=(.*)", re.DOTALL)
OPTIONAL = {"experiment"}


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
    folders = config_folders(sys.argv[1:])
    trusted = TRUST in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != TRUST]
    settings = [argument for argument in sys.argv[1:] if OVERRIDE.fullmatch(argument)]
    deletions = [argument for argument in sys.argv[1:] if argument.startswith("~")]
    flags = [a for a in sys.argv[1:] if a not in {*settings, *deletions}]
    sweeps = _are_sweep(flags) or any(a.startswith("hydra.mode=") for a in settings)
    _use_components(settings)
    overrides = [_checked(a, folders, sweeps) for a in settings if not _is_unset(a)]
    kinds = help.chosen_kinds(overrides) if {"--help", "-h"}.intersection(flags) else []
    if kinds:
        print(_help_on(kinds, config_name, overrides, folders))
        return
    sys.argv[1:] = [*QUIET, *overrides, *deletions, *flags]
    if not trusted:
        refuse_what_runs_code(config_name, folders, [*overrides, *deletions])
    if sweeps:
        with _sweep_folder(overrides, check) as folder, _hydra_errors():
            _sweep(config_name, task, check, [*overrides, *deletions], folders, folder)
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
    _use_components(arguments)
    places = folders or [config_dir()]
    return [_checked(a, places, sweeps) for a in arguments if not _is_unset(a)]


def composed(
    config_name: str, overrides: Sequence[str], folders: Sequence[Path] = ()
) -> dict[str, Any]:
    """Compose a configuration; raises UserError."""
    with _hydra_errors(), _composing(folders or [config_dir()]):
        return _plain(hydra.compose(config_name, list(overrides)))


def _help_on(
    kinds: Sequence[str], config_name: str, overrides: Sequence[str], folders: Sequence[Path]
) -> str:
    """Say what the components of some kinds are that a command line chooses."""
    with _hydra_errors(), _composing(folders):
        config = hydra.compose(config_name, list(overrides))
    values: Any = OmegaConf.to_container(config)
    return "\n\n".join(help.describe(kind, values[kind]) for kind in kinds)


def _use_components(arguments: Sequence[str]) -> None:
    """Let this process know the user's own components, so that mistakes can be told from them."""
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if key == "components" and "," not in value:
            components.use(None if value in {"", "null"} else value.strip("'\""))


@contextlib.contextmanager
def _composing(folders: Sequence[Path]) -> Iterator[None]:
    """Let Hydra compose from our folder of configuration files, and from a user's behind it."""
    with hydra.initialize_config_dir(str(folders[0]), version_base="1.3"):
        search = create_config_search_path(str(folders[0]))
        for folder in folders[1:]:
            place = f"file://{folder.absolute()}"
            search.prepend("command-line", place, SearchPathQuery(provider="schema"))
        GlobalHydra.instance().clear()
        Hydra.create_main_hydra2("chanprune", search)
        yield


def refuse_what_runs_code(
    config_name: str, folders: Sequence[Path], overrides: Sequence[str]
) -> None:
    """Refuse a user's folder if it changes how Hydra itself works, by which it runs any code.

    Nor may it name components, which are imported.

    Raises:
        UserError: A job would be configured otherwise for Hydra than the command line asks for.
    """
    if len(folders) == 1:
        return
    with _hydra_errors(), _composing(folders):
        jobs = sweep.expand(overrides)
        parts = [_hydra_part(config_name, job.overrides) for job in jobs]
    with _hydra_errors(), _composing(folders[:1]):
        for job, part in zip(jobs, parts, strict=True):
            asked = [
                o for o in job.overrides if o.lstrip("+~").startswith(("hydra", "components="))
            ]
            try:
                expected = _hydra_part(config_name, asked)
            except HydraException:
                expected = {}
            for key in part:
                if part[key] != expected.get(key):
                    raise UserError(
                        f"the files in --config-dir={folders[1]} set {key}, and by that they "
                        f"can run any code; give {TRUST} too if you know who wrote them"
                    )


def _hydra_part(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return what configures Hydra itself, but for the names of the job, and the components."""
    config = hydra.compose(config_name, list(overrides), return_hydra_config=True)
    values: Any = OmegaConf.to_container(config.hydra, resolve=False)
    job = {key: values["job"][key] for key in ("chdir", "env_set", "env_copy")}
    own = {k: v for k, v in values.items() if k not in {"runtime", "overrides"}}
    hydras = {f"hydra.{key}": value for key, value in {**own, "job": job}.items()}
    return {**hydras, "components": config.get("components")}


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
    with _composing(folders):
        jobs = sweep.expand(overrides)
        if check is not None:
            sweep.check_jobs(jobs, config_name, partial(_on_plain, check))
    try:
        sweep.forget_outcomes(folder)
        sys.argv.insert(1, _as_text(SWEEP_DIR, str(folder)))
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
    for flag in flags:
        if flag.partition("=")[0] in NOT_TAKEN:
            raise UserError(f"{flag}: not taken here; --config-dir=FOLDER adds files of your own")
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


def _checked(argument: str, folders: Sequence[Path], sweeps: bool) -> str:
    """Check one KEY=VALUE; let a key that Hydra does not know pass on to the schema."""
    argument = _quoted(argument, sweeps)
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
            if key in components.KINDS and components.find(key, choice):
                raise UserError(
                    f"{key}={choice}: no file {key}/{choice}.yaml chooses it; write one (name: "
                    f"{choice}) in a folder, and give --config-dir=FOLDER"
                )
            listed = ", ".join(known)
            hint = did_you_mean(choice, known)
            raise UserError(f"{key}={choice}: no such choice; choose from: {listed}{hint}")
        for group in groups[1:]:
            _check_file(key, group / f"{choice}.yaml")
    return f"{key}={value}"


def _check_file(key: str, path: Path) -> None:
    """Refuse a user's configuration file that Hydra would not read as it is meant."""
    if not path.exists():
        return
    try:
        yaml_of(path)
        text = text_of(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    if text.startswith("\ufeff"):
        raise UserError(f"{path} begins with a byte-order mark; save it as UTF-8 without one")
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if key in OPTIONAL and not re.fullmatch(r"#\s*@package\s+_global_", first):
        raise UserError(f"{path}: its first line must be `# @package _global_`, not {first!r}")


def _quoted(argument: str, sweeps: bool) -> str:
    """Quote the value of an option that is a path, so that Hydra takes it as it stands.

    In a sweep, commas part several values; a path that has one needs quotes there.
    """
    plus, key, value = re.fullmatch(OVERRIDE, argument).groups()  # type: ignore[union-attr]
    is_null = key in OPTIONAL_PATHS and value in {"", "null"}
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    is_path = key in PATHS | OPTIONAL_PATHS | {SWEEP_DIR}
    if not is_path or is_null or is_quoted or (sweeps and "," in value):
        return argument
    return _as_text(f"{plus}{key}", value)


def _as_text(key: str, value: str) -> str:
    """Write KEY=VALUE so that Hydra takes the value as it stands."""
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


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
