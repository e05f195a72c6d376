"""Several processes for one task, started by the launchers that sweeps have."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from omegaconf import DictConfig

from chanprune.config import cli, sweep
from chanprune.config.arguments import SWEEP_DIR, as_text
from chanprune.config.composing import hydra_errors
from chanprune.processes.errors import SIGNALS, Interrupted, RunError


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments for Hydra's launcher, and the others."""
    ours = [a for a in arguments if a.lstrip("+").startswith(("hydra/launcher", "hydra.launcher"))]
    return ours, [argument for argument in arguments if argument not in ours]


@dataclass(frozen=True)
class Apart:
    """A task as a job of Hydra's, in which it can compose configurations of its own."""

    task: Callable[[], None]

    def __call__(self, config: DictConfig) -> None:
        """Do the task, whatever the job's configuration is."""
        before = Singleton.get_state()
        GlobalHydra.instance().clear()
        try:
            self.task()
        finally:
            Singleton.set_state(before)


def launch(worker: Callable[[], None], number: int, launcher: Sequence[str], folder: Path) -> None:
    """Let a launcher start so many workers, and wait until all have ended.

    Args:
        worker: What each does, in a process of its own; it is pickled.
        number: How many.
        launcher: KEY=VALUE that choose and configure the launcher.
        folder: Where they leave how they ended.

    Raises:
        UserError: There is no such launcher.
        RunError: All failed, or one died, by which a launcher may end the others.
        Interrupted: A signal came.
    """
    sweep.forget_outcomes(folder)
    workers = ",".join(map(str, range(number)))
    own = [as_text(SWEEP_DIR, str(folder)), *cli.QUIET, *launcher, f"++worker={workers}"]
    sys.argv[1:] = ["-m", *own]
    try:
        with hydra_errors():
            cli.call_hydra("config", sweep.KeepOutcome(Apart(worker), folder.resolve()))
    except SystemExit as leaving:
        if leaving.code in {128 + number for number in SIGNALS}:
            raise Interrupted(int(leaving.code) - 128) from leaving
        raise
    failed = [o["failed"] for o in sweep.outcomes(folder, number) if "failed" in o]
    for reason in failed:
        print(f"a worker failed: {reason}")
    if len(failed) == number:
        raise RunError(f"no worker got to the end: {failed[0]}")
