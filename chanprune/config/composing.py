"""Composing with Hydra, out of our folder of configuration files and of a user's behind it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from chanprune.config import sweep
from chanprune.config.schema import SECTIONS, not_a_section
from chanprune.processes.errors import UserError

OF_CODE = ("hydra", "components=", "model.target=")
TRUST = "--trust-config"


@contextlib.contextmanager
def composing(folders: Sequence[Path]) -> Iterator[None]:
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

    Nor may it name components, or the factory of a network, which are imported.

    Raises:
        UserError: A job would be configured otherwise for Hydra than the command line asks for.
    """
    if len(folders) == 1:
        return
    with hydra_errors(), composing(folders):
        jobs = sweep.expand(overrides)
        parts = [_hydra_part(config_name, job.overrides) for job in jobs]
    with hydra_errors(), composing(folders[:1]):
        for job, part in zip(jobs, parts, strict=True):
            asked = [o for o in job.overrides if o.lstrip("+~").startswith(OF_CODE)]
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
    target = OmegaConf.select(config, "model.target", throw_on_missing=False)
    return {**hydras, "components": config.get("components"), "model.target": target}


@contextlib.contextmanager
def hydra_errors() -> Iterator[None]:
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


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain values; raises UserError."""
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
