"""What the processes share that work on one search: who does which trial, and which are lost.

A process holds a lock for the trial that it does, which goes when the process does, however it
ends. A trial that runs and whose lock is free has lost its process: it fails, and another that
repeats it comes first. As that is the same run, it goes on where it was saved.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from chanprune.files.digest import digest
from chanprune.processes.errors import RunError, UserError
from chanprune.searching.storage import opened, the_optuna

if TYPE_CHECKING:
    import optuna

AGAIN = "again"  # on a trial: the number of the one, left behind, that it repeats
LOCKS = ".locks"
WAIT = 1.0  # seconds from one look at what others do to the next


@dataclass(frozen=True)
class Claim:
    """A trial that this process alone does.

    Attributes:
        trial: The trial.
        arguments: What was drawn for it, KEY=VALUE.
        lock: Held as long as the trial is done.
    """

    trial: optuna.Trial
    arguments: list[str]
    lock: FileLock


class Workplace:
    """A search's folder, and the study in it.

    Args:
        folder: Shared by all processes, with locks that reach across hosts.
        database: Where the study is kept; None: in the folder.
        asked: A digest of what is searched.

    Raises:
        UserError: The folder cannot be written, or holds another search.
    """

    def __init__(self, folder: Path, database: str | None, asked: str):
        self.folder = folder
        self._lock = FileLock(folder / ".lock")
        try:
            (folder / LOCKS).mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except OSError as error:
            raise UserError(f"--dir={folder} cannot be written: {error.strerror}") from error
        try:
            self.study = opened(folder, database, asked)
        finally:
            self._lock.release()

    @contextmanager
    def alone(self) -> Iterator[optuna.Study]:
        """Let no other process change the study in the block.

        Raises:
            RunError: The database cannot be reached any more.
        """
        try:
            with self._lock:
                yield self.study
        except the_optuna().exceptions.StorageInternalError as error:
            reason = f"{error.__cause__ or error}".split("\n")[0]
            raise RunError(f"--storage failed, the same command goes on: {reason}") from error

    def note(self, trial: optuna.Trial, values: Mapping[str, Any]) -> None:
        """Write down what was found out about a trial."""
        with self.alone():
            for key, value in values.items():
                trial.set_user_attr(key, value)

    def tell(self, trial: optuna.Trial, values: Any = None, state: Any = None) -> None:
        """Write down how a trial ended."""
        with self.alone() as study:
            study.tell(trial, values, state=state)

    @contextmanager
    def only_one(self, run_dir: Path) -> Iterator[None]:
        """Let one of two trials that are the same run wait for the other."""
        with FileLock(self.folder / LOCKS / digest(str(run_dir.absolute()), 16)):
            yield

    def claim(self, trials: int, draw: Callable[[optuna.Trial], list[str]]) -> Claim | None:
        """Return the next trial for this process; None when all are done, by whomever.

        While others do the last ones this waits, and takes up what they leave behind.

        Args:
            trials: How many there are to be in all.
            draw: Draws what a trial tries.
        """
        is_told = False
        while True:
            with self.alone() as study:
                running = self._take_up(study)
                claim = self._next(study, trials, draw)
            if claim is not None or not running:
                return claim
            if not is_told:
                numbers = ", ".join(map(str, sorted(running)))
                print(f"\nothers do the last trials ({numbers}); waiting for them", flush=True)
                is_told = True
            time.sleep(WAIT)

    def _take_up(self, study: optuna.Study) -> set[int]:
        """Let trials that have lost their process come first; return those that have one."""
        states, found = the_optuna().trial.TrialState, study.get_trials(deepcopy=False)
        repeated, running = _repeated(found), set()
        for trial in found:
            if trial.state != states.RUNNING:
                continue
            try:
                FileLock(self._path(trial.number), timeout=0).acquire().lock.release()
            except Timeout:
                running.add(trial.number)
                continue
            if trial.number not in repeated:
                study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})
            study.tell(trial.number, state=states.FAIL)
        return running

    def _next(
        self, study: optuna.Study, trials: int, draw: Callable[[optuna.Trial], list[str]]
    ) -> Claim | None:
        optuna = the_optuna()
        found = study.get_trials(deepcopy=False)
        drawn = len(found) - len(_repeated(found))
        waits = any(trial.state == optuna.trial.TrialState.WAITING for trial in found)
        if drawn >= trials and not waits:
            return None
        study.sampler = optuna.samplers.TPESampler(seed=drawn)  # one that a restart knows
        trial = study.ask()
        lock = FileLock(self._path(trial.number))
        lock.acquire()
        trial.set_user_attr("worker", f"{socket.gethostname()} {os.getpid()}")
        return Claim(trial, draw(trial), lock)

    def _path(self, number: int) -> Path:
        return self.folder / LOCKS / f"{number}"


def _repeated(trials: list[optuna.trial.FrozenTrial]) -> set[int]:
    return {trial.user_attrs[AGAIN] for trial in trials if AGAIN in trial.user_attrs}
